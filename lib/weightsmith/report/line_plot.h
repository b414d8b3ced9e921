#pragma once

#include <optional>
#include <string>
#include <vector>

namespace weightsmith {

/// A curve: one y an x. Points whose y is not finite are left out, and the curve breaks there.
struct LineSeries {
  std::string name;  ///< in the legend
  std::vector<double> x;
  std::vector<double> y;
  std::vector<double> low;   ///< of a band around the curve, one an x; empty: no band
  std::vector<double> high;  ///< likewise
};

/// Curves over one pair of axes.
struct LinePlot {
  std::string title;
  std::string x_label;
  std::string y_label;
  std::vector<LineSeries> series;
  std::optional<double> mark;  ///< an x that is marked by a dashed vertical line
  std::string mark_label;
};

/// Panels one below the other, as an SVG document: axes with round marks, a grid, points, bands and
/// a legend that stands beside the curves and never on them. Ranges fit the data. Colours are those
/// of Okabe and Ito ("Color Universal Design", 2008), told apart with any colour vision. A panel
/// without a finite point shows empty axes. The same panels give the same bytes.
std::string line_plot_svg(const std::vector<LinePlot>& panels);

}  // namespace weightsmith
