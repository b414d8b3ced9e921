#pragma once

#include <string>
#include <vector>

namespace weightsmith {

/// A named place on a contour plot.
struct ContourMark {
  std::string name;
  double x = 0;
  double y = 0;
};

/// A function of two variables on a grid.
struct ContourPlot {
  std::string title;
  std::string x_label;
  std::string y_label;
  std::string value_label;  ///< of the colour bar
  std::vector<double> x;    ///< ascending, at least 2
  std::vector<double> y;    ///< likewise
  std::vector<double>
      values;  ///< (y, x), row by row; cells with a value that is not finite are left out
  std::vector<ContourMark> marks;
  int levels = 12;
};

/// Panels side by side, as an SVG document: filled bands between levels of equal distance, a
/// colour bar and the marks. Inside a cell of the grid the function is taken as linear on each of
/// four triangles that meet in the cell's middle. Dark is low and bright is high, in order of
/// lightness, so that it survives a grey printout. The same panels give the same bytes.
std::string contour_plot_svg(const std::vector<ContourPlot>& panels);

}  // namespace weightsmith
