#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "weightsmith/core/rng.h"
#include "weightsmith/data/image.h"

/// Operations on one image, in place, O(C·H·W) each. Those on bytes follow the tensor versions of
/// torchvision 0.14 (`transforms.functional`), which the golden files compare them with: within
/// one level of 255, most exactly. Colours are red, green, blue; with one channel, saturation and
/// hue change nothing, as there. Other numbers of channels: see needs_colour() in augment.h.
namespace weightsmith::image_ops {

// ---- geometry, of bytes and floats; what comes in from outside is 0 ----

/// Output pixel (y, x) takes the value at (y + dy, x + dx).
template <class T>
void shift(Image<T>& image, std::int64_t dy, std::int64_t dx);
template <class T>
void flip_left_right(Image<T>& image);
template <class T>
void flip_top_bottom(Image<T>& image);

/// Where an output pixel's value comes from, about the centre ((H − 1)/2, (W − 1)/2):
/// [sx sy] = M [x y] + t, y pointing down.
struct Warp {
  double xx, xy, yx, yy, tx, ty;
};
/// The map that turns counter-clockwise as seen by `degrees`, scales by `scale`, then shifts by
/// (dx, dy) pixels; as a Warp, its inverse.
Warp inverse_affine(double degrees, double scale, double dx, double dy);
/// Bilinear; bytes are rounded to the nearest.
template <class T>
void warp_bilinear(Image<T>& image, const Warp& map);
/// A Warp for images (H, W) in single precision over [-1, 1], in half-sizes, as torchvision's grid
/// is.
struct NearestGrid {
  float xx, xy, yx, yy, tx, ty;
};
NearestGrid nearest_grid(const Warp& map, std::int64_t height, std::int64_t width);
/// The nearest pixel. In the precision and the order of torchvision's grid, so that points half-way
/// between two pixels go where they go there.
void warp_nearest(Image<std::uint8_t>& image, const Warp& map);

/// A rectangle of pixels.
struct Box {
  std::int64_t top, left, height, width;
};
/// Cuts out `box`, which lies inside, and resizes it to size × size: bilinear without
/// anti-aliasing, pixel centres at half-integers; bytes are rounded to the nearest.
template <class T>
void resized_crop(Image<T>& image, const Box& box, std::int64_t size);
/// A random box inside an image (Szegedy et al., "Going deeper with convolutions", CVPR 2015,
/// section 6, as torchvision draws it): its area a uniform share in [low, high] of the image's, its
/// ratio of width to height log-uniform. None when ten draws did not fit.
std::optional<Box> random_box(Rng& rng, std::int64_t height, std::int64_t width,
                              std::array<double, 2> area, std::array<double, 2> ratio);
/// The largest box in the middle of an image whose ratio of width to height is nearest to the
/// image's among those in [low, high].
Box central_box(std::int64_t height, std::int64_t width, std::array<double, 2> ratio);

// ---- colours, of bytes ----

/// What each of 256 values becomes.
using Levels = std::array<std::uint8_t, 256>;
/// factor · image + rest · another one.
struct Blend {
  float factor, rest;
};
/// With the rest 1 − factor.
Blend blend_of(double factor);

/// factor · image; results are cut to [0, 255] and their fractions dropped, here and below.
void brightness(Image<std::uint8_t>& image, double factor);
Levels brightness_levels(double factor);
/// factor · image + (1 − factor) · mean of its grey values.
void contrast(Image<std::uint8_t>& image, double factor);
/// factor · image + (1 − factor) · its grey values 0.2989 R + 0.587 G + 0.114 B.
void saturation(Image<std::uint8_t>& image, double factor);
/// Turns the hue by `turn` of a full circle, in [−1/2, 1/2].
void hue(Image<std::uint8_t>& image, double turn);
/// The turn in sixths of the circle, as it is computed with.
float hue_sixths(double turn);
/// factor · image + (1 − factor) · (image smoothed by [1 1 1; 1 5 1; 1 1 1] / 13); the border
/// stays.
void sharpness(Image<std::uint8_t>& image, double factor);
/// Keeps the `bits` highest bits of every value; 0 to 8.
void posterize(Image<std::uint8_t>& image, int bits);
Levels posterize_levels(int bits);
/// Inverts values from `threshold` on.
void solarize(Image<std::uint8_t>& image, double threshold);
Levels solarize_levels(double threshold);
void invert(Image<std::uint8_t>& image);
Levels invert_levels();
/// Stretches each channel to [0, 255]; one of a single value stays.
void autocontrast(Image<std::uint8_t>& image);
/// Equalises the histogram of each channel.
void equalize(Image<std::uint8_t>& image);

}  // namespace weightsmith::image_ops
