#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <regex>

#include "weightsmith/report/contour_plot.h"
#include "weightsmith/report/heatmap.h"
#include "weightsmith/report/line_plot.h"
#include "weightsmith/report/svg.h"

namespace weightsmith {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t found = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1))
    ++found;
  return found;
}

/// Every element is closed and none is left open: enough of XML for what we write.
void check_well_formed(const std::string& svg) {
  std::vector<std::string> open;
  const std::regex tag("<(/?)([a-zA-Z]+)[^<>]*?(/?)>");
  for (std::sregex_iterator it(svg.begin(), svg.end(), tag), end; it != end; ++it) {
    const std::smatch& match = *it;
    if (match[1] == "/") {
      REQUIRE(!open.empty());
      CHECK(open.back() == match[2]);
      open.pop_back();
    } else if (match[3] != "/") {
      open.push_back(match[2]);
    }
  }
  CHECK(open.empty());
  CHECK(svg.find("nan") == std::string::npos);
  CHECK(svg.find("inf") == std::string::npos);
}

TEST_CASE("axis marks are round and within the range", "[report]") {
  CHECK(axis_marks(0, 1, 6).labels ==
        std::vector<std::string>{"0", "0.2", "0.4", "0.6", "0.8", "1.0"});
  CHECK(axis_marks(-130, 270, 5).values == std::vector<double>{-100, 0, 100, 200});
  CHECK(axis_marks(0.713, 0.728, 5).labels == std::vector<std::string>{"0.715", "0.720", "0.725"});
  CHECK(axis_marks(2, 2, 5).values == std::vector<double>{2});
  CHECK(axis_marks(0, kNan, 5).values.empty());
  for (const double high : {1e-9, 3e-3, 1.0, 7e5, 2e12}) {
    const AxisMarks marks = axis_marks(-0.3 * high, high, 7);
    CAPTURE(high, marks.values.size());
    CHECK(marks.values.size() >= 3);
    CHECK(marks.values.size() <= 7);
    for (const double v : marks.values) CHECK((v >= -0.300001 * high && v <= 1.000001 * high));
  }
}

TEST_CASE("a line plot shows its curves, names, band and mark", "[report]") {
  LinePlot plot;
  plot.title = "Accuracy & \"loss\" <by> balance";
  plot.x_label = "balance";
  plot.y_label = "accuracy";
  plot.series = {{"joint", {0, 0.5, 1}, {0.2, 0.8, 0.4}, {0.1, 0.7, 0.3}, {0.3, 0.9, 0.5}},
                 {"broken", {0, 0.25, 0.5, 0.75, 1}, {0.1, 0.2, kNan, 0.3, 0.4}, {}, {}}};
  plot.mark = 0.5;
  plot.mark_label = "chosen";
  const std::string svg = line_plot_svg({plot});
  check_well_formed(svg);
  CHECK_THAT(svg, Catch::Contains("Accuracy &amp; &quot;loss&quot; &lt;by&gt; balance"));
  CHECK_THAT(svg, Catch::Contains(">joint</text>") && Catch::Contains(">chosen</text>"));
  CHECK(count(svg, "<polyline") == 3);        // the second curve in two stretches
  CHECK(count(svg, "<polygon") == 1);         // one band
  CHECK(count(svg, "<circle") == 3 + 4 + 2);  // seven points, two in the legend
  CHECK(svg == line_plot_svg({plot}));
}

TEST_CASE("higher values stand higher and later ones further right", "[report]") {
  LinePlot plot;
  plot.series = {{"", {0, 1, 2}, {5, 7, 6}, {}, {}}};
  const std::string svg = line_plot_svg({plot});
  std::smatch match;
  REQUIRE(std::regex_search(
      svg, match,
      std::regex(
          "<polyline points=\"([0-9.]+),([0-9.]+) ([0-9.]+),([0-9.]+) ([0-9.]+),([0-9.]+)\"")));
  const auto at = [&](int i) { return std::stod(match[i]); };
  CHECK((at(1) < at(3) && at(3) < at(5)));
  CHECK((at(4) < at(6) && at(6) < at(2)));
}

TEST_CASE("plots without data, or with one point, are still drawings", "[report]") {
  LinePlot plot;
  check_well_formed(line_plot_svg({plot}));
  plot.series = {{"one", {0.5}, {0.7}, {}, {}}, {"none", {0.1}, {kNan}, {}, {}}};
  check_well_formed(line_plot_svg({plot, plot}));
}

TEST_CASE("a contour plot fills each cell once a band and leaves gaps where values are missing",
          "[report]") {
  ContourPlot plot;
  plot.x = {0, 1, 2};
  plot.y = {0, 1, 2};
  plot.values = {0, 1, 2, 1, 2, 3, 2, 3, 4};
  plot.marks = {{"a<b", 1, 1}};
  plot.levels = 4;
  const std::string svg = contour_plot_svg({plot});
  check_well_formed(svg);
  CHECK_THAT(svg, Catch::Contains("a&lt;b"));
  CHECK(count(svg, "<path") == 4);
  // The lowest band covers all four triangles of all four cells.
  const std::string lowest =
      svg.substr(svg.find("<path"), svg.find("/>", svg.find("<path")) - svg.find("<path"));
  CHECK(count(lowest, "M") == 16);
  plot.values[0] = kNan;
  const std::string gap = contour_plot_svg({plot});
  check_well_formed(gap);
  CHECK(count(gap.substr(gap.find("<path"), gap.find("/>", gap.find("<path")) - gap.find("<path")),
              "M") == 12);
  plot.values.assign(9, 1.0);  // flat
  check_well_formed(contour_plot_svg({plot, plot}));
}

}  // namespace
TEST_CASE("a heatmap has a cell a number, in the order of its tree", "[report]") {
  Heatmap map{"distances", "cosine", {"a", "b<c", "d"}, {{0, 3, 1}, {3, 0, 2}, {1, 2, 0}}, {}};
  const std::string plain = heatmap_svg(map);
  check_well_formed(plain);
  CHECK(plain == heatmap_svg(map));
  CHECK(count(plain, ">3.00</text>") == 2);
  CHECK(plain.find("b<c") == std::string::npos);
  CHECK(count(plain, "<polyline") == 0);

  // a and d joined first, then b.
  map.tree = {{0, 2, 1.0, 2}, {1, 3, 3.0, 3}};
  const std::string with_tree = heatmap_svg(map);
  check_well_formed(with_tree);
  CHECK(count(with_tree, "<polyline") == 2);
  CHECK(with_tree.find(">b&lt;c<") < with_tree.find(">a<"));
  CHECK(with_tree.find(">a<") < with_tree.find(">d<"));

  map.values[0][1] = kNan;
  const std::string hole = heatmap_svg(map);
  check_well_formed(hole);
  CHECK(count(hole, ">3.00</text>") == 1);
}

}  // namespace weightsmith
