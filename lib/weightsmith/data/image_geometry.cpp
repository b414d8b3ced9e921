#include <algorithm>
#include <cmath>
#include <numbers>
#include <type_traits>
#include <vector>

#include "weightsmith/data/image_ops.h"

namespace weightsmith::image_ops {
namespace {

using std::int64_t;

/// The nearest integer, of two the even one, for |value| < 2^22: what is added leaves no bit for a
/// fraction. std::nearbyint would be a call for each value on processors without SSE 4.1.
float nearest(float value) {
  constexpr float kNoFraction = 12582912.0F;  // 1.5 · 2^23
  return (value + kNoFraction) - kNoFraction;
}

template <class T>
T from_float(float value) {
  if constexpr (std::is_same_v<T, std::uint8_t>) {
    return static_cast<std::uint8_t>(nearest(std::clamp(value, 0.0F, 255.0F)));
  } else {
    return value;
  }
}

}  // namespace

template <class T>
void shift(Image<T>& image, int64_t dy, int64_t dx) {
  if (dy == 0 && dx == 0) return;
  const int64_t h = image.height;
  const int64_t w = image.width;
  T* out = image.spare(image.numel());
  std::fill(out, out + image.numel(), T{0});
  const int64_t first = std::max<int64_t>(0, -dx);
  const int64_t last = std::min(w, w - dx);
  for (int64_t c = 0; c < image.channels && first < last; ++c) {
    for (int64_t y = std::max<int64_t>(0, -dy); y < std::min(h, h - dy); ++y) {
      const T* from = image.data() + (c * h + y + dy) * w;
      std::copy(from + first + dx, from + last + dx, out + (c * h + y) * w + first);
    }
  }
  image.swap();
}

template <class T>
void flip_left_right(Image<T>& image) {
  for (int64_t row = 0; row < image.channels * image.height; ++row)
    std::reverse(image.data() + row * image.width, image.data() + (row + 1) * image.width);
}

template <class T>
void flip_top_bottom(Image<T>& image) {
  const int64_t w = image.width;
  for (int64_t c = 0; c < image.channels; ++c) {
    T* plane = image.data() + c * image.plane();
    for (int64_t y = 0; y < image.height / 2; ++y)
      std::swap_ranges(plane + y * w, plane + (y + 1) * w, plane + (image.height - 1 - y) * w);
  }
}

Warp inverse_affine(double degrees, double scale, double dx, double dy) {
  const double angle = degrees * std::numbers::pi / 180.0;
  const double c = std::cos(angle) / scale;
  const double s = std::sin(angle) / scale;
  // With y pointing down, counter-clockwise is (x, y) -> (cos·x + sin·y, -sin·x + cos·y).
  return {c, -s, s, c, -c * dx + s * dy, -s * dx - c * dy};
}

template <class T>
void warp_bilinear(Image<T>& image, const Warp& m) {
  const int64_t h = image.height;
  const int64_t w = image.width;
  const int64_t plane = h * w;
  const T* in = image.data();
  T* to = image.spare(image.numel());
  const double cy = 0.5 * static_cast<double>(h - 1);
  const double cx = 0.5 * static_cast<double>(w - 1);
  for (int64_t y = 0; y < h; ++y) {
    for (int64_t x = 0; x < w; ++x) {
      const double ry = static_cast<double>(y) - cy;
      const double rx = static_cast<double>(x) - cx;
      const double sy = m.yx * rx + m.yy * ry + m.ty + cy;
      const double sx = m.xx * rx + m.xy * ry + m.tx + cx;
      const double fy = std::floor(sy);
      const double fx = std::floor(sx);
      T* out = to + y * w + x;
      if (fy < -1 || fx < -1 || fy >= static_cast<double>(h) || fx >= static_cast<double>(w)) {
        for (int64_t c = 0; c < image.channels; ++c) out[c * plane] = T{0};
        continue;
      }
      const auto y0 = static_cast<int64_t>(fy);
      const auto x0 = static_cast<int64_t>(fx);
      const auto wy = static_cast<float>(sy - fy);
      const auto wx = static_cast<float>(sx - fx);
      const bool top = y0 >= 0;
      const bool bottom = y0 + 1 < h;
      const bool left = x0 >= 0;
      const bool right = x0 + 1 < w;
      for (int64_t c = 0; c < image.channels; ++c) {
        const T* at = in + c * plane + y0 * w + x0;
        const float a = top && left ? at[0] : 0.0F;
        const float b = top && right ? at[1] : 0.0F;
        const float d = bottom && left ? at[w] : 0.0F;
        const float e = bottom && right ? at[w + 1] : 0.0F;
        out[c * plane] =
            from_float<T>((1 - wy) * ((1 - wx) * a + wx * b) + wy * ((1 - wx) * d + wx * e));
      }
    }
  }
  image.swap();
}

NearestGrid nearest_grid(const Warp& m, int64_t height, int64_t width) {
  const float half_w = 0.5F * static_cast<float>(width);
  const float half_h = 0.5F * static_cast<float>(height);
  return {static_cast<float>(m.xx) / half_w, static_cast<float>(m.xy) / half_w,
          static_cast<float>(m.yx) / half_h, static_cast<float>(m.yy) / half_h,
          static_cast<float>(m.tx) / half_w, static_cast<float>(m.ty) / half_h};
}

void warp_nearest(Image<std::uint8_t>& image, const Warp& map) {
  const int64_t h = image.height;
  const int64_t w = image.width;
  const int64_t plane = h * w;
  const std::uint8_t* in = image.data();
  std::uint8_t* to = image.spare(image.numel());
  const float half_w = 0.5F * static_cast<float>(w);
  const float half_h = 0.5F * static_cast<float>(h);
  const NearestGrid m = nearest_grid(map, h, w);
  std::vector<float> at_x(static_cast<std::size_t>(w));
  std::vector<float> at_y(static_cast<std::size_t>(w));
  for (int64_t x = 0; x < w; ++x) {
    const float rx = static_cast<float>(x) - half_w + 0.5F;
    at_x[x] = rx * m.xx;
    at_y[x] = rx * m.yx;
  }
  std::vector<std::int32_t> source(static_cast<std::size_t>(w));
  for (int64_t y = 0; y < h; ++y) {
    const float ry = static_cast<float>(y) - half_h + 0.5F;
    for (int64_t x = 0; x < w; ++x) {
      const float gx = at_x[x] + ry * m.xy + m.tx;
      const float gy = at_y[x] + ry * m.yy + m.ty;
      const float sx = nearest((gx + 1.0F) * half_w - 0.5F);
      const float sy = nearest((gy + 1.0F) * half_h - 0.5F);
      const bool inside =
          sx >= 0 && sy >= 0 && sx < static_cast<float>(w) && sy < static_cast<float>(h);
      source[x] = inside ? static_cast<std::int32_t>(sy) * static_cast<std::int32_t>(w) +
                               static_cast<std::int32_t>(sx)
                         : -1;
    }
    for (int64_t c = 0; c < image.channels; ++c) {
      const std::uint8_t* from = in + c * plane;
      std::uint8_t* out = to + c * plane + y * w;
      for (int64_t x = 0; x < w; ++x) out[x] = source[x] < 0 ? std::uint8_t{0} : from[source[x]];
    }
  }
  image.swap();
}

template <class T>
void resized_crop(Image<T>& image, const Box& box, int64_t size) {
  /// Two neighbours of an output position along one axis, and the weight of the second.
  struct Taps {
    int64_t first, second;
    float weight;
  };
  const auto taps_of = [size](int64_t begin, int64_t length) {
    std::vector<Taps> taps(static_cast<std::size_t>(size));
    const float step = static_cast<float>(length) / static_cast<float>(size);
    for (int64_t i = 0; i < size; ++i) {
      const float at = std::max(0.0F, step * (static_cast<float>(i) + 0.5F) - 0.5F);
      const auto first = std::min(static_cast<int64_t>(at), length - 1);
      taps[i] = {begin + first, begin + std::min(first + 1, length - 1),
                 at - static_cast<float>(first)};
    }
    return taps;
  };
  const std::vector<Taps> rows = taps_of(box.top, box.height);
  const std::vector<Taps> columns = taps_of(box.left, box.width);
  const int64_t w = image.width;
  T* out = image.spare(image.channels * size * size);
  // Rows are interpolated along x once and kept for the output rows that need them.
  std::vector<float> upper(static_cast<std::size_t>(size));
  std::vector<float> lower(static_cast<std::size_t>(size));
  for (int64_t c = 0; c < image.channels; ++c) {
    const T* in = image.data() + c * image.plane();
    const auto fill = [&](std::vector<float>& row, int64_t y) {
      const T* from = in + y * w;
      for (int64_t x = 0; x < size; ++x) {
        const Taps& column = columns[x];
        row[x] = static_cast<float>(from[column.first]) * (1 - column.weight) +
                 static_cast<float>(from[column.second]) * column.weight;
      }
    };
    int64_t upper_y = -1;
    int64_t lower_y = -1;
    for (const Taps& row : rows) {
      if (row.first == lower_y) {
        std::swap(upper, lower);
        std::swap(upper_y, lower_y);
      }
      if (row.first != upper_y) fill(upper, upper_y = row.first);
      if (row.second != lower_y) fill(lower, lower_y = row.second);
      const float below = row.weight;
      const float above = 1 - below;
      for (int64_t x = 0; x < size; ++x)
        out[x] = from_float<T>(upper[x] * above + lower[x] * below);
      out += size;
    }
  }
  image.swap();
  image.height = image.width = size;
}

std::optional<Box> random_box(Rng& rng, int64_t height, int64_t width, std::array<double, 2> area,
                              std::array<double, 2> ratio) {
  const auto h = static_cast<double>(height);
  const auto w = static_cast<double>(width);
  for (int attempt = 0; attempt < 10; ++attempt) {
    const double target = h * w * rng.uniform(area[0], area[1]);
    const double aspect = std::exp(rng.uniform(std::log(ratio[0]), std::log(ratio[1])));
    const auto box_w = std::llround(std::sqrt(target * aspect));
    const auto box_h = std::llround(std::sqrt(target / aspect));
    if (box_w < 1 || box_h < 1 || box_w > width || box_h > height) continue;
    const auto top = static_cast<int64_t>(rng.below(height - box_h + 1));
    const auto left = static_cast<int64_t>(rng.below(width - box_w + 1));
    return Box{top, left, box_h, box_w};
  }
  return std::nullopt;
}

Box central_box(int64_t height, int64_t width, std::array<double, 2> ratio) {
  const auto h = static_cast<double>(height);
  const auto w = static_cast<double>(width);
  const double aspect = std::clamp(w / h, ratio[0], ratio[1]);
  const int64_t box_w = std::clamp<int64_t>(std::llround(std::min(w, h * aspect)), 1, width);
  const int64_t box_h = std::clamp<int64_t>(std::llround(std::min(h, w / aspect)), 1, height);
  return {(height - box_h) / 2, (width - box_w) / 2, box_h, box_w};
}

template void shift(Image<std::uint8_t>&, int64_t, int64_t);
template void shift(Image<float>&, int64_t, int64_t);
template void flip_left_right(Image<std::uint8_t>&);
template void flip_left_right(Image<float>&);
template void flip_top_bottom(Image<std::uint8_t>&);
template void flip_top_bottom(Image<float>&);
template void warp_bilinear(Image<std::uint8_t>&, const Warp&);
template void warp_bilinear(Image<float>&, const Warp&);
template void resized_crop(Image<std::uint8_t>&, const Box&, int64_t);
template void resized_crop(Image<float>&, const Box&, int64_t);

}  // namespace weightsmith::image_ops
