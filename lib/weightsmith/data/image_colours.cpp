#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "weightsmith/data/image_ops.h"

namespace weightsmith::image_ops {
namespace {

using Bytes = Image<std::uint8_t>;

/// Cut to [0, 255], the fraction dropped.
std::uint8_t to_byte(float value) {
  return static_cast<std::uint8_t>(std::clamp(value, 0.0F, 255.0F));
}

template <class F>
Levels levels_of(F f) {
  Levels levels;
  for (int v = 0; v < 256; ++v) levels[v] = f(v);
  return levels;
}

void map_values(std::uint8_t* values, std::int64_t count, const Levels& levels) {
  for (std::int64_t i = 0; i < count; ++i) values[i] = levels[values[i]];
}

std::uint8_t grey_of(std::uint8_t r, std::uint8_t g, std::uint8_t b) {
  return static_cast<std::uint8_t>(0.2989F * r + 0.587F * g + 0.114F * b);
}

double mean_grey(const Bytes& image) {
  const std::uint8_t* v = image.data();
  const std::int64_t plane = image.plane();
  std::int64_t sum = 0;
  if (image.channels == 3) {
    for (std::int64_t i = 0; i < plane; ++i) sum += grey_of(v[i], v[i + plane], v[i + 2 * plane]);
  } else {
    sum = std::accumulate(v, v + plane, std::int64_t{0});
  }
  return static_cast<double>(sum) / static_cast<double>(plane);
}

std::array<std::int64_t, 256> histogram(const std::uint8_t* values, std::int64_t count) {
  std::array<std::int64_t, 256> counts{};
  for (std::int64_t i = 0; i < count; ++i) ++counts[values[i]];
  return counts;
}

/// How many values are below each level, in steps of 1/255 of all but those of the highest level.
Levels equalising_levels(const std::array<std::int64_t, 256>& counts, std::int64_t total) {
  const auto highest = std::find_if(counts.rbegin(), counts.rend(), [](auto n) { return n != 0; });
  const std::int64_t step = (total - *highest) / 255;
  if (step == 0) return levels_of([](int v) { return static_cast<std::uint8_t>(v); });
  std::int64_t below = 0;
  return levels_of([&](int v) {
    const std::int64_t level = v == 0 ? 0 : std::min<std::int64_t>((below + step / 2) / step, 255);
    below += counts[v];
    return static_cast<std::uint8_t>(level);
  });
}

}  // namespace

Blend blend_of(double factor) {
  return {static_cast<float>(factor), static_cast<float>(1 - factor)};
}

void brightness(Bytes& image, double factor) {
  map_values(image.data(), image.numel(), brightness_levels(factor));
}

Levels brightness_levels(double factor) {
  const auto f = static_cast<float>(factor);
  return levels_of([f](int v) { return to_byte(f * static_cast<float>(v)); });
}

void contrast(Bytes& image, double factor) {
  const auto [f, g] = blend_of(factor);
  const float rest = g * static_cast<float>(mean_grey(image));
  map_values(image.data(), image.numel(),
             levels_of([f = f, rest](int v) { return to_byte(f * static_cast<float>(v) + rest); }));
}

void saturation(Bytes& image, double factor) {
  if (image.channels != 3) return;
  const auto [f, g] = blend_of(factor);
  const std::int64_t plane = image.plane();
  std::uint8_t* red = image.data();
  std::uint8_t* green = red + plane;
  std::uint8_t* blue = green + plane;
  for (std::int64_t i = 0; i < plane; ++i) {
    const float rest = g * static_cast<float>(grey_of(red[i], green[i], blue[i]));
    red[i] = to_byte(f * static_cast<float>(red[i]) + rest);
    green[i] = to_byte(f * static_cast<float>(green[i]) + rest);
    blue[i] = to_byte(f * static_cast<float>(blue[i]) + rest);
  }
}

void hue(Bytes& image, double turn) {
  if (image.channels != 3) return;
  const std::int64_t plane = image.plane();
  std::uint8_t* red = image.data();
  std::uint8_t* green = red + plane;
  std::uint8_t* blue = green + plane;
  // In sixths of the circle: red 0, green 2, blue 4 (Smith, "Color gamut transform pairs",
  // SIGGRAPH 1978).
  const float sixths = hue_sixths(turn);
  for (std::int64_t i = 0; i < plane; ++i) {
    const float r = red[i];
    const float g = green[i];
    const float b = blue[i];
    const float most = std::max({r, g, b});
    const float range = most - std::min({r, g, b});
    if (range == 0) continue;
    float h = most == r ? (g - b) / range : most == g ? 2 + (b - r) / range : 4 + (r - g) / range;
    h += sixths;
    h -= 6 * std::floor(h / 6);
    const auto sector = std::min(static_cast<int>(h), 5);
    const float fraction = h - static_cast<float>(sector);
    // A part that rounding leaves just under a whole level would lose it when the fraction goes.
    const auto level = [](float v) { return to_byte(v + 1e-3F); };
    const std::uint8_t top = level(most);
    const std::uint8_t bottom = level(most - range);
    const std::uint8_t falling = level(most - range * fraction);
    const std::uint8_t rising = level(most - range * (1 - fraction));
    switch (sector) {
      case 0:
        red[i] = top, green[i] = rising, blue[i] = bottom;
        break;
      case 1:
        red[i] = falling, green[i] = top, blue[i] = bottom;
        break;
      case 2:
        red[i] = bottom, green[i] = top, blue[i] = rising;
        break;
      case 3:
        red[i] = bottom, green[i] = falling, blue[i] = top;
        break;
      case 4:
        red[i] = rising, green[i] = bottom, blue[i] = top;
        break;
      default:
        red[i] = top, green[i] = bottom, blue[i] = falling;
    }
  }
}

float hue_sixths(double turn) { return static_cast<float>(6 * turn); }

void sharpness(Bytes& image, double factor) {
  const std::int64_t h = image.height;
  const std::int64_t w = image.width;
  if (h <= 2 || w <= 2) return;
  const auto [f, g] = blend_of(factor);
  std::uint8_t* to = image.spare(image.numel());
  std::copy(image.data(), image.data() + image.numel(), to);
  // The border too is blended, with itself: a fraction may get lost there.
  const Levels border = levels_of([f = f, g = g](int v) {
    return to_byte(f * static_cast<float>(v) + g * static_cast<float>(v));
  });
  for (std::int64_t c = 0; c < image.channels; ++c) {
    const std::uint8_t* in = image.data() + c * image.plane();
    std::uint8_t* out = to + c * image.plane();
    map_values(out, w, border);
    map_values(out + (h - 1) * w, w, border);
    for (std::int64_t y = 1; y + 1 < h; ++y) {
      const std::uint8_t* above = in + (y - 1) * w;
      const std::uint8_t* row = in + y * w;
      const std::uint8_t* below = in + (y + 1) * w;
      out[y * w] = border[row[0]];
      out[(y + 1) * w - 1] = border[row[w - 1]];
      for (std::int64_t x = 1; x + 1 < w; ++x) {
        const int sum = above[x - 1] + above[x] + above[x + 1] + row[x - 1] + 5 * row[x] +
                        row[x + 1] + below[x - 1] + below[x] + below[x + 1];
        const int smooth = (2 * sum + 13) / 26;  // sum / 13 rounded; never half-way
        out[y * w + x] = to_byte(f * static_cast<float>(row[x]) + g * static_cast<float>(smooth));
      }
    }
  }
  image.swap();
}

void posterize(Bytes& image, int bits) {
  const auto mask = static_cast<std::uint8_t>(0xFF00 >> bits);
  std::uint8_t* values = image.data();
  for (std::int64_t i = 0; i < image.numel(); ++i) values[i] &= mask;
}

Levels posterize_levels(int bits) {
  return levels_of([mask = 0xFF00 >> bits](int v) { return static_cast<std::uint8_t>(v & mask); });
}

void solarize(Bytes& image, double threshold) {
  map_values(image.data(), image.numel(), solarize_levels(threshold));
}

Levels solarize_levels(double threshold) {
  const auto t = static_cast<float>(threshold);
  return levels_of(
      [t](int v) { return static_cast<std::uint8_t>(static_cast<float>(v) >= t ? 255 - v : v); });
}

void invert(Bytes& image) {
  std::uint8_t* values = image.data();
  for (std::int64_t i = 0; i < image.numel(); ++i) values[i] = 255 - values[i];
}

Levels invert_levels() {
  return levels_of([](int v) { return static_cast<std::uint8_t>(255 - v); });
}

void autocontrast(Bytes& image) {
  for (std::int64_t c = 0; c < image.channels; ++c) {
    std::uint8_t* values = image.data() + c * image.plane();
    const auto [low, high] = std::minmax_element(values, values + image.plane());
    if (*low == *high) continue;
    const auto least = static_cast<float>(*low);
    const float scale = 255.0F / (static_cast<float>(*high) - least);
    map_values(values, image.plane(),
               levels_of([=](int v) { return to_byte((static_cast<float>(v) - least) * scale); }));
  }
}

void equalize(Bytes& image) {
  for (std::int64_t c = 0; c < image.channels; ++c) {
    std::uint8_t* values = image.data() + c * image.plane();
    map_values(values, image.plane(),
               equalising_levels(histogram(values, image.plane()), image.plane()));
  }
}

}  // namespace weightsmith::image_ops
