#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "weightsmith/graph/unit_flow.h"

namespace weightsmith {

/// Labels, united and sorted into sets that can be permuted without changing the network.
struct UnitPartition {
  /// Units that can take each other's place. A unit is a set of labels that move with it: its own,
  /// and those of a block that are told apart inside it.
  struct Group {
    std::vector<std::vector<Label>> units;  ///< block after block; representatives (find)
    std::int64_t blocks = 1;
    /// The group whose units are the blocks, or -1: then the blocks can be permuted too, freely.
    std::int64_t within = -1;
    std::int64_t hidden = 0;  ///< hidden units among the labels of its units
  };
  std::vector<Group> groups;  ///< a group stands after the one it is within

  std::int64_t free_units = 0;    ///< hidden units that some permutation moves
  std::int64_t output_units = 0;  ///< that are outputs of the network
  /// Hidden units that nothing can take the place of, and why.
  std::vector<std::pair<Label, Distinction>> pinned;
  /// Units' labels that move only together with the first label of their unit, and why.
  std::vector<std::pair<Label, Distinction>> rigid;
};

/// Partitions what `flow` saw. Blocks of equal content are one; nested blocks make a forest. Of
/// blocks that cross (a head's units, and a unit of all heads where one norm or rotary position
/// serves them all) some are given up: they keep their place in the smallest block around them, and
/// so does what they hold. That costs nothing where they are told apart anyhow. Two labels (or
/// blocks) can be exchanged when their marks are equal, the content of blocks included: colour
/// refinement on a forest, which is exact there. More than two levels of blocks are reduced to two
/// by pinning the outermost. Unites labels in `store`, which must be the flow's.
UnitPartition partition_units(const UnitFlow& flow, LabelStore& store);

}  // namespace weightsmith
