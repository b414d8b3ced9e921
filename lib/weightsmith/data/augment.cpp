#include "weightsmith/data/augment.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "weightsmith/config/fields.h"

namespace weightsmith {

EnumNames<Augmentation::Name> enum_names(Augmentation::Name) {
  using enum Augmentation::Name;
  return {{kRandomCrop, "random_crop"},
          {kHorizontalFlip, "horizontal_flip"},
          {kVerticalFlip, "vertical_flip"},
          {kRotation, "rotation"},
          {kAffine, "affine"}};
}

/// Each augmentation has the fields that matter to it, so that a misplaced one is an unknown key.
template <class Fields>
void fields(Fields& f, Augmentation& a) {
  f("name", a.name);
  switch (a.name) {
    case Augmentation::Name::kRandomCrop:
      f("padding", a.padding);
      break;
    case Augmentation::Name::kHorizontalFlip:
    case Augmentation::Name::kVerticalFlip:
      f("probability", a.probability);
      break;
    case Augmentation::Name::kRotation:
      f("degrees", a.degrees);
      break;
    case Augmentation::Name::kAffine:
      f("degrees", a.degrees);
      f("shift", a.shift);
      f("scale", a.scale);
      break;
  }
}

void from_config(const ConfigNode& node, Augmentation& a) {
  if (node.value.is_string()) {
    detail::read_value(node, a.name);
    return;
  }
  if (!node.value.is_object() || !node.value.contains("name"))
    node.fail("expected an augmentation's name, or an object with `name`",
              "for example \"horizontal_flip\"");
  read_fields(node, a);
  const auto require = [&](bool holds, const char* what) {
    if (!holds) node.fail(what);
  };
  require(!a.padding || *a.padding >= 0, "padding must not be negative");
  require(a.probability >= 0 && a.probability <= 1, "probability must lie in [0, 1]");
  require(a.degrees >= 0 && a.degrees <= 180, "degrees must lie in [0, 180]");
  require(a.shift >= 0 && a.shift <= 1, "shift must lie in [0, 1]");
  require(a.scale >= 0 && a.scale < 1, "scale must lie in [0, 1)");
}

nlohmann::json to_config(const Augmentation& augmentation) { return write_fields(augmentation); }

namespace {

/// Output pixel (y, x) takes the value at (y + dy, x + dx).
void shift_image(ImageView image, std::int64_t dy, std::int64_t dx, std::vector<float>& scratch) {
  if (dy == 0 && dx == 0) return;
  const std::int64_t h = image.height;
  const std::int64_t w = image.width;
  scratch.assign(static_cast<std::size_t>(image.numel()), 0.0F);
  const std::int64_t first = std::max<std::int64_t>(0, -dx);
  const std::int64_t last = std::min(w, w - dx);
  for (std::int64_t c = 0; c < image.channels && first < last; ++c) {
    for (std::int64_t y = std::max<std::int64_t>(0, -dy); y < std::min(h, h - dy); ++y) {
      const float* from = image.data + (c * h + y + dy) * w;
      std::copy(from + first + dx, from + last + dx, scratch.data() + (c * h + y) * w + first);
    }
  }
  std::copy(scratch.begin(), scratch.end(), image.data);
}

void flip_rows(ImageView image) {
  for (std::int64_t row = 0; row < image.channels * image.height; ++row)
    std::reverse(image.data + row * image.width, image.data + (row + 1) * image.width);
}

void flip_columns(ImageView image) {
  const std::int64_t w = image.width;
  for (std::int64_t c = 0; c < image.channels; ++c) {
    float* plane = image.data + c * image.height * w;
    for (std::int64_t y = 0; y < image.height / 2; ++y)
      std::swap_ranges(plane + y * w, plane + (y + 1) * w, plane + (image.height - 1 - y) * w);
  }
}

/// Where an output pixel's value comes from, about the centre: [sx sy] = M [x y] + t.
struct Warp {
  double xx, xy, yx, yy, tx, ty;
};

void warp_image(ImageView image, const Warp& m, std::vector<float>& scratch) {
  const std::int64_t h = image.height;
  const std::int64_t w = image.width;
  const std::int64_t plane = h * w;
  scratch.assign(image.data, image.data + image.numel());
  const double cy = 0.5 * static_cast<double>(h - 1);
  const double cx = 0.5 * static_cast<double>(w - 1);
  for (std::int64_t y = 0; y < h; ++y) {
    for (std::int64_t x = 0; x < w; ++x) {
      const double ry = static_cast<double>(y) - cy;
      const double rx = static_cast<double>(x) - cx;
      const double sy = m.yx * rx + m.yy * ry + m.ty + cy;
      const double sx = m.xx * rx + m.xy * ry + m.tx + cx;
      const double fy = std::floor(sy);
      const double fx = std::floor(sx);
      float* out = image.data + y * w + x;
      if (fy < -1 || fx < -1 || fy >= static_cast<double>(h) || fx >= static_cast<double>(w)) {
        for (std::int64_t c = 0; c < image.channels; ++c) out[c * plane] = 0.0F;
        continue;
      }
      const auto y0 = static_cast<std::int64_t>(fy);
      const auto x0 = static_cast<std::int64_t>(fx);
      const auto wy = static_cast<float>(sy - fy);
      const auto wx = static_cast<float>(sx - fx);
      const bool top = y0 >= 0;
      const bool bottom = y0 + 1 < h;
      const bool left = x0 >= 0;
      const bool right = x0 + 1 < w;
      for (std::int64_t c = 0; c < image.channels; ++c) {
        const std::int64_t at = c * plane + y0 * w + x0;
        const float a = top && left ? scratch[at] : 0.0F;
        const float b = top && right ? scratch[at + 1] : 0.0F;
        const float d = bottom && left ? scratch[at + w] : 0.0F;
        const float e = bottom && right ? scratch[at + w + 1] : 0.0F;
        out[c * plane] = (1 - wy) * ((1 - wx) * a + wx * b) + wy * ((1 - wx) * d + wx * e);
      }
    }
  }
}

/// Turns counter-clockwise by `degrees`, scales by `scale`, then shifts by (dx, dy) pixels: the
/// inverse of that, since it maps outputs to inputs.
Warp inverse_affine(double degrees, double scale, double dx, double dy) {
  const double angle = degrees * std::numbers::pi / 180.0;
  const double c = std::cos(angle) / scale;
  const double s = std::sin(angle) / scale;
  // With y pointing down, counter-clockwise is (x, y) -> (cos·x + sin·y, -sin·x + cos·y).
  return {c, -s, s, c, -c * dx + s * dy, -s * dx - c * dy};
}

}  // namespace

void augment(const Pipeline& pipeline, ImageView image, Rng& rng, std::vector<float>& scratch) {
  for (const Augmentation& a : pipeline) {
    switch (a.name) {
      case Augmentation::Name::kRandomCrop: {
        const std::int64_t padding = a.padding.value_or((image.height + 7) / 8);
        WS_CHECK(padding >= 0);
        const auto offset = [&] {
          return static_cast<std::int64_t>(rng.below(static_cast<std::uint64_t>(2 * padding + 1))) -
                 padding;
        };
        const std::int64_t dy = offset();
        const std::int64_t dx = offset();
        shift_image(image, dy, dx, scratch);
        break;
      }
      case Augmentation::Name::kHorizontalFlip:
        if (rng.uniform() < a.probability) flip_rows(image);
        break;
      case Augmentation::Name::kVerticalFlip:
        if (rng.uniform() < a.probability) flip_columns(image);
        break;
      case Augmentation::Name::kRotation:
        warp_image(image, inverse_affine(rng.uniform(-a.degrees, a.degrees), 1, 0, 0), scratch);
        break;
      case Augmentation::Name::kAffine: {
        const double degrees = rng.uniform(-a.degrees, a.degrees);
        const double scale = 1.0 + rng.uniform(-a.scale, a.scale);
        const double dx = rng.uniform(-a.shift, a.shift) * static_cast<double>(image.width);
        const double dy = rng.uniform(-a.shift, a.shift) * static_cast<double>(image.height);
        warp_image(image, inverse_affine(degrees, scale, dx, dy), scratch);
        break;
      }
    }
  }
}

}  // namespace weightsmith
