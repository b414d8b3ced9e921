#include "weightsmith/graph/unit_partition.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "weightsmith/core/error.h"
#include "weightsmith/core/rng.h"

namespace weightsmith {
namespace {

using Labels = std::vector<Label>;

std::uint64_t hash_pair(std::uint64_t a, std::uint64_t b) {
  return mix_bits(mix_bits(a) + 0x9e3779b97f4a7c15ULL * (b + 1));
}

/// For each label, whether its representative stands in a parameter.
std::vector<bool> labels_in_parameters(const UnitFlow& flow, const LabelStore& store) {
  std::vector<bool> found(static_cast<std::size_t>(store.count()) + 1, false);
  for (const ParameterAxis& axis : flow.axes())
    for (Label l = axis.first; l < axis.first + axis.size; ++l) found[store.find(l)] = true;
  return found;
}

/// Leaves that one block stands for, and a mark that sets of the same places share: heads stand for
/// a set of queries and one of values.
struct LeafSet {
  Labels leaves;  // ascending
  std::uint64_t mark = 0;
};

/// A block that crosses another one and is given up for it: it becomes a label without content
/// inside the smallest block around it, and what it held is told apart from the rest of that one.
struct GivenUp {
  std::vector<LeafSet> sets;
  std::uint64_t mark = 0;  ///< the same for blocks that have the same place in blocks around them
  /// Whether that costs freedom: else it was told apart from all others before.
  bool is_costly = false;
  Label against = 0;  ///< the block that it was given up for
};

/// Blocks with what they hold, everything by representative.
class BlockForest {
 public:
  BlockForest(const UnitFlow& flow, LabelStore& store) : flow_(flow), store_(store) {
    for (const LabelBlock& block : store.blocks())
      blocks_.push_back({block.label, block.members, store.marks(block.label)});
    // What turns out to be one block may hold others that thereby become one.
    do {
      unite_equal_blocks();
      collect();
    } while (!nest());
    for (const LabelBlock& block : store.blocks())
      made_by_.emplace(store.find(block.label), block.node);
  }

  const Labels& children(Label label) const {
    static const Labels none;
    const auto it = children_.find(label);
    return it == children_.end() ? none : it->second;
  }
  bool has_parent(Label label) const { return has_parent_.contains(label); }
  const std::map<Label, GivenUp>& given_up() const { return given_up_; }
  /// Of blocks that were kept and stand for several sets, these: what is in one stays in one.
  const std::vector<LeafSet>& kept_sets() const { return kept_sets_; }
  /// The first node that made a block.
  std::size_t made_by(Label label) const {
    const auto it = made_by_.find(label);
    return it == made_by_.end() ? 0 : it->second;
  }

 private:
  struct Block {
    Label label;
    Labels members;
    std::uint64_t marks;  // of the labels that were made for these members, before they were united
  };

  /// Leaves one block of each content, with representatives of labels only.
  void unite_equal_blocks() {
    for (bool changed = true; changed;) {
      changed = false;
      std::map<Labels, std::pair<Label, std::uint64_t>> seen;
      for (const Block& block : blocks_) {
        Labels content = representatives(block.members);
        if (content.size() == 1) {
          changed |= store_.find(block.label) != content.front();
          store_.unite(block.label, content.front());
          continue;
        }
        const auto [it, is_new] =
            seen.emplace(std::move(content), std::pair(block.label, block.marks));
        if (is_new) continue;
        it->second.second += block.marks;
        if (store_.find(it->second.first) == store_.find(block.label)) continue;
        store_.unite(it->second.first, block.label);
        changed = true;
      }
      blocks_.clear();
      for (auto& [content, block] : seen) blocks_.push_back({block.first, content, block.second});
    }
  }

  Labels representatives(const Labels& members) const {
    Labels content;
    content.reserve(members.size());
    for (const Label m : members) content.push_back(store_.find(m));
    std::sort(content.begin(), content.end());
    content.erase(std::unique(content.begin(), content.end()), content.end());
    return content;
  }

  void collect() {
    content_.clear();
    for (const Block& block : blocks_) {
      Labels& content = content_[store_.find(block.label)];
      content.insert(content.end(), block.members.begin(), block.members.end());
    }
    for (auto& [label, content] : content_) {
      content = representatives(content);
      std::erase(content, label);
    }
    leaves_.clear();
    for (const auto& [label, content] : content_) {
      std::set<Label> open;
      leaves_of(label, open);
    }
    sets_.clear();
    for (const Block& block : blocks_) {
      const Label label = store_.find(block.label);
      Labels set;
      for (const Label m : representatives(block.members)) {
        const auto below = leaves_.find(m);
        if (below == leaves_.end() || m == label)
          set.push_back(m);
        else
          set.insert(set.end(), below->second.begin(), below->second.end());
      }
      sets_[label].push_back({representatives(set), block.marks});
    }
    for (auto& [label, sets] : sets_) sets = distinct(std::move(sets));
  }

  /// Once each, with a mark that tells them apart.
  static std::vector<LeafSet> distinct(std::vector<LeafSet> sets) {
    std::map<Labels, std::uint64_t> marks;
    for (LeafSet& set : sets) marks[std::move(set.leaves)] += set.mark;
    std::map<std::uint64_t, std::uint64_t> equal;
    sets.clear();
    for (const auto& [leaves, mark] : marks)
      sets.push_back({leaves, hash_pair(mark, equal[mark]++)});
    return sets;
  }

  /// The labels without content below one; a label found inside itself counts as a leaf.
  const Labels& leaves_of(Label label, std::set<Label>& open) {
    if (const auto it = leaves_.find(label); it != leaves_.end()) return it->second;
    open.insert(label);
    Labels leaves;
    for (const Label child : content_.at(label)) {
      if (!content_.contains(child) || open.contains(child)) {
        leaves.push_back(child);
        continue;
      }
      const Labels& below = leaves_of(child, open);
      leaves.insert(leaves.end(), below.begin(), below.end());
    }
    open.erase(label);
    return leaves_[label] = representatives(leaves);
  }

  /// Finds every block's place; false when blocks were united and all must be done again.
  bool nest() {
    std::map<Label, Labels> blocks_of;  // of a leaf, the smaller ones first
    given_up_.clear();
    colours_.clear();
    // A block that holds itself, by way of others, has no place among blocks.
    for (const auto& [label, leaves] : leaves_)
      if (std::binary_search(leaves.begin(), leaves.end(), label)) give_up(label, true, label);
    for (;;) {
      blocks_of.clear();
      for (const auto& [label, leaves] : leaves_)
        if (!given_up_.contains(label))
          for (const Label leaf : leaves) blocks_of[leaf].push_back(label);
      // Blocks that were compared at one leaf need not be compared at the next.
      std::set<std::pair<Label, Label>> compared;
      std::vector<std::pair<Label, Label>> crossing;
      bool united = false;
      for (auto& [leaf, blocks] : blocks_of) {
        std::sort(blocks.begin(), blocks.end(), [&](Label a, Label b) {
          return std::pair(leaves_[a].size(), a) < std::pair(leaves_[b].size(), b);
        });
        for (std::size_t i = 0; i + 1 < blocks.size(); ++i) {
          if (!compared.emplace(blocks[i], blocks[i + 1]).second) continue;
          const Labels& inner = leaves_[blocks[i]];
          const Labels& outer = leaves_[blocks[i + 1]];
          if (inner == outer) {
            united |= store_.find(blocks[i]) != store_.find(blocks[i + 1]);
            store_.unite(blocks[i], blocks[i + 1]);
          } else if (!std::includes(outer.begin(), outer.end(), inner.begin(), inner.end())) {
            crossing.emplace_back(blocks[i], blocks[i + 1]);
          }
        }
      }
      if (united) return false;
      if (crossing.empty()) break;
      resolve(crossing);
    }
    std::set<std::pair<Label, Label>> edges;
    for (const auto& [leaf, blocks] : blocks_of) {
      Label child = leaf;
      for (const Label block : blocks) {
        edges.emplace(block, child);
        child = block;
      }
    }
    for (const auto& [parent, child] : edges) {
      if (parent == child) continue;
      children_[parent].push_back(child);
      has_parent_.insert(child);
    }
    place_given_up(blocks_of);
    // Blocks around one leaf differ in size, which says whose set it is.
    kept_sets_.clear();
    for (const auto& [label, sets] : sets_)
      if (!given_up_.contains(label) && sets.size() > 1)
        for (const LeafSet& set : sets)
          kept_sets_.push_back({set.leaves, hash_pair(set.mark, leaves_[label].size())});
    return true;
  }

  void give_up(Label label, bool is_costly, Label against) {
    given_up_[label] = {sets_.at(label), 0, is_costly, against};
  }

  /// Gives up blocks until fewer cross. A block that nothing can take the place of may go for
  /// nothing, since what it holds can be told apart in its stead. Of two kinds of blocks that cross
  /// (the heads of an attention layer, and the units that one norm for all heads makes) a kind goes
  /// as a whole: one that holds nothing but what the others hold as well, that does not stand in a
  /// parameter itself, that has fewer blocks.
  void resolve(const std::vector<std::pair<Label, Label>>& crossing) {
    if (colours_.empty()) refine();
    std::map<std::uint64_t, Labels> kinds;
    for (const auto& [label, leaves] : leaves_)
      if (!given_up_.contains(label)) kinds[colours_.at(label)].push_back(label);
    const auto is_single = [&](Label label) { return kinds.at(colours_.at(label)).size() == 1; };
    bool any = false;
    for (const auto& [inner, outer] : crossing) {
      if (given_up_.contains(inner) || given_up_.contains(outer)) continue;
      if (!is_single(inner) && !is_single(outer)) continue;
      any = true;
      if (is_single(inner))
        give_up(inner, false, outer);
      else
        give_up(outer, false, inner);
    }
    if (any) return;
    // Each kind, with those that it crosses.
    std::map<std::uint64_t, std::set<Label>> partners;
    for (const auto& [inner, outer] : crossing) {
      partners[colours_.at(inner)].insert(outer);
      partners[colours_.at(outer)].insert(inner);
    }
    const std::vector<bool> in_parameters = labels_in_parameters(flow_, store_);
    std::tuple<bool, bool, std::size_t, Label> least{true, true, leaves_.size() + 1, 0};
    std::uint64_t chosen = 0;
    for (const auto& [kind, others] : partners) {
      std::set<Label> covered;
      for (const Label other : others) covered.insert(leaves_[other].begin(), leaves_[other].end());
      bool is_covered = true;
      for (const Label label : kinds.at(kind))
        for (const Label leaf : leaves_[label]) is_covered &= covered.contains(leaf);
      const Label first = kinds.at(kind).front();
      const std::tuple key(!is_covered, static_cast<bool>(in_parameters[first]),
                           kinds.at(kind).size(), first);
      if (key >= least) continue;
      least = key;
      chosen = kind;
    }
    for (const Label label : kinds.at(chosen)) give_up(label, true, *partners.at(chosen).begin());
  }

  /// Colours of leaves and blocks: equal only if the one may be where the other one is. Colour
  /// refinement on what holds what: marks, then again and again the colours of what a block holds
  /// and of what holds a leaf.
  void refine() {
    for (Label label = 1; label <= store_.count(); ++label) {
      const Label owner = store_.find(label);
      if (leaves_.contains(owner)) colours_[owner] += store_.marks(label);
    }
    std::map<Label, std::vector<std::pair<Label, std::uint64_t>>> sets_of;  // of a leaf
    for (const auto& [label, sets] : sets_)
      for (const LeafSet& set : sets)
        for (const Label leaf : set.leaves) sets_of[leaf].emplace_back(label, set.mark);
    for (Label label = 1; label <= store_.count(); ++label) {
      const Label owner = store_.find(label);
      if (sets_of.contains(owner) && !leaves_.contains(owner))
        colours_[owner] += store_.marks(label);
    }
    constexpr int kMostRounds = 64;
    std::size_t kinds = 0;
    for (int round = 0; round < kMostRounds; ++round) {
      std::set<std::uint64_t> seen;
      for (const auto& [label, colour] : colours_) seen.insert(colour);
      if (seen.size() == kinds) break;
      kinds = seen.size();
      std::map<Label, std::uint64_t> next;
      for (const auto& [label, colour] : colours_) next[label] = hash_pair(colour, 4);
      for (const auto& [label, sets] : sets_)
        for (const LeafSet& set : sets) {
          std::uint64_t inside = 0;
          for (const Label leaf : set.leaves) inside += hash_pair(colours_.at(leaf), 5);
          next[label] += hash_pair(inside, set.mark);
        }
      for (const auto& [leaf, holders] : sets_of)
        for (const auto& [label, mark] : holders) next[leaf] += hash_pair(colours_.at(label), mark);
      colours_ = std::move(next);
    }
  }

  /// Makes what was given up a child of the smallest block around it, and numbers those of a kind
  /// in there.
  void place_given_up(const std::map<Label, Labels>& blocks_of) {
    if (given_up_.empty()) return;
    if (colours_.empty()) refine();
    std::map<std::pair<Label, std::uint64_t>, Labels> alike;  // by the block around and by kind
    std::map<Label, std::uint64_t> depth;
    for (const auto& [label, given] : given_up_) {
      const Labels& leaves = leaves_[label];
      Label parent = 0;
      if (const auto around = blocks_of.find(leaves.front()); around != blocks_of.end())
        for (const Label block : around->second) {
          const Labels& outer = leaves_[block];
          if (!std::includes(outer.begin(), outer.end(), leaves.begin(), leaves.end())) continue;
          if (parent == 0) parent = block;
          ++depth[label];
        }
      if (parent != 0) {
        children_[parent].push_back(label);
        has_parent_.insert(label);
      }
      alike[{parent, colours_.at(label)}].push_back(label);
    }
    for (auto& [key, labels] : alike) {
      std::sort(labels.begin(), labels.end(), [&](Label a, Label b) {
        return std::pair(leaves_[a].front(), a) < std::pair(leaves_[b].front(), b);
      });
      for (std::size_t rank = 0; rank < labels.size(); ++rank)
        given_up_.at(labels[rank]).mark =
            hash_pair(hash_pair(key.second, rank), 100 + depth[labels[rank]]);
    }
  }

  const UnitFlow& flow_;
  LabelStore& store_;
  std::vector<Block> blocks_;
  std::map<Label, Labels> content_;
  std::map<Label, Labels> leaves_;
  std::map<Label, Labels> children_;
  std::set<Label> has_parent_;
  std::map<Label, std::vector<LeafSet>> sets_;  // together a block's leaves
  std::map<Label, GivenUp> given_up_;
  std::map<Label, std::uint64_t> colours_;
  std::vector<LeafSet> kept_sets_;
  std::map<Label, std::size_t> made_by_;
};

class Partitioner {
 public:
  Partitioner(const UnitFlow& flow, LabelStore& store)
      : flow_(flow), store_(store), forest_(flow, store) {
    collect_classes();
  }

  UnitPartition run() {
    // Labels that stand nowhere in parameters matter only as blocks of others.
    std::map<std::uint64_t, Labels> roots;
    for (const Label label : classes_)
      if (!forest_.has_parent(label)) roots[signature(label)].push_back(label);
    std::vector<Labels> levels;
    for (auto& [hash, labels] : roots) levels.push_back(std::move(labels));
    // In the order in which the network first uses their parameters.
    std::sort(levels.begin(), levels.end(),
              [&](const Labels& a, const Labels& b) { return first_[a[0]] < first_[b[0]]; });
    for (const Labels& labels : levels) build_roots(labels);
    return std::move(result_);
  }

 private:
  void collect_classes() {
    const Label count = store_.count();
    marks_.assign(count + 1, 0);
    first_.assign(count + 1, 0);
    why_.assign(count + 1, {});
    std::vector<bool> relevant(count + 1, false);
    std::vector<std::uint8_t> facts(count + 1, 0);
    for (Label label = 1; label <= count; ++label) {
      const Label owner = store_.find(label);
      marks_[owner] += store_.marks(label);
      if (store_.distinction(label).cause > why_[owner].cause)
        why_[owner] = store_.distinction(label);
      if (flow_.is_activation(label)) facts[owner] |= kActivation;
      if (store_.has_cause(label, Cause::kOutput)) facts[owner] |= kIsOutput;
    }
    for (const ParameterAxis& axis : flow_.axes())
      for (Label label = axis.first; label < axis.first + axis.size; ++label) {
        const Label owner = store_.find(label);
        relevant[owner] = true;
        if (!axis.is_consumed) facts[owner] |= kProduced;
      }
    facts_ = std::move(facts);
    for (const LabelBlock& block : store_.blocks()) relevant[store_.find(block.label)] = true;
    for (Label label = 1; label <= count; ++label)
      if (relevant[label] && store_.find(label) == label) classes_.push_back(label);
    for (const Label label : classes_) first_[label] = first_use(label);
    tell_apart_given_up();
  }

  void tell_apart_given_up() {
    const auto learn = [&](Label label, const Distinction& why) {
      if (why_[label].cause < why.cause) why_[label] = why;
    };
    for (const auto& [block, given] : forest_.given_up()) {
      // Where it was told apart before, the reason for that is the reason for what it holds.
      Distinction why = why_[block];
      if (given.is_costly && why.cause < Cause::kOverlap)
        why = {Cause::kOverlap, forest_.made_by(block), forest_.made_by(given.against)};
      marks_[block] += hash_pair(1, given.mark);
      learn(block, why);
      for (const LeafSet& set : given.sets)
        for (const Label leaf : set.leaves) {
          marks_[leaf] += hash_pair(hash_pair(2, set.mark), given.mark);
          learn(leaf, why);
        }
    }
    for (const LeafSet& set : forest_.kept_sets())
      for (const Label leaf : set.leaves) marks_[leaf] += hash_pair(3, set.mark);
  }

  /// The smallest label of a class or of what it holds: parameters are numbered as they are used.
  Label first_use(Label label) {
    Label first = label;
    const Labels& children = forest_.children(label);
    if (!children.empty() && !stands_in_parameter(label)) first = first_use(children.front());
    for (const Label child : children) first = std::min(first, first_use(child));
    return first;
  }

  bool stands_in_parameter(Label label) const {
    // The representative is the smallest label, and parameters' labels come first.
    const auto& axes = flow_.axes();
    const auto after =
        std::upper_bound(axes.begin(), axes.end(), label,
                         [](Label l, const ParameterAxis& axis) { return l < axis.first; });
    if (after == axes.begin()) return false;
    const ParameterAxis& axis = *std::prev(after);
    return label < axis.first + axis.size;
  }

  std::uint64_t signature(Label label) {
    if (const auto it = signatures_.find(label); it != signatures_.end()) return it->second;
    std::uint64_t below = 0;
    for (const Label child : forest_.children(label)) below += hash_pair(2, signature(child));
    return signatures_[label] = hash_pair(hash_pair(3, marks_[label]), below);
  }

  /// What moves with one unit, and what moves inside it.
  struct Unit {
    Labels own;                             ///< in an order that is the same for equal units
    std::map<std::uint64_t, Labels> inner;  ///< by signature, each at least two
  };

  Unit unit_of(Label label) {
    Unit unit;
    unit.own.push_back(label);
    std::map<std::uint64_t, Labels> children;
    for (const Label child : forest_.children(label)) children[signature(child)].push_back(child);
    for (auto& [hash, labels] : children) {
      if (labels.size() > 1) {
        by_first_use(labels);
        unit.inner[hash] = labels;
        continue;
      }
      Unit inside = unit_of(labels.front());
      unit.own.insert(unit.own.end(), inside.own.begin(), inside.own.end());
      for (auto& [inner_hash, inner] : inside.inner) {
        Labels& all = unit.inner[hash_pair(hash, inner_hash)];
        all.insert(all.end(), inner.begin(), inner.end());
      }
    }
    return unit;
  }

  void by_first_use(Labels& labels) const {
    std::sort(labels.begin(), labels.end(),
              [&](Label a, Label b) { return first_[a] < first_[b]; });
  }

  static bool is_flat(const Unit& unit) { return unit.inner.empty(); }

  /// True when blocks inside this unit hold blocks themselves.
  bool is_deep(const Unit& unit) {
    return std::any_of(unit.inner.begin(), unit.inner.end(),
                       [&](const auto& entry) { return !is_flat(unit_of(entry.second.front())); });
  }

  void build_roots(Labels labels) {
    by_first_use(labels);
    std::vector<Unit> units;
    for (const Label label : labels) units.push_back(unit_of(label));
    if (units.size() == 1 || is_deep(units.front())) {
      // What cannot move as a whole can still move inside.
      for (const Unit& unit : units) {
        for (const Label own : unit.own) pin(own);
        for (const auto& [hash, inner] : unit.inner) build_roots(inner);
      }
      return;
    }
    UnitPartition::Group group;
    for (const Unit& unit : units) group.units.push_back(unit.own);
    const bool stands_alone = std::any_of(group.units[0].begin(), group.units[0].end(),
                                          [&](Label l) { return in_axes(l); });
    std::vector<UnitPartition::Group> inside;
    for (const auto& [hash, first] : units.front().inner) {
      UnitPartition::Group child;
      child.blocks = static_cast<std::int64_t>(units.size());
      for (const Unit& unit : units)
        for (const Label label : unit.inner.at(hash)) child.units.push_back(unit_of(label).own);
      inside.push_back(std::move(child));
    }
    std::sort(inside.begin(), inside.end(), [&](const auto& a, const auto& b) {
      return first_[a.units[0][0]] < first_[b.units[0][0]];
    });
    if (!stands_alone && inside.empty()) return;
    std::int64_t within = -1;
    if (stands_alone || inside.size() > 1) {
      within = static_cast<std::int64_t>(result_.groups.size());
      add(std::move(group));
    }
    for (UnitPartition::Group& child : inside) {
      child.within = within;
      add(std::move(child));
    }
  }

  bool in_axes(Label label) {
    if (in_axes_.empty()) in_axes_ = labels_in_parameters(flow_, store_);
    return in_axes_[label];
  }

  void add(UnitPartition::Group group) {
    for (const Labels& unit : group.units)
      for (std::size_t i = 0; i < unit.size(); ++i) {
        if (is_hidden(unit[i])) ++group.hidden;
        if (is_hidden(unit[i]) && i > 0) result_.rigid.emplace_back(unit[i], why_[unit[i]]);
        count_output(unit[i]);
      }
    result_.free_units += group.hidden;
    result_.groups.push_back(std::move(group));
  }

  void pin(Label label) {
    count_output(label);
    if (!is_hidden(label)) return;
    result_.pinned.emplace_back(label, why_[label]);
  }

  void count_output(Label label) {
    if ((facts_[label] & kIsOutput) != 0 && (facts_[label] & kProduced) != 0)
      ++result_.output_units;
  }

  /// Produced by a parameter, seen by a later layer, and no output.
  bool is_hidden(Label label) const { return facts_[label] == (kActivation | kProduced); }

  static constexpr std::uint8_t kActivation = 1, kProduced = 2, kIsOutput = 4;

  const UnitFlow& flow_;
  LabelStore& store_;
  BlockForest forest_;
  Labels classes_;
  std::vector<std::uint64_t> marks_;  // by representative
  std::vector<std::uint8_t> facts_;
  std::vector<Label> first_;
  std::vector<Distinction> why_;  // the weightiest of a class's labels
  std::vector<bool> in_axes_;
  std::map<Label, std::uint64_t> signatures_;
  UnitPartition result_;
};

}  // namespace

UnitPartition partition_units(const UnitFlow& flow, LabelStore& store) {
  return Partitioner(flow, store).run();
}

}  // namespace weightsmith
