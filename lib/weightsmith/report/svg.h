#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace weightsmith {

/// A place on a drawing, in pixels from its upper left corner.
struct SvgPoint {
  double x = 0;
  double y = 0;
};

/// How a text stands to its place.
enum class SvgAnchor { kStart, kMiddle, kEnd };

struct SvgTextStyle {
  SvgAnchor anchor = SvgAnchor::kStart;
  double size = 11;
  bool bold = false;
  bool turned = false;  ///< reads upwards
  bool halo = false;    ///< a white rim keeps it readable on any colour
};

/// Of a plot, its axis across and its axis upwards.
inline constexpr SvgTextStyle kTitleText{SvgAnchor::kMiddle, 14, true, false, false};
inline constexpr SvgTextStyle kAxisText{SvgAnchor::kMiddle, 12, false, false, false};
inline constexpr SvgTextStyle kUpAxisText{SvgAnchor::kMiddle, 12, false, true, false};

/// Collects shapes and writes them as one SVG 1.1 document without scripts, fonts or outside
/// references, so that it looks the same in a browser, a README and a paper. Colours are CSS
/// colours; coordinates are rounded to a hundredth of a pixel, so equal drawings give equal bytes.
class SvgCanvas {
 public:
  SvgCanvas(double width, double height) : width_(width), height_(height) {}

  void line(SvgPoint from, SvgPoint to, std::string_view colour, double thickness,
            bool dashed = false);
  void polyline(const std::vector<SvgPoint>& points, std::string_view colour, double thickness);
  void polygon(const std::vector<SvgPoint>& points, std::string_view fill, double opacity = 1.0);
  /// Many polygons of one colour that may touch: one path, without seams between them.
  void polygons(const std::vector<std::vector<SvgPoint>>& shapes, std::string_view fill);
  void circle(SvgPoint centre, double radius, std::string_view fill, std::string_view outline);
  void rectangle(SvgPoint corner, double width, double height, std::string_view fill,
                 std::string_view outline);
  /// The text is escaped.
  void text(SvgPoint at, std::string_view text, const SvgTextStyle& style);

  /// The whole document; `description` becomes its <title>, which screen readers read out.
  std::string document(std::string_view description) const;

 private:
  double width_;
  double height_;
  std::string body_;
};

/// A colour between dark blue (0) over green to yellow (1), of steadily rising lightness, so that
/// order survives a grey printout. Shares outside [0, 1] are clamped.
std::string ramp_colour(double share);

/// Round values that mark an axis from `low` to `high` and the text of each: multiples of 1, 2 or 5
/// times a power of ten, at most `most` of them, all within the range. An empty or reversed range
/// gives one mark, a range that is not finite none.
struct AxisMarks {
  std::vector<double> values;
  std::vector<std::string> labels;
};
AxisMarks axis_marks(double low, double high, int most);

/// A stretch of values drawn along a stretch of pixels.
struct AxisScale {
  double low = 0;
  double high = 1;
  double from = 0;  ///< pixel of `low`
  double to = 1;    ///< pixel of `high`

  double operator()(double value) const {
    return from + (value - low) / (high - low) * (to - from);
  }
};

}  // namespace weightsmith
