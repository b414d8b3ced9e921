#include "weightsmith/report/svg.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace weightsmith {
namespace {

std::string number(double value) {
  std::string text = fmt::format("{:.2f}", value);
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text == "-0" ? "0" : text;
}

std::string escaped(std::string_view text) {
  std::string safe;
  for (const char c : text) {
    if (c == '&')
      safe += "&amp;";
    else if (c == '<')
      safe += "&lt;";
    else if (c == '>')
      safe += "&gt;";
    else if (c == '"')
      safe += "&quot;";
    else if (static_cast<unsigned char>(c) >= 0x20)  // XML 1.0 has no place for control characters
      safe += c;
  }
  return safe;
}

std::string points_text(const std::vector<SvgPoint>& points) {
  std::string text;
  for (const SvgPoint& p : points)
    text += (text.empty() ? "" : " ") + number(p.x) + "," + number(p.y);
  return text;
}

}  // namespace

void SvgCanvas::line(SvgPoint from, SvgPoint to, std::string_view colour, double thickness,
                     bool dashed) {
  body_ += fmt::format(
      "<line x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\" stroke=\"{}\" stroke-width=\"{}\"{}/>\n",
      number(from.x), number(from.y), number(to.x), number(to.y), colour, number(thickness),
      dashed ? " stroke-dasharray=\"4 3\"" : "");
}

void SvgCanvas::polyline(const std::vector<SvgPoint>& points, std::string_view colour,
                         double thickness) {
  body_ += fmt::format(
      "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{}\" "
      "stroke-linejoin=\"round\"/>\n",
      points_text(points), colour, number(thickness));
}

void SvgCanvas::polygon(const std::vector<SvgPoint>& points, std::string_view fill,
                        double opacity) {
  body_ += fmt::format("<polygon points=\"{}\" fill=\"{}\" fill-opacity=\"{}\"/>\n",
                       points_text(points), fill, number(opacity));
}

void SvgCanvas::polygons(const std::vector<std::vector<SvgPoint>>& shapes, std::string_view fill) {
  std::string path;
  for (const auto& shape : shapes)
    for (std::size_t i = 0; i < shape.size(); ++i)
      path += (i == 0 ? "M" : "L") + number(shape[i].x) + " " + number(shape[i].y) +
              (i + 1 == shape.size() ? "Z" : "");
  // A hair of outline in the same colour closes the gaps that antialiasing leaves between pieces.
  body_ += fmt::format("<path d=\"{0}\" fill=\"{1}\" stroke=\"{1}\" stroke-width=\"0.6\"/>\n", path,
                       fill);
}

void SvgCanvas::circle(SvgPoint centre, double radius, std::string_view fill,
                       std::string_view outline) {
  body_ += fmt::format(
      "<circle cx=\"{}\" cy=\"{}\" r=\"{}\" fill=\"{}\" stroke=\"{}\" stroke-width=\"1.5\"/>\n",
      number(centre.x), number(centre.y), number(radius), fill, outline);
}

void SvgCanvas::rectangle(SvgPoint corner, double width, double height, std::string_view fill,
                          std::string_view outline) {
  body_ += fmt::format(
      "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"{}\" stroke=\"{}\"/>\n",
      number(corner.x), number(corner.y), number(width), number(height), fill, outline);
}

void SvgCanvas::text(SvgPoint at, std::string_view text, const SvgTextStyle& style) {
  const char* place = style.anchor == SvgAnchor::kStart    ? "start"
                      : style.anchor == SvgAnchor::kMiddle ? "middle"
                                                           : "end";
  std::string more;
  if (style.bold) more += " font-weight=\"bold\"";
  if (style.halo) more += " stroke=\"#ffffff\" stroke-width=\"3\" paint-order=\"stroke\"";
  if (style.turned)
    more += fmt::format(" transform=\"rotate(-90 {} {})\"", number(at.x), number(at.y));
  body_ += fmt::format(
      "<text x=\"{}\" y=\"{}\" text-anchor=\"{}\" font-size=\"{}\" fill=\"#222222\"{}>{}</text>\n",
      number(at.x), number(at.y), place, number(style.size), more, escaped(text));
}

std::string SvgCanvas::document(std::string_view description) const {
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" "
      "height=\"{1}\" font-family=\"Helvetica, Arial, sans-serif\" role=\"img\">\n"
      "<title>{2}</title>\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{3}</svg>\n",
      number(width_), number(height_), escaped(description), body_);
}

std::string ramp_colour(double share) {
  constexpr std::array<std::array<double, 3>, 7> kStops{{{68, 1, 84},
                                                         {68, 57, 131},
                                                         {48, 104, 142},
                                                         {33, 145, 140},
                                                         {53, 183, 121},
                                                         {145, 215, 66},
                                                         {253, 231, 37}}};
  const double at = std::clamp(share, 0.0, 1.0) * (kStops.size() - 1);
  const auto below = std::min(static_cast<std::size_t>(at), kStops.size() - 2);
  const double part = at - static_cast<double>(below);
  std::array<int, 3> rgb{};
  for (int c = 0; c < 3; ++c)
    rgb[c] = static_cast<int>(
        std::lround(kStops[below][c] + part * (kStops[below + 1][c] - kStops[below][c])));
  return fmt::format("#{:02x}{:02x}{:02x}", rgb[0], rgb[1], rgb[2]);
}

AxisMarks axis_marks(double low, double high, int most) {
  AxisMarks marks;
  if (!std::isfinite(low) || !std::isfinite(high)) return marks;
  if (!(high > low)) return {{low}, {fmt::format("{:g}", low)}};
  const double rough = (high - low) / std::max(most - 1, 1);
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  double step = 10 * power;
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power < rough * (1 - 1e-9)) continue;
    step = factor * power;
    break;
  }
  const int decimals = std::clamp(static_cast<int>(-std::floor(std::log10(step) + 1e-9)), 0, 12);
  const double slack = 1e-9 * step;
  for (double k = std::ceil((low - slack) / step); k * step <= high + slack; ++k) {
    marks.values.push_back(k * step);
    std::string label = fmt::format("{:.{}f}", k * step, decimals);
    marks.labels.push_back(label.find_first_not_of("-0.") == std::string::npos ? "0" : label);
  }
  return marks;
}

}  // namespace weightsmith
