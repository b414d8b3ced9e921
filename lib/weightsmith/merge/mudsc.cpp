#include "weightsmith/merge/mudsc.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <map>
#include <optional>
#include <tuple>

#include "weightsmith/core/error.h"
#include "weightsmith/core/stop.h"
#include "weightsmith/core/threads.h"
#include "weightsmith/match/agreement.h"
#include "weightsmith/match/align.h"
#include "weightsmith/match/similarity_accumulator.h"
#include "weightsmith/match/visit_order.h"
#include "weightsmith/match/zip.h"

namespace weightsmith {
namespace {

class Stopwatch {
 public:
  explicit Stopwatch(double& total_s)
      : total_s_(total_s), started_(std::chrono::steady_clock::now()) {}
  ~Stopwatch() {
    total_s_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count();
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  double& total_s_;
  std::chrono::steady_clock::time_point started_;
};

/// The groups that meet group g in a parameter on another axis; g itself when it is on two axes of
/// one parameter.
std::vector<std::vector<std::size_t>> neighbours_of(const UnitGroups& groups,
                                                    const ParameterUses& uses) {
  std::vector<std::set<std::size_t>> found(groups.groups.size());
  for (const auto& [name, list] : uses)
    for (const AxisUse& a : list)
      for (const AxisUse& b : list)
        if (groups.groups[a.group].members[a.member].axis !=
            groups.groups[b.group].members[b.member].axis)
          found[a.group].insert(b.group);
  std::vector<std::vector<std::size_t>> neighbours;
  for (const auto& set : found) neighbours.emplace_back(set.begin(), set.end());
  return neighbours;
}

/// Whether a member's other axes carry no units whose correspondence is unknown.
bool is_comparable(const UnitGroups& groups, const ParameterUses& uses, const GroupMember& member,
                   const std::vector<Matching>& matchings) {
  const auto& list = uses.at(member.parameter);
  return std::all_of(list.begin(), list.end(), [&](const AxisUse& use) {
    return groups.groups[use.group].members[use.member].axis == member.axis ||
           matchings[use.group].slots > 0;
  });
}

/// One run of matching: the state of the sweeps.
class Matcher {
 public:
  Matcher(const NetworkStates& states, const UnitGroups& groups,
          const std::vector<PackedSimilarity>& activation, const MatchOptions& options,
          Progress& progress)
      : states_(states),
        groups_(groups),
        activation_(activation),
        options_(options),
        progress_(progress),
        uses_(parameter_uses(groups)),
        neighbours_(neighbours_of(groups, uses_)),
        bundle_of_(bundles()),
        prices_(groups.groups.size()),
        state_(groups.groups.size()) {
    result_.compared.resize(size());
  }

  MatchResult run() {
    const auto models = static_cast<std::int64_t>(states_.models.size());
    if (options_.variant.method == MergeMethod::kAverage) {
      for (std::size_t g = 0; g < size(); ++g)
        state_.matchings[g] = identity_matching(models, groups_.groups[g].units);
    } else {
      if (options_.variant.space != MergeSpace::kWeight) match_by_activations();
      if (options_.variant.space != MergeSpace::kActivation) {
        // Axes of unequal widths cannot be taken to correspond as they stand.
        const bool nothing_known =
            differ_in_width() && options_.variant.space == MergeSpace::kWeight;
        if (nothing_known || options_.iterations.start == SweepStart::kPropagate) propagate();
        sweep();
      }
    }
    result_.objective = mean_value();
    result_.matchings = std::move(state_.matchings);
    return std::move(result_);
  }

 private:
  /// Everything a sweep changes, so that the best can be kept and gone back to.
  struct State {
    explicit State(std::size_t groups) : matchings(groups), versions(groups, 0), seen(groups) {}
    std::vector<Matching> matchings;
    std::vector<std::int64_t> versions;  // of a group's matching; equal versions mean equal slots
    std::vector<std::optional<std::vector<std::int64_t>>> seen;  // neighbours' when last matched
  };

  /// Groups whose blocks have one order, and what is to be matched.
  struct Waiting {
    const std::vector<std::size_t>* bundle;
    std::vector<PackedSimilarity> similarities;
  };
  static constexpr std::int64_t kWaitingValues = std::int64_t{8} << 20;  // 32 MB

  std::size_t size() const { return groups_.groups.size(); }

  Similarity::Scope scope() const {
    return similarity_scope(options_.variant.method, options_.align.reference,
                            states_.models.size());
  }

  bool differ_in_width() const {
    return std::any_of(groups_.groups.begin(), groups_.groups.end(),
                       [](const UnitGroup& group) { return !group.widths.empty(); });
  }

  double mean_value() const {
    double total = 0;
    for (const Matching& m : state_.matchings) total += m.value;
    return size() > 0 ? total / static_cast<double>(size()) : 0.0;
  }

  /// Groups whose blocks have one order, behind the group of these blocks; else the group alone.
  std::vector<std::vector<std::size_t>> bundles() const {
    std::map<std::string, std::size_t> by_name;
    std::vector<std::vector<std::size_t>> bundle_of(size());
    for (std::size_t g = 0; g < size(); ++g) {
      by_name[groups_.groups[g].name] = g;
      bundle_of[g] = {g};
    }
    if (options_.attention_heads == AttentionHeads::kIndependent) return bundle_of;
    for (std::size_t g = 0; g < size(); ++g)
      if (const auto& outer = groups_.groups[g].within; !outer.empty())
        bundle_of[by_name.at(outer)].push_back(g);
    for (const auto& bundle : std::vector(bundle_of))
      for (const std::size_t g : bundle)
        if (bundle.size() > 1) bundle_of[g] = bundle;
    return bundle_of;
  }

  /// Matches the groups of a bundle on their similarities: first the blocks, on the sum of what all
  /// groups say of them, then units inside. For a group alone both at once.
  std::vector<Matching> match(const std::vector<std::size_t>& bundle,
                              const std::vector<PackedSimilarity>& similarities) {
    if (bundle.size() == 1) return {match(bundle.front(), similarities.front())};
    const std::int64_t blocks = groups_.groups[bundle.front()].units;
    const auto where = [&](std::size_t i) { return "group " + groups_.groups[bundle[i]].name; };
    const bool is_align = options_.variant.method == MergeMethod::kAlign;
    const bool to_mean = is_align && scope() == Similarity::Scope::kAllPairs;
    const auto seen = [&](std::size_t i) {
      return to_mean ? unpacked(similarities[i], scope()) : across_models(similarities[i]);
    };
    Similarity order = seen(0);
    order.values = order.values.clone();
    for (std::size_t i = 1; i < bundle.size(); ++i)
      order.values += to_mean ? block_similarity(seen(i), blocks, where(i)).values
                              : block_affinities(seen(i), blocks, where(i));
    order.values /= static_cast<double>(bundle.size());
    std::vector<Matching> matchings{(to_mean ? align_to_mean : align)(order, 1, where(0), nullptr)};
    for (std::size_t i = 1; i < bundle.size(); ++i)
      matchings.push_back(
          is_align ? (to_mean ? align_within_to_mean : align_within)(seen(i), matchings.front(),
                                                                     where(i))
                   : zip_within(similarities[i], zip_options(), matchings.front(), where(i)));
    return matchings;
  }

  ZipOptions zip_options() const {
    ZipOptions zip;
    zip.reduce = options_.zip.reduce_for(static_cast<std::int64_t>(states_.models.size()));
    zip.a = options_.zip.a;
    zip.b = options_.zip.b;
    zip.b_block = options_.zip.b_block;
    return zip;
  }

  Matching match(std::size_t g, const PackedSimilarity& similarity) {
    const UnitGroup& group = groups_.groups[g];
    const std::string where = "group " + group.name;
    if (options_.variant.method == MergeMethod::kAlign)
      return options_.align.reference == AlignReference::kMean
                 ? align_to_mean(unpacked(similarity, scope()), group.blocks, where, &prices_[g])
                 : align(across_models(similarity), group.blocks, where, &prices_[g]);
    return zip(similarity, zip_options(), group.blocks, where);
  }

  void match_by_activations() {
    WS_CHECK(activation_.size() == size());
    Phase phase(progress_, "match activations", static_cast<std::int64_t>(size()), "groups");
    for (std::size_t g = 0; g < size(); ++g) {
      stop_here_if_requested();
      if (bundle_of_[g].front() == g) {
        std::vector<PackedSimilarity> similarities;
        for (const std::size_t h : bundle_of_[g]) similarities.push_back(by_activations(h));
        match_later(bundle_of_[g], std::move(similarities));
      }
      phase.update(static_cast<std::int64_t>(g) + 1);
    }
    match_waiting();
    // What comes next in dual space is mostly these similarities again, at their share.
    for (AlignPrices& prices : prices_)
      for (std::vector<double>& of_model : prices)
        for (double& price : of_model) price *= 1.0 - options_.variant.balance;
  }

  /// Of group g, what the method needs.
  PackedSimilarity by_activations(std::size_t g) const {
    const PackedSimilarity& kept = activation_[g];
    return kept.scope == scope() ? kept : packed(unpacked(kept, scope()));
  }

  /// How many numbers a unit of group g is compared by, when parameters that reach groups not
  /// matched yet count for nothing.
  double evidence(std::size_t g) const {
    double numbers = 0;
    for (const GroupMember& member : groups_.groups[g].members) {
      if (states_.buffers.contains(member.parameter) ||
          !is_comparable(groups_, uses_, member, state_.matchings))
        continue;
      const at::Tensor& tensor = states_.models.front().at(member.parameter);
      numbers += static_cast<double>(tensor.numel() / tensor.size(member.axis) * member.length) /
                 static_cast<double>(groups_.groups[g].units);
    }
    return numbers;
  }

  /// Matches every group once, always the one that is best supported by what is known: inputs and
  /// outputs of the network keep their order, and so do units that are pinned. The sweeps start
  /// from there. Where a network was permuted this finds the permutation group by group, while
  /// sweeps that take unknown orders for known ones may settle on them: a layer matched to a wrong
  /// order confirms it.
  void propagate() {
    Phase phase(progress_, "spread matchings", static_cast<std::int64_t>(size()), "groups");
    std::set<std::size_t> left;
    for (std::size_t g = 0; g < size(); ++g) left.insert(bundle_of_[g].front());
    std::int64_t matched = 0;
    while (!left.empty()) {
      stop_here_if_requested();
      std::size_t best = *left.begin();
      double most = 0;
      for (const std::size_t g : left) {
        double numbers = 0;
        for (const std::size_t member : bundle_of_[g]) numbers += evidence(member);
        if (numbers > most) std::tie(best, most) = std::tuple(g, numbers);
      }
      rematch(bundle_of_[best],
              most > 0 || differ_in_width() ? UnmatchedAxes::kLeaveOut : UnmatchedAxes::kInOrder);
      match_waiting();
      left.erase(best);
      matched += static_cast<std::int64_t>(bundle_of_[best].size());
      phase.update(matched);
    }
  }

  /// Matches group g again, and all whose blocks have one order with its, if a neighbour has
  /// changed since it was last matched here; at the latest with the next match_waiting().
  void visit(std::size_t g) {
    const std::vector<std::size_t>& bundle = bundle_of_[g];
    if (depends_on_waiting(bundle)) match_waiting();
    std::vector<std::int64_t> now;
    for (const std::size_t member : bundle)
      for (const std::size_t h : neighbours_[member]) now.push_back(state_.versions[h]);
    if (state_.seen[bundle.front()] == now) {
      ++result_.groups_skipped;
      return;
    }
    rematch(bundle, UnmatchedAxes::kInOrder);
    state_.seen[bundle.front()] = std::move(now);
  }

  /// Matches groups whose blocks have one order by their weights, in dual space also by their
  /// activations.
  void rematch(const std::vector<std::size_t>& bundle, UnmatchedAxes unmatched) {
    std::vector<PackedSimilarity> similarities;
    for (const std::size_t member : bundle) {
      const Stopwatch watch(result_.similarity_s);
      ++result_.compared[member];
      PackedSimilarity& similarity = similarities.emplace_back(
          weight_similarity(states_, groups_, uses_, member, state_.matchings, options_.similarity,
                            scope(), unmatched));
      if (options_.variant.space == MergeSpace::kDual)
        blend(similarity, by_activations(member), options_.variant.balance,
              "group " + groups_.groups[member].name);
    }
    match_later(bundle, std::move(similarities));
  }

  /// An assignment or a zip keeps one thread busy: groups that do not meet wait for each other and
  /// are matched at the same time, as long as what they wait with is small.
  void match_later(const std::vector<std::size_t>& bundle,
                   std::vector<PackedSimilarity> similarities) {
    for (const PackedSimilarity& s : similarities) waiting_values_ += s.values.numel();
    waiting_.push_back({&bundle, std::move(similarities)});
    if (waiting_values_ >= kWaitingValues) match_waiting();
  }

  /// Whether a matching that is still to come is one of these groups' or of a neighbour of theirs.
  bool depends_on_waiting(const std::vector<std::size_t>& bundle) const {
    const auto waits = [this](std::size_t g) {
      return std::any_of(waiting_.begin(), waiting_.end(), [g](const Waiting& waiting) {
        return std::find(waiting.bundle->begin(), waiting.bundle->end(), g) !=
               waiting.bundle->end();
      });
    };
    return std::any_of(bundle.begin(), bundle.end(), [&](std::size_t g) {
      return waits(g) || std::any_of(neighbours_[g].begin(), neighbours_[g].end(), waits);
    });
  }

  void match_waiting() {
    std::vector<std::vector<Matching>> found(waiting_.size());
    {
      const Stopwatch watch(result_.matching_s);
      share_tasks(static_cast<std::int64_t>(waiting_.size()), [&](std::int64_t w) {
        found[w] = match(*waiting_[w].bundle, waiting_[w].similarities);
        waiting_[w].similarities.clear();
      });
    }
    for (std::size_t w = 0; w < waiting_.size(); ++w) {
      const std::vector<std::size_t>& bundle = *waiting_[w].bundle;
      for (std::size_t i = 0; i < bundle.size(); ++i) {
        Matching& matching = state_.matchings[bundle[i]];
        if (found[w][i].slot != matching.slot) state_.versions[bundle[i]] = ++last_version_;
        matching = std::move(found[w][i]);
        ++result_.groups_matched;
      }
    }
    waiting_.clear();
    waiting_values_ = 0;
  }

  void sweep() {
    VisitOrder order(static_cast<std::int64_t>(size()));
    Phase phase(progress_, "match weights", options_.iterations.max, "sweeps");
    std::optional<State> best;
    double best_total = -std::numeric_limits<double>::infinity();
    std::int64_t failures = 0;
    for (std::int64_t sweep = 0; sweep < options_.iterations.max; ++sweep) {
      for (const std::int64_t g : order.next()) {
        stop_here_if_requested();
        visit(static_cast<std::size_t>(g));
      }
      match_waiting();
      const double total = mean_value();
      result_.objective_history.push_back(total);
      phase.update(sweep + 1, fmt::format("objective {:.5f}", total));
      if (!best || total > best_total) {
        best = state_;
        best_total = total;
        failures = 0;
        continue;
      }
      // As in the authors' code the next sweep starts from the best matchings, not from these.
      state_ = *best;
      if (++failures >= options_.iterations.patience) break;
    }
  }

  const NetworkStates& states_;
  const UnitGroups& groups_;
  const std::vector<PackedSimilarity>& activation_;
  const MatchOptions& options_;
  Progress& progress_;
  ParameterUses uses_;
  std::vector<std::vector<std::size_t>> neighbours_;
  std::vector<std::vector<std::size_t>> bundle_of_;
  std::vector<AlignPrices> prices_;  // of every group's last alignment
  State state_;
  std::int64_t last_version_ = 0;
  std::vector<Waiting> waiting_;  // no two of them meet
  std::int64_t waiting_values_ = 0;
  MatchResult result_;
};

/// Rows of members that wait to be added together: each addition goes over all pairs of units in
/// double, whether it brings thousands of columns or a bias's one.
class MemberRows {
 public:
  MemberRows(SimilarityAccumulator& to, const UnitStack& stack, Similarity::Scope scope)
      : to_(to), stack_(stack), scope_(scope) {}

  /// `rows`: of every model.
  void add(std::vector<SimilarityAccumulator::UnitRows> rows, const std::string& parameter) {
    const at::Tensor& first = rows.front().values;
    columns_ += first.numel() / std::max<std::int64_t>(1, first.size(0));
    members_.push_back(std::move(rows));
    names_.push_back(parameter);
    if (columns_ >= kEnough) flush();
  }

  void flush() {
    if (members_.empty()) return;
    try {
      to_.add_together(members_, names_.front());
    } catch (const Error&) {
      // Which of them it is.
      for (std::size_t m = 0; m < members_.size(); ++m)
        SimilarityAccumulator(stack_, scope_).add_together({members_[m]}, names_[m]);
      throw;
    }
    members_.clear();
    names_.clear();
    columns_ = 0;
  }

 private:
  static constexpr std::int64_t kEnough = 4096;  // columns: the product then takes far longer

  SimilarityAccumulator& to_;
  const UnitStack& stack_;
  Similarity::Scope scope_;
  std::vector<std::vector<SimilarityAccumulator::UnitRows>> members_;  // [member][model]
  std::vector<std::string> names_;
  std::int64_t columns_ = 0;
};

/// What a model says of the units of one member, with the units on its other axes where their slots
/// are, as far as they are matched. `uses`: of the parameter, `of` among them.
SimilarityAccumulator::UnitRows comparable_rows(const NetworkStates& states,
                                                const UnitGroups& groups,
                                                const std::vector<AxisUse>& uses, const AxisUse& of,
                                                const std::vector<Matching>& matchings,
                                                std::int64_t model) {
  const GroupMember& member = groups.groups[of.group].members[of.member];
  const auto units =
      stack_of(groups.groups[of.group], static_cast<std::int64_t>(states.models.size()))
          .units(model);
  const GroupMember* own = &member;
  std::vector<AxisUse> others;
  for (const AxisUse& use : uses) {
    const GroupMember& other = member_of(groups, use, model);
    if (use.group == of.group && use.member == of.member) own = &other;
    if (other.axis != member.axis && matchings[use.group].slots > 0) others.push_back(use);
  }
  at::Tensor tensor = states.models[model].at(member.parameter).detach().to(at::kFloat);
  const std::int64_t axis = others.empty() ? -1 : member_of(groups, others.front(), model).axis;
  const bool on_one_axis = std::all_of(others.begin(), others.end(), [&](const AxisUse& use) {
    return member_of(groups, use, model).axis == axis;
  });
  if (!others.empty() && on_one_axis && member.groups == 1)
    if (auto order = axis_order(tensor.size(axis), others, groups, matchings, model))
      return {unit_rows(tensor, *own, units), axis < member.axis ? axis + 2 : axis + 1,
              *std::move(order)};
  for (const AxisUse& use : others) {
    const GroupMember& other = member_of(groups, use, model);
    // Units that a grouped convolution reads are compared where their group stands, so its outputs
    // keep to theirs.
    const std::int64_t keep_inside = member.groups > 1 ? tensor.size(0) / member.groups : 0;
    tensor = spread_units(tensor, other, matchings[use.group], model,
                          other.role == MemberRole::kIn ? SlotWeight::kAverage : SlotWeight::kOne,
                          {}, keep_inside);
  }
  return {unit_rows(tensor, *own, units)};
}

}  // namespace

PackedSimilarity weight_similarity(const NetworkStates& states, const UnitGroups& groups,
                                   const ParameterUses& uses, std::size_t g,
                                   const std::vector<Matching>& matchings,
                                   SimilarityMeasure measure, Similarity::Scope scope,
                                   UnmatchedAxes unmatched) {
  const at::NoGradGuard no_grad;
  const UnitGroup& group = groups.groups[g];
  const auto models = static_cast<std::int64_t>(states.models.size());
  const UnitStack stack = stack_of(group, models);
  if (group.members.empty()) return packed(no_similarity(stack, scope));
  SimilarityAccumulator similarity(stack, scope);
  MemberRows pending(similarity, stack, scope);
  for (std::size_t m = 0; m < group.members.size(); ++m) {
    const GroupMember& member = group.members[m];
    if (states.buffers.contains(member.parameter)) continue;
    if (unmatched == UnmatchedAxes::kLeaveOut && !is_comparable(groups, uses, member, matchings))
      continue;
    std::vector<SimilarityAccumulator::UnitRows> rows;
    for (std::int64_t i = 0; i < models; ++i)
      rows.push_back(
          comparable_rows(states, groups, uses.at(member.parameter), {g, m, {}}, matchings, i));
    pending.add(std::move(rows), member.parameter);
  }
  pending.flush();
  // Buffers say nothing, and what reaches groups not matched yet may be left out.
  if (similarity.count() == 0) return packed(no_similarity(stack, scope));
  const std::string where = "weights of group " + group.name;
  return measure == SimilarityMeasure::kCorrelation ? similarity.packed_correlation(where)
                                                    : similarity.packed_cosine(where);
}

MatchResult match_units(const NetworkStates& states, const UnitGroups& groups,
                        const std::vector<PackedSimilarity>& activation,
                        const MatchOptions& options, Progress& progress) {
  return Matcher(states, groups, activation, options, progress).run();
}

SpaceAgreement space_agreement(const NetworkStates& states, const UnitGroups& groups,
                               const std::vector<PackedSimilarity>& activation,
                               const std::vector<Matching>& matchings, SimilarityMeasure measure,
                               Similarity::Scope scope, Progress& progress) {
  const ParameterUses uses = parameter_uses(groups);
  const std::size_t size = groups.groups.size();
  SpaceAgreement total;
  Phase phase(progress, "compare matchings", static_cast<std::int64_t>(size), "groups");
  for (std::size_t g = 0; g < size; ++g) {
    stop_here_if_requested();
    const std::string where = "group " + groups.groups[g].name;
    const Similarity weight =
        unpacked(weight_similarity(states, groups, uses, g, matchings, measure, scope), scope);
    total.weight += agreement(weight, matchings[g], where) / static_cast<double>(size);
    if (!activation.empty())
      total.activation += agreement(unpacked(activation[g], scope), matchings[g], where) /
                          static_cast<double>(size);
    phase.update(static_cast<std::int64_t>(g) + 1);
  }
  return total;
}

Similarity::Scope similarity_scope(MergeMethod method, AlignReference reference,
                                   std::size_t models) {
  const bool pairs_with_first =
      method == MergeMethod::kAlign && (reference == AlignReference::kFirst || models <= 2);
  return pairs_with_first ? Similarity::Scope::kCrossModel : Similarity::Scope::kAllPairs;
}

}  // namespace weightsmith
