#include "weightsmith/report/heatmap.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "weightsmith/core/error.h"
#include "weightsmith/report/svg.h"

namespace weightsmith {
namespace {

constexpr double kTitle = 36;
constexpr double kTree = 90;  // width of the dendrogram
constexpr double kBar = 96;   // the colour bar and its labels
constexpr double kMargin = 12;
constexpr double kLetter = 6.2;  // of a name, on average
constexpr std::size_t kMostWithNumbers = 24;

class Drawing {
 public:
  explicit Drawing(const Heatmap& map)
      : map_(map),
        n_(map.names.size()),
        cell_(std::clamp(480.0 / static_cast<double>(std::max<std::size_t>(n_, 1)), 6.0, 40.0)),
        side_(cell_ * static_cast<double>(n_)),
        tree_(map.tree.empty() ? 0 : kTree) {
    std::size_t longest = 0;
    for (const std::string& name : map.names) longest = std::max(longest, name.size());
    names_ = kLetter * static_cast<double>(longest) + 10;
    order_.resize(n_);
    std::iota(order_.begin(), order_.end(), 0);
    if (!map.tree.empty()) order_ = leaves_of(map.tree);
    WS_CHECK(order_.size() == n_ && map.values.size() == n_);
    left_ = kMargin + tree_;
    top_ = kTitle;
    low_ = std::numeric_limits<double>::infinity();
    high_ = -low_;
    for (const auto& row : map.values)
      for (const double value : row)
        if (std::isfinite(value)) {
          low_ = std::min(low_, value);
          high_ = std::max(high_, value);
        }
  }

  std::string document() {
    SvgCanvas canvas(left_ + side_ + names_ + kBar, top_ + side_ + names_ + kMargin);
    canvas.text({left_ + side_ / 2, 22}, map_.title, kTitleText);
    cells(canvas);
    labels(canvas);
    if (!map_.tree.empty()) dendrogram(canvas);
    if (low_ <= high_) colour_bar(canvas);
    return canvas.document(map_.title);
  }

 private:
  double share(double value) const { return high_ > low_ ? (value - low_) / (high_ - low_) : 0.5; }

  void cells(SvgCanvas& canvas) const {
    for (std::size_t r = 0; r < n_; ++r)
      for (std::size_t c = 0; c < n_; ++c) {
        const double value = map_.values[order_[r]][order_[c]];
        if (!std::isfinite(value)) continue;
        const SvgPoint corner{left_ + cell_ * static_cast<double>(c),
                              top_ + cell_ * static_cast<double>(r)};
        canvas.rectangle(corner, cell_, cell_, ramp_colour(share(value)), "none");
        if (n_ > kMostWithNumbers || cell_ < 20) continue;
        const std::string number = fmt::format("{:.2f}", value);
        canvas.text({corner.x + cell_ / 2, corner.y + cell_ / 2 + 3},
                    number == "-0.00" ? "0.00" : number,
                    {SvgAnchor::kMiddle, 8, false, false, true});
      }
  }

  void labels(SvgCanvas& canvas) const {
    const double size = std::min(11.0, cell_);
    for (std::size_t i = 0; i < n_; ++i) {
      const double middle = cell_ * (static_cast<double>(i) + 0.5) + size / 3;
      const std::string& name = map_.names[order_[i]];
      canvas.text({left_ + side_ + 5, top_ + middle}, name,
                  {SvgAnchor::kStart, size, false, false, false});
      canvas.text({left_ + middle, top_ + side_ + 5}, name,
                  {SvgAnchor::kEnd, size, false, true, false});
    }
  }

  /// Joints at their heights, leaves at the table's edge.
  void dendrogram(SvgCanvas& canvas) const {
    const double highest = std::max(map_.tree.back().height, 1e-300);
    std::vector<SvgPoint> node(n_ + map_.tree.size());
    for (std::size_t i = 0; i < n_; ++i)
      node[order_[i]] = {left_ - 3, top_ + cell_ * (static_cast<double>(i) + 0.5)};
    for (std::size_t m = 0; m < map_.tree.size(); ++m) {
      const ClusterMerge& merge = map_.tree[m];
      const SvgPoint a = node[merge.left], b = node[merge.right];
      const double x = left_ - 3 - (tree_ - 8) * merge.height / highest;
      canvas.polyline({a, {x, a.y}, {x, b.y}, b}, "#444444", 1.2);
      node[n_ + m] = {x, (a.y + b.y) / 2};
    }
  }

  void colour_bar(SvgCanvas& canvas) const {
    constexpr int kSteps = 40;
    const double x = left_ + side_ + names_ + 18;
    for (int i = 0; i < kSteps; ++i)
      canvas.rectangle({x, top_ + side_ * (kSteps - 1 - i) / kSteps}, 14, side_ / kSteps + 0.5,
                       ramp_colour(static_cast<double>(i) / (kSteps - 1)), "none");
    const AxisScale scale{low_, high_ > low_ ? high_ : low_ + 1, top_ + side_, top_};
    const AxisMarks marks = axis_marks(low_, high_, 6);
    for (std::size_t i = 0; i < marks.values.size(); ++i)
      canvas.text({x + 18, scale(marks.values[i]) + 4}, marks.labels[i],
                  {SvgAnchor::kStart, 10, false, false, false});
    canvas.text({x - 6, top_ + side_ / 2}, map_.value_label, kUpAxisText);
  }

  const Heatmap& map_;
  std::size_t n_;
  double cell_;
  double side_;
  double tree_;
  double names_ = 0;
  double left_ = 0;
  double top_ = 0;
  double low_ = 0;
  double high_ = 0;
  std::vector<std::int64_t> order_;
};

}  // namespace

std::string heatmap_svg(const Heatmap& map) { return Drawing(map).document(); }

}  // namespace weightsmith
