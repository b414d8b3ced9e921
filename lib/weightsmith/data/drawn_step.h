#pragma once

#include <cstdint>
#include <optional>
#include <type_traits>
#include <variant>

#include "weightsmith/core/rng.h"
#include "weightsmith/data/image.h"
#include "weightsmith/data/image_ops.h"

/// Changes of one image with everything that was drawn for them, in the terms of data/image_ops.h.
/// They are applied to one image at once (apply_step) or to a batch (data/batch_steps.h).
namespace weightsmith {

struct ShiftStep {
  std::int64_t dy, dx;
};
struct FlipStep {
  bool top_bottom;  ///< else left and right
};
struct WarpStep {
  image_ops::Warp map;
  bool nearest;  ///< pixel, for bytes alone; else bilinear
};
struct ResizedCropStep {
  image_ops::Box box;
  std::int64_t size;
};
struct EraseStep {
  image_ops::Box box;
  std::optional<Rng> noise;  ///< where the noise begins; none: zeros
};
/// For bytes alone.
struct ColourStep {
  enum class Op {
    kBrightness,
    kContrast,
    kSaturation,
    kHue,
    kSharpness,
    kPosterize,
    kSolarize,
    kInvert,
    kAutocontrast,
    kEqualize,
  };
  Op op;
  double amount;  ///< what the operation of that name takes, if anything
};

using DrawnStep =
    std::variant<ShiftStep, FlipStep, WarpStep, ResizedCropStep, EraseStep, ColourStep>;

/// Applies a step in place. O(C·H·W).
template <class T>
void apply_step(const DrawnStep& step, Image<T>& image);

/// The next value of a box that is erased with noise, one number of `rng` each: uniform in [0, 1),
/// or a uniform byte. The values are numbered by channel, row and column of the box.
template <class T>
T erasing_noise(Rng& rng) {
  if constexpr (std::is_same_v<T, std::uint8_t>) {
    return static_cast<std::uint8_t>(rng.next() >> 56);
  } else {
    return static_cast<T>(rng.uniform());
  }
}

}  // namespace weightsmith
