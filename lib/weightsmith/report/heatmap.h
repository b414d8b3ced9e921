#pragma once

#include <string>
#include <vector>

#include "weightsmith/distance/linkage.h"

namespace weightsmith {

/// A square table of numbers as a picture.
struct Heatmap {
  std::string title;
  std::string value_label;                  ///< of the colour bar
  std::vector<std::string> names;           ///< of rows and columns alike
  std::vector<std::vector<double>> values;  ///< cells that are not finite stay white
  std::vector<ClusterMerge> tree;           ///< of the names; empty: none
};

/// An SVG document: one coloured square a cell, rows and columns in the order of the tree's leaves,
/// and the tree beside them, its joints at their heights. Up to 24 names the numbers stand in the
/// cells. The same input gives the same bytes.
std::string heatmap_svg(const Heatmap& map);

}  // namespace weightsmith
