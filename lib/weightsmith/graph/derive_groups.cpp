#include "weightsmith/graph/derive_groups.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <tuple>

#include "weightsmith/core/error.h"
#include "weightsmith/graph/unit_flow.h"
#include "weightsmith/graph/unit_partition.h"
#include "weightsmith/model/graph_runner.h"

namespace weightsmith {
namespace {

std::string reason_of(Cause cause) {
  switch (cause) {
    case Cause::kInput:
      return "meets values in a fixed order (inputs, tokens, positions, classes)";
    case Cause::kPosition:
      return "the operator treats neighbours along this axis differently";
    case Cause::kAlone:
      return "the operator takes it out of the others by itself";
    case Cause::kOrder:
      return "the result depends on the order along this axis";
    case Cause::kOverlap:
      return "stands in two sets of units that cross, which cannot both move";
    case Cause::kOperator:
      return "no rule for this operator";
    case Cause::kNone:
    case Cause::kOutput:
      break;
  }
  return "no other unit stands in the same places";
}

/// Where a label ended up.
struct Seat {
  std::int64_t group = -1;
  std::int64_t unit = 0;
  std::int64_t part = 0;  ///< among the labels that make up the unit
};

/// Makes members and taps of groups of labels.
class GroupAssembler {
 public:
  GroupAssembler(const UnitFlow& flow, const LabelStore& store, const UnitPartition& partition)
      : flow_(flow),
        store_(store),
        partition_(partition),
        seats_(static_cast<std::size_t>(store.count()) + 1) {
    for (std::size_t g = 0; g < partition.groups.size(); ++g) {
      const auto& units = partition.groups[g].units;
      for (std::size_t u = 0; u < units.size(); ++u)
        for (std::size_t p = 0; p < units[u].size(); ++p)
          seats_[units[u][p]] = {static_cast<std::int64_t>(g), static_cast<std::int64_t>(u),
                                 static_cast<std::int64_t>(p)};
    }
  }

  UnitGroups run() {
    UnitGroups result;
    for (const UnitPartition::Group& group : partition_.groups) {
      UnitGroup& made = result.groups.emplace_back();
      made.units = static_cast<std::int64_t>(group.units.size());
      made.blocks = group.blocks;
    }
    for (const ParameterAxis& axis : flow_.axes()) add_members(axis, result);
    name_groups(result);
    add_taps(result);
    return result;
  }

 private:
  const Seat& seat(Label label) const { return seats_[store_.find(label)]; }

  /// One unit after another, the places along an axis (or an activation's axes) where it stands;
  /// none when the group is not there with all its units, each as often as every other.
  std::map<std::int64_t, std::vector<std::int64_t>> places(const Label* labels,
                                                           std::int64_t count) const {
    struct Place {
      std::int64_t unit, part, position;
    };
    std::map<std::int64_t, std::vector<Place>> by_group;
    for (std::int64_t i = 0; i < count; ++i)
      if (labels[i] != 0)
        if (const Seat& s = seat(labels[i]); s.group >= 0)
          by_group[s.group].push_back({s.unit, s.part, i});
    std::map<std::int64_t, std::vector<std::int64_t>> result;
    for (auto& [group, seats] : by_group) {
      std::vector<Place>& list = seats;  // clang captures no structured binding
      std::sort(list.begin(), list.end(), [](const Place& a, const Place& b) {
        return std::tie(a.unit, a.part, a.position) < std::tie(b.unit, b.part, b.position);
      });
      const auto units = static_cast<std::int64_t>(partition_.groups[group].units.size());
      const auto total = static_cast<std::int64_t>(list.size());
      const std::int64_t k = total / units;
      bool even = total % units == 0;
      for (std::int64_t i = 0; even && i < total; ++i) even = list[i].unit == i / k;
      if (!even) continue;
      // The same order of a unit's own places for all units: that which ascends in unit 0.
      std::vector<std::int64_t> order(k);
      std::iota(order.begin(), order.end(), 0);
      std::sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
        return list[a].position < list[b].position;
      });
      std::vector<std::int64_t>& positions = result[group];
      for (std::int64_t u = 0; u < units; ++u)
        for (std::int64_t j = 0; j < k; ++j) positions.push_back(list[u * k + order[j]].position);
    }
    return result;
  }

  static bool is_run(const std::vector<std::int64_t>& positions) {
    for (std::size_t i = 0; i < positions.size(); ++i)
      if (positions[i] != positions[0] + static_cast<std::int64_t>(i)) return false;
    return true;
  }

  void add_members(const ParameterAxis& axis, UnitGroups& result) const {
    std::vector<Label> labels(axis.size);
    std::iota(labels.begin(), labels.end(), axis.first);
    for (const auto& [g, positions] : places(labels.data(), axis.size)) {
      UnitGroup& group = result.groups[g];
      const auto k = static_cast<std::int64_t>(positions.size()) / group.units;
      GroupMember member;
      member.axis = axis.axis;
      member.groups = axis.groups;
      member.role = axis.is_consumed ? MemberRole::kIn : MemberRole::kOut;
      std::vector<std::vector<std::int64_t>> runs{positions};
      if (!is_run(positions) && k > 1) {
        // The units one after another, and that several times (packed queries and keys)?
        std::vector<std::vector<std::int64_t>> columns(k);
        for (std::size_t i = 0; i < positions.size(); ++i) columns[i % k].push_back(positions[i]);
        if (std::all_of(columns.begin(), columns.end(), is_run)) runs = std::move(columns);
      }
      for (const std::string& name : flow_.parameters()[axis.parameter].names)
        for (const auto& run : runs) {
          member.parameter = name;
          member.offset = *std::min_element(run.begin(), run.end());
          member.length = static_cast<std::int64_t>(run.size());
          member.index = is_run(run) ? std::vector<std::int64_t>{} : run;
          group.members.push_back(member);
        }
    }
  }

  /// The module of the first parameter, with the stretch of it where several groups begin there.
  void name_groups(UnitGroups& result) const {
    std::map<std::string, int> uses;
    std::vector<std::string> names;
    for (const UnitGroup& group : result.groups) {
      std::string name = group.members.empty() ? "" : group.members.front().parameter;
      const std::size_t dot = name.rfind('.');
      if (dot != std::string::npos) name.resize(dot);
      names.push_back(name);
      ++uses[name];
    }
    std::set<std::string> taken;
    for (std::size_t g = 0; g < result.groups.size(); ++g) {
      UnitGroup& group = result.groups[g];
      if (group.members.empty()) continue;
      group.name = names[g];
      if (uses[names[g]] > 1) {
        const GroupMember& first = group.members.front();
        group.name += fmt::format("[{}:{}]", first.offset, first.offset + first.length);
      }
      make_unique(group.name, taken);
    }
    for (std::size_t g = 0; g < result.groups.size(); ++g) {
      const std::int64_t outer = partition_.groups[g].within;
      if (outer < 0) continue;
      UnitGroup& blocks = result.groups[outer];
      if (blocks.name.empty()) {
        blocks.name = names[g] + ".blocks";
        make_unique(blocks.name, taken);
      }
      result.groups[g].within = blocks.name;
    }
  }

  static void make_unique(std::string& name, std::set<std::string>& taken) {
    std::string candidate = name;
    for (int n = 2; !taken.insert(candidate).second; ++n) candidate = fmt::format("{}#{}", name, n);
    name = candidate;
  }

  /// A place where all units of a group are seen.
  struct Sight {
    UnitTap layout;  // axes and index
    std::int64_t repeats = 1;
    bool includes_batch = false;
  };

  std::map<std::int64_t, Sight> sights(const FlowEvent& event, const UnitGroups& result) const {
    std::map<std::int64_t, Sight> found;
    for (const LabelArray& array : event.arrays)
      for (auto& [g, positions] : places(array.labels.data_ptr<Label>(), array.labels.numel())) {
        Sight sight;
        sight.layout.axes = array.dims;
        sight.repeats = static_cast<std::int64_t>(positions.size()) / result.groups[g].units;
        sight.includes_batch = array.dims.front() == 0;
        const bool is_all = static_cast<std::int64_t>(positions.size()) == array.labels.numel();
        if (!is_all || !is_run(positions)) sight.layout.index = std::move(positions);
        const auto [it, is_new] = found.emplace(g, sight);
        if (!is_new && sight.repeats < it->second.repeats) it->second = sight;
      }
    return found;
  }

  void add_taps(UnitGroups& result) const {
    std::vector<std::map<std::int64_t, Sight>> seen;
    for (const FlowEvent& event : flow_.events()) seen.push_back(sights(event, result));
    for (std::size_t g = 0; g < result.groups.size(); ++g) {
      const auto group = static_cast<std::int64_t>(g);
      // Each unit in one place; else in several that do not depend on the size of the batch.
      for (const bool once : {true, false}) {
        const auto sight = [&](std::size_t event) -> const Sight* {
          const auto it = seen[event].find(group);
          if (it == seen[event].end()) return nullptr;
          return (once ? it->second.repeats == 1 : !it->second.includes_batch) ? &it->second
                                                                               : nullptr;
        };
        result.groups[g].taps = taps_of_last_consumer(sight);
        if (result.groups[g].taps.empty()) result.groups[g].taps = last_tap(seen.size(), sight);
        if (!result.groups[g].taps.empty()) break;
      }
    }
  }

  /// What the last operator that reads the group sees of it (queries and keys are two values).
  template <class SightOf>
  std::vector<UnitTap> taps_of_last_consumer(const SightOf& sight) const {
    std::vector<UnitTap> taps;
    std::optional<std::size_t> node;
    const auto& consumers = flow_.consumers();
    for (auto it = consumers.rbegin(); it != consumers.rend(); ++it) {
      if (node && it->node != *node) break;
      if (const Sight* seen = sight(it->event)) {
        node = it->node;
        taps.push_back(tap_of(*it, seen->layout));
      }
    }
    std::reverse(taps.begin(), taps.end());
    return taps;
  }

  template <class SightOf>
  std::vector<UnitTap> last_tap(std::size_t events, const SightOf& sight) const {
    for (std::size_t e = events; e-- > 0;)
      if (const Sight* seen = sight(e)) {
        UnitTap tap = seen->layout;
        tap.at = fmt::format("#{}/output.{}", flow_.events()[e].node, flow_.events()[e].output);
        return {tap};
      }
    return {};
  }

  UnitTap tap_of(const FlowConsumer& consumer, UnitTap tap) const {
    tap.at = fmt::format("#{}/input.{}", consumer.node, consumer.input);
    if (consumer.parameter.empty()) return tap;
    tap.at = consumer.parameter + "/input";
    // A convolution's channels come second, a linear layer's features last, and readers of a group
    // file need not be told.
    const at::Tensor& weight = parameter(consumer.parameter);
    const FlowEvent& event = flow_.events()[consumer.event];
    const bool is_whole = tap.index.empty() && tap.axes.size() == 1;
    const bool channels = weight.dim() >= 3 && tap.axes.front() == 1;
    const bool features = weight.dim() == 2 && tap.axes.front() == event.rank - 1;
    if (is_whole && (channels || features)) tap.axes.clear();
    return tap;
  }

  const at::Tensor& parameter(const std::string& name) const {
    for (const FlowParameter& p : flow_.parameters())
      if (p.names.front() == name) return p.tensor;
    WS_CHECK(false, name);
  }

  const UnitFlow& flow_;
  const LabelStore& store_;
  const UnitPartition& partition_;
  std::vector<Seat> seats_;
};

/// What is said of units that cannot be exchanged, and where that arose.
class Remarks {
 public:
  Remarks(const FlatGraph& graph, const UnitFlow& flow, const LabelStore& store)
      : graph_(graph), flow_(flow), store_(store) {}

  std::vector<UnitRemark> of(const std::vector<std::pair<Label, Distinction>>& units) {
    std::map<std::tuple<Cause, std::size_t, std::size_t>, std::int64_t> counts;
    for (const auto& [label, why] : units) {
      const bool has_place = why.cause != Cause::kNone && why.cause != Cause::kOutput;
      ++counts[{has_place ? why.cause : Cause::kNone, has_place ? why.node : first_seen(label),
                why.other}];
    }
    std::vector<UnitRemark> result;
    for (const auto& [key, count] : counts) {
      const auto& [cause, node, other] = key;
      std::string reason = reason_of(cause);
      if (cause == Cause::kOverlap)
        reason += other == node ? " (both made here)" : " (" + graph_.describe(other) + ")";
      result.push_back({std::move(reason), graph_.describe(node), count});
    }
    std::stable_sort(result.begin(), result.end(),
                     [](const UnitRemark& a, const UnitRemark& b) { return a.units > b.units; });
    return result;
  }

 private:
  /// The node that first produced a unit.
  std::size_t first_seen(Label label) {
    if (seen_.empty()) {
      seen_.assign(static_cast<std::size_t>(store_.count()) + 1, 0);
      for (const FlowEvent& event : flow_.events())
        for (const LabelArray& array : event.arrays) {
          const auto* data = array.labels.data_ptr<Label>();
          for (std::int64_t i = 0; i < array.labels.numel(); ++i)
            if (std::size_t& seen = seen_[store_.find(data[i])]; seen == 0) seen = event.node + 1;
        }
    }
    const std::size_t seen = seen_[store_.find(label)];
    return seen == 0 ? 0 : seen - 1;
  }

  const FlatGraph& graph_;
  const UnitFlow& flow_;
  const LabelStore& store_;
  std::vector<std::size_t> seen_;  // by representative: 1 + node
};

}  // namespace

GroupDerivation derive_unit_groups(const torch::jit::Module& module, const std::string& where,
                                   const std::vector<c10::IValue>& inputs,
                                   const std::set<std::string>& moving) {
  const at::NoGradGuard no_grad;
  const GraphRunner runner(module, where);
  UnitFlow flow(runner.graph(), moving);
  flow.start(inputs);
  flow.finish(runner.run(inputs, &flow));
  const UnitPartition partition = partition_units(flow, flow.store());
  GroupDerivation result;
  result.groups = GroupAssembler(flow, flow.store(), partition).run();
  result.free_units = partition.free_units;
  result.pinned_units = static_cast<std::int64_t>(partition.pinned.size());
  result.output_units = partition.output_units;
  for (const UnitPartition::Group& group : partition.groups) result.hidden.push_back(group.hidden);
  Remarks remarks(runner.graph(), flow, flow.store());
  result.pinned = remarks.of(partition.pinned);
  result.rigid = remarks.of(partition.rigid);
  return result;
}

std::set<std::string> differing_buffers(const std::vector<const ScriptModel*>& models) {
  std::set<std::string> names;
  if (models.empty()) return names;
  const TensorMap first = models.front()->buffers();
  for (std::size_t i = 1; i < models.size(); ++i)
    for (const auto& [name, tensor] : models[i]->buffers()) {
      if (!tensor.is_floating_point()) continue;
      const auto it = first.find(name);
      if (it == first.end() || !at::equal(it->second.detach(), tensor.detach())) names.insert(name);
    }
  return names;
}

}  // namespace weightsmith
