#include "weightsmith/report/contour_plot.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "weightsmith/core/error.h"
#include "weightsmith/report/svg.h"

namespace weightsmith {
namespace {

constexpr double kPlotSide = 320;
constexpr double kLeft = 62;
constexpr double kRight = 86;  // the colour bar and its labels
constexpr double kTop = 42;
constexpr double kBottom = 52;

struct Corner {
  SvgPoint at;
  double value;
};

/// The part of a convex polygon where the value, linear between corners, is at least `level`.
std::vector<SvgPoint> part_above(const std::array<Corner, 3>& triangle, double level) {
  std::vector<SvgPoint> part;
  for (std::size_t i = 0; i < 3; ++i) {
    const Corner& a = triangle[i];
    const Corner& b = triangle[(i + 1) % 3];
    if (a.value >= level) part.push_back(a.at);
    if ((a.value >= level) == (b.value >= level)) continue;
    const double t = (level - a.value) / (b.value - a.value);
    part.push_back({a.at.x + t * (b.at.x - a.at.x), a.at.y + t * (b.at.y - a.at.y)});
  }
  return part;
}

class Panel {
 public:
  Panel(SvgCanvas& canvas, const ContourPlot& plot, double left) : canvas_(canvas), plot_(plot) {
    WS_CHECK(plot.x.size() >= 2 && plot.y.size() >= 2 && plot.levels >= 1);
    WS_CHECK(plot.values.size() == plot.x.size() * plot.y.size());
    x_ = {plot.x.front(), plot.x.back(), left + kLeft, left + kLeft + kPlotSide};
    y_ = {plot.y.front(), plot.y.back(), kTop + kPlotSide, kTop};
    for (const double v : plot.values) {
      if (!std::isfinite(v)) continue;
      low_ = std::min(low_, v);
      high_ = std::max(high_, v);
    }
    if (low_ > high_) low_ = high_ = 0;
    if (!(high_ > low_)) high_ = low_ + 1e-6;
  }

  void draw() {
    draw_bands();
    draw_axes();
    draw_bar();
    for (const ContourMark& mark : plot_.marks) {
      const SvgPoint at{x_(mark.x), y_(mark.y)};
      canvas_.circle(at, 4.5, "#ffffff", "#000000");
      const bool right = at.x < (x_.from + x_.to) / 2;
      canvas_.text({at.x + (right ? 8 : -8), at.y + 4}, mark.name,
                   {right ? SvgAnchor::kStart : SvgAnchor::kEnd, 12, true, false, true});
    }
  }

 private:
  double level(int k) const { return low_ + (high_ - low_) * k / plot_.levels; }
  std::string colour(int k) const {
    return ramp_colour(plot_.levels == 1 ? 0.5 : static_cast<double>(k) / (plot_.levels - 1));
  }
  Corner corner(std::size_t column, std::size_t row) const {
    return {{x_(plot_.x[column]), y_(plot_.y[row])}, plot_.values[row * plot_.x.size() + column]};
  }

  std::vector<std::array<Corner, 3>> triangles() const {
    std::vector<std::array<Corner, 3>> all;
    for (std::size_t r = 0; r + 1 < plot_.y.size(); ++r) {
      for (std::size_t c = 0; c + 1 < plot_.x.size(); ++c) {
        const std::array<Corner, 4> corners{corner(c, r), corner(c + 1, r), corner(c + 1, r + 1),
                                            corner(c, r + 1)};
        Corner middle{{0, 0}, 0};
        for (const Corner& k : corners) {
          middle.at.x += k.at.x / 4;
          middle.at.y += k.at.y / 4;
          middle.value += k.value / 4;
        }
        if (!std::isfinite(middle.value)) continue;
        for (std::size_t i = 0; i < 4; ++i)
          all.push_back({corners[i], corners[(i + 1) % 4], middle});
      }
    }
    return all;
  }

  void draw_bands() {
    const auto pieces = triangles();
    // From low to high, each band over the ones below it: no gaps where they meet.
    for (int k = 0; k < plot_.levels; ++k) {
      std::vector<std::vector<SvgPoint>> shapes;
      for (const auto& triangle : pieces) {
        auto part = part_above(triangle, level(k));
        if (part.size() >= 3) shapes.push_back(std::move(part));
      }
      if (!shapes.empty()) canvas_.polygons(shapes, colour(k));
    }
  }

  void draw_axes() {
    const AxisMarks across = axis_marks(x_.low, x_.high, 6);
    for (std::size_t i = 0; i < across.values.size(); ++i) {
      canvas_.line({x_(across.values[i]), y_.from}, {x_(across.values[i]), y_.from + 4}, "#444444",
                   1);
      canvas_.text({x_(across.values[i]), y_.from + 17}, across.labels[i], {SvgAnchor::kMiddle});
    }
    const AxisMarks up = axis_marks(y_.low, y_.high, 6);
    for (std::size_t i = 0; i < up.values.size(); ++i) {
      canvas_.line({x_.from - 4, y_(up.values[i])}, {x_.from, y_(up.values[i])}, "#444444", 1);
      canvas_.text({x_.from - 7, y_(up.values[i]) + 4}, up.labels[i], {SvgAnchor::kEnd});
    }
    canvas_.rectangle({x_.from, y_.to}, x_.to - x_.from, y_.from - y_.to, "none", "#444444");
    const double middle = (x_.from + x_.to) / 2;
    canvas_.text({middle, y_.to - 14}, plot_.title, kTitleText);
    canvas_.text({middle, y_.from + 38}, plot_.x_label, kAxisText);
    canvas_.text({x_.from - 44, (y_.from + y_.to) / 2}, plot_.y_label, kUpAxisText);
  }

  void draw_bar() {
    const double left = x_.to + 14;
    const AxisScale scale{low_, high_, y_.from, y_.to};
    for (int k = 0; k < plot_.levels; ++k)
      canvas_.rectangle({left, scale(level(k + 1))}, 12, scale(level(k)) - scale(level(k + 1)),
                        colour(k), "none");
    const AxisMarks marks = axis_marks(low_, high_, 7);
    for (std::size_t i = 0; i < marks.values.size(); ++i)
      canvas_.text({left + 17, scale(marks.values[i]) + 4}, marks.labels[i], {});
    canvas_.text({left + 6, y_.to - 14}, plot_.value_label, {SvgAnchor::kMiddle});
  }

  SvgCanvas& canvas_;
  const ContourPlot& plot_;
  AxisScale x_;
  AxisScale y_;
  double low_ = std::numeric_limits<double>::infinity();
  double high_ = -std::numeric_limits<double>::infinity();
};

}  // namespace

std::string contour_plot_svg(const std::vector<ContourPlot>& panels) {
  WS_CHECK(!panels.empty());
  const double width = kLeft + kPlotSide + kRight;
  SvgCanvas canvas(width * static_cast<double>(panels.size()), kTop + kPlotSide + kBottom);
  for (std::size_t i = 0; i < panels.size(); ++i)
    Panel(canvas, panels[i], width * static_cast<double>(i)).draw();
  return canvas.document(panels.front().title);
}

}  // namespace weightsmith
