#include "weightsmith/report/line_plot.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "weightsmith/core/error.h"
#include "weightsmith/report/svg.h"

namespace weightsmith {
namespace {

constexpr std::array<const char*, 7> kColours{"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                              "#e69f00", "#56b4e9", "#000000"};
constexpr double kWidth = 760;
constexpr double kPanelHeight = 320;
constexpr double kLeft = 70;
constexpr double kLegend = 190;  // beside the curves
constexpr double kTop = 40;
constexpr double kBottom = 50;

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();

  void include(double value) {
    if (!std::isfinite(value)) return;
    low = std::min(low, value);
    high = std::max(high, value);
  }
  /// The range with `share` of its length added at both ends; never empty.
  Range widened(double share) const {
    if (low > high) return {0, 1};
    double margin = (high - low) * share;
    if (!(high > low)) margin = std::max(std::abs(low) * 0.05, 1e-6);
    return {low - margin, high + margin};
  }
};

class Panel {
 public:
  Panel(SvgCanvas& canvas, const LinePlot& plot, double top) : canvas_(canvas), plot_(plot) {
    Range x;
    Range y;
    for (const LineSeries& s : plot.series) {
      WS_CHECK(s.x.size() == s.y.size());
      WS_CHECK(s.low.size() == s.high.size() && (s.low.empty() || s.low.size() == s.x.size()));
      for (std::size_t i = 0; i < s.x.size(); ++i) {
        if (!std::isfinite(s.y[i])) continue;
        x.include(s.x[i]);
        y.include(s.y[i]);
        if (s.low.empty()) continue;
        y.include(s.low[i]);
        y.include(s.high[i]);
      }
    }
    x = x.widened(0.02);
    y = y.widened(0.06);
    x_ = {x.low, x.high, kLeft, kWidth - kLegend};
    y_ = {y.low, y.high, top + kPanelHeight - kBottom, top + kTop};
  }

  void draw() {
    draw_axes();
    for (std::size_t s = 0; s < plot_.series.size(); ++s)
      draw_series(plot_.series[s], kColours[s % kColours.size()]);
    draw_mark();
    draw_legend();
  }

 private:
  void draw_axes() {
    const AxisMarks across = axis_marks(x_.low, x_.high, 11);
    for (std::size_t i = 0; i < across.values.size(); ++i) {
      const double at = x_(across.values[i]);
      canvas_.line({at, y_.from}, {at, y_.to}, "#e6e6e6", 1);
      canvas_.text({at, y_.from + 17}, across.labels[i], {SvgAnchor::kMiddle});
    }
    const AxisMarks up = axis_marks(y_.low, y_.high, 7);
    for (std::size_t i = 0; i < up.values.size(); ++i) {
      const double at = y_(up.values[i]);
      canvas_.line({x_.from, at}, {x_.to, at}, "#e6e6e6", 1);
      canvas_.text({x_.from - 7, at + 4}, up.labels[i], {SvgAnchor::kEnd});
    }
    canvas_.rectangle({x_.from, y_.to}, x_.to - x_.from, y_.from - y_.to, "none", "#888888");
    const double middle = (x_.from + x_.to) / 2;
    canvas_.text({middle, y_.to - 14}, plot_.title, kTitleText);
    canvas_.text({middle, y_.from + 37}, plot_.x_label, kAxisText);
    canvas_.text({x_.from - 50, (y_.from + y_.to) / 2}, plot_.y_label, kUpAxisText);
  }

  void draw_series(const LineSeries& series, const char* colour) {
    std::size_t begin = 0;
    while (begin < series.x.size()) {
      if (!std::isfinite(series.y[begin])) {
        ++begin;
        continue;
      }
      std::size_t end = begin;
      while (end < series.x.size() && std::isfinite(series.y[end])) ++end;
      draw_stretch(series, begin, end, colour);
      begin = end;
    }
  }

  /// Points begin to end - 1, all of them finite.
  void draw_stretch(const LineSeries& series, std::size_t begin, std::size_t end,
                    const char* colour) {
    std::vector<SvgPoint> curve;
    for (std::size_t i = begin; i < end; ++i) curve.push_back({x_(series.x[i]), y_(series.y[i])});
    if (!series.low.empty() && curve.size() > 1) {
      std::vector<SvgPoint> band;
      for (std::size_t i = begin; i < end; ++i)
        band.push_back({x_(series.x[i]), y_(series.high[i])});
      for (std::size_t i = end; i-- > begin;) band.push_back({x_(series.x[i]), y_(series.low[i])});
      canvas_.polygon(band, colour, 0.15);
    }
    if (curve.size() > 1) canvas_.polyline(curve, colour, 2);
    // Points show where it was measured; where they would touch, the curve says enough.
    if (curve.size() * 6 > static_cast<std::size_t>(x_.to - x_.from)) return;
    for (const SvgPoint& p : curve) canvas_.circle(p, 3, colour, "#ffffff");
  }

  void draw_mark() {
    if (!plot_.mark || *plot_.mark < x_.low || *plot_.mark > x_.high) return;
    const double at = x_(*plot_.mark);
    canvas_.line({at, y_.from}, {at, y_.to}, "#444444", 1.2, /*dashed=*/true);
    const bool right = at < (x_.from + x_.to) / 2;
    canvas_.text({at + (right ? 5 : -5), y_.to + 14}, plot_.mark_label,
                 {right ? SvgAnchor::kStart : SvgAnchor::kEnd});
  }

  void draw_legend() {
    double at = y_.to + 8;
    for (std::size_t s = 0; s < plot_.series.size(); ++s) {
      const char* colour = kColours[s % kColours.size()];
      canvas_.line({x_.to + 14, at}, {x_.to + 36, at}, colour, 2);
      canvas_.circle({x_.to + 25, at}, 3, colour, "#ffffff");
      canvas_.text({x_.to + 42, at + 4}, plot_.series[s].name, {});
      at += 18;
    }
  }

  SvgCanvas& canvas_;
  const LinePlot& plot_;
  AxisScale x_;
  AxisScale y_;
};

}  // namespace

std::string line_plot_svg(const std::vector<LinePlot>& panels) {
  WS_CHECK(!panels.empty());
  SvgCanvas canvas(kWidth, kPanelHeight * static_cast<double>(panels.size()));
  for (std::size_t i = 0; i < panels.size(); ++i)
    Panel(canvas, panels[i], kPanelHeight * static_cast<double>(i)).draw();
  return canvas.document(panels.front().title);
}

}  // namespace weightsmith
