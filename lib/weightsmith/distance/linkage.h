#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace weightsmith {

/// A step of hierarchical clustering: clusters `left` and `right` become cluster n + step (leaves
/// are 0 … n − 1) at `height`, with `size` leaves.
struct ClusterMerge {
  std::int64_t left = 0, right = 0;
  double height = 0;
  std::int64_t size = 0;
};

/// Ward's clustering of points (rows) by Euclidean distance (Ward, JASA 1963), by the recurrence of
/// Lance and Williams; heights as SciPy has them. n − 1 merges, ascending. O(n³).
std::vector<ClusterMerge> ward_linkage(const std::vector<std::vector<double>>& points);

/// The same tree with children turned so that the sum of distances between neighbouring leaves is
/// the least possible (Bar-Joseph, Gifford, Jaakkola, "Fast optimal leaf ordering for hierarchical
/// clustering", Bioinformatics 2001). O(n⁴) at worst; n² numbers of memory.
std::vector<ClusterMerge> optimally_ordered(std::vector<ClusterMerge> merges,
                                            const std::vector<std::vector<double>>& points);

/// Leaves from left to right.
std::vector<std::int64_t> leaves_of(const std::vector<ClusterMerge>& merges);

/// Newick, with branch lengths that end at the merges' heights; names are quoted.
std::string newick(const std::vector<ClusterMerge>& merges, const std::vector<std::string>& names);

}  // namespace weightsmith
