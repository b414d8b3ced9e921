#include "weightsmith/graph/unit_partition.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "weightsmith/core/error.h"
#include "weightsmith/core/rng.h"

namespace weightsmith {
namespace {

using Labels = std::vector<Label>;

std::uint64_t hash_pair(std::uint64_t a, std::uint64_t b) {
  return mix_bits(mix_bits(a) + 0x9e3779b97f4a7c15ULL * (b + 1));
}

/// Blocks with what they hold, everything by representative.
class BlockForest {
 public:
  explicit BlockForest(LabelStore& store) : store_(store), blocks_(store.blocks()) {
    // What turns out to be one block may hold others that thereby become one.
    do {
      unite_equal_blocks();
      collect();
    } while (!nest());
  }

  const Labels& children(Label label) const {
    static const Labels none;
    const auto it = children_.find(label);
    return it == children_.end() ? none : it->second;
  }
  bool has_parent(Label label) const { return has_parent_.contains(label); }
  /// Blocks that were given up, each with the sets of leaves that it stands for: nothing may leave
  /// one of them.
  const std::map<Label, std::vector<Labels>>& given_up() const { return given_up_; }

 private:
  /// Leaves one block of each content, with representatives of labels only.
  void unite_equal_blocks() {
    for (bool changed = true; changed;) {
      changed = false;
      std::map<Labels, Label> seen;
      for (const auto& [block, members] : blocks_) {
        Labels content = representatives(members);
        if (content.size() == 1) {
          changed |= store_.find(block) != content.front();
          store_.unite(block, content.front());
          continue;
        }
        const auto [it, is_new] = seen.emplace(std::move(content), block);
        if (is_new || store_.find(it->second) == store_.find(block)) continue;
        store_.unite(it->second, block);
        changed = true;
      }
      blocks_.clear();
      for (auto& [content, block] : seen) blocks_.emplace_back(block, content);
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
    for (const auto& [block, members] : blocks_) {
      Labels& content = content_[store_.find(block)];
      content.insert(content.end(), members.begin(), members.end());
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
    for (const auto& [block, members] : blocks_) {
      const Label label = store_.find(block);
      Labels set;
      for (const Label m : representatives(members)) {
        const auto below = leaves_.find(m);
        if (below == leaves_.end() || m == label)
          set.push_back(m);
        else
          set.insert(set.end(), below->second.begin(), below->second.end());
      }
      sets_[label].push_back(representatives(set));
    }
  }

  /// Whether a block stands for several sets (its units in one layer and in another one) of which
  /// two overlap without being the same.
  bool overlaps_itself(Label label) const {
    std::set<Label> seen;
    std::set<Labels> sets(sets_.at(label).begin(), sets_.at(label).end());
    for (const Labels& set : sets)
      for (const Label leaf : set)
        if (!seen.insert(leaf).second) return true;
    return false;
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
    for (const auto& [label, sets] : sets_)
      if (overlaps_itself(label)) given_up_[label] = sets;
    // Blocks that were compared at one leaf need not be compared at the next.
    std::set<std::pair<Label, Label>> compared;
    bool united = false;
    for (bool changed = true; changed;) {
      changed = false;
      blocks_of.clear();
      compared.clear();
      for (const auto& [label, leaves] : leaves_)
        if (!given_up_.contains(label))
          for (const Label leaf : leaves) blocks_of[leaf].push_back(label);
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
            // Of sets that cross, the smaller ones stay where they are.
            given_up_[blocks[i]] = sets_.at(blocks[i]);
            changed = true;
          }
        }
      }
    }
    if (united) return false;
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
    return true;
  }

  LabelStore& store_;
  std::vector<std::pair<Label, Labels>> blocks_;  // and what they hold
  std::map<Label, Labels> content_;
  std::map<Label, Labels> leaves_;
  std::map<Label, Labels> children_;
  std::set<Label> has_parent_;
  std::map<Label, std::vector<Labels>> sets_;  // of leaves; together a block's leaves
  std::map<Label, std::vector<Labels>> given_up_;
};

class Partitioner {
 public:
  Partitioner(const UnitFlow& flow, LabelStore& store)
      : flow_(flow), store_(store), forest_(store) {
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
    for (const auto& [block, members] : store_.blocks()) relevant[store_.find(block)] = true;
    for (Label label = 1; label <= count; ++label)
      if (relevant[label] && store_.find(label) == label) classes_.push_back(label);
    for (const Label label : classes_) first_[label] = first_use(label);
    const auto stay = [&](Label label, std::uint64_t mark) {
      marks_[label] += mark;
      if (why_[label].cause < Cause::kOverlap) why_[label] = {Cause::kOverlap, 0};
    };
    for (const auto& [block, sets] : forest_.given_up()) {
      stay(block, hash_pair(1, ++told_apart_));
      for (const Labels& set : sets) {
        const std::uint64_t mark = hash_pair(1, ++told_apart_);
        for (const Label leaf : set) stay(leaf, mark);
      }
    }
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
    if (in_axes_.empty()) {
      in_axes_.assign(store_.count() + 1, false);
      for (const ParameterAxis& axis : flow_.axes())
        for (Label l = axis.first; l < axis.first + axis.size; ++l) in_axes_[store_.find(l)] = true;
    }
    return in_axes_[label];
  }

  void add(UnitPartition::Group group) {
    for (const Labels& unit : group.units)
      for (std::size_t i = 0; i < unit.size(); ++i) {
        if (is_hidden(unit[i])) ++result_.free_units;
        if (is_hidden(unit[i]) && i > 0) result_.rigid.emplace_back(unit[i], why_[unit[i]]);
        count_output(unit[i]);
      }
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
  std::uint64_t told_apart_ = 0;
  UnitPartition result_;
};

}  // namespace

UnitPartition partition_units(const UnitFlow& flow, LabelStore& store) {
  return Partitioner(flow, store).run();
}

}  // namespace weightsmith
