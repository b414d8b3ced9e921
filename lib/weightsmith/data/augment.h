#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <vector>

#include "weightsmith/core/rng.h"

namespace weightsmith {

struct ConfigNode;

/// One random change of an image. A configuration names it ("horizontal_flip") or gives an object
/// with its parameters ({"name": "random_crop", "padding": 1}).
struct Augmentation {
  enum class Name {
    /// Pads every side with `padding` zeros and cuts out the original size at a uniform place.
    kRandomCrop,
    /// Mirrors left and right with `probability`.
    kHorizontalFlip,
    /// Mirrors top and bottom with `probability`.
    kVerticalFlip,
    /// Rotates by a uniform angle in ±`degrees`.
    kRotation,
    /// Rotates by ±`degrees`, scales by 1 ± `scale` and shifts each axis by ± `shift` of its size,
    /// all uniform and independent.
    kAffine,
  };
  Name name = Name::kRandomCrop;
  std::optional<std::int64_t> padding =
      {};                    ///< default: an eighth of the height, rounded up (32: 4)
  double probability = 0.5;  ///< of a flip, in [0, 1]
  double degrees = 15.0;     ///< in [0, 180]
  double shift = 0.125;      ///< in [0, 1]
  double scale = 0.1;        ///< in [0, 1)
};

void from_config(const ConfigNode& node, Augmentation& augmentation);
nlohmann::json to_config(const Augmentation& augmentation);

/// Changes applied one after the other; empty: none.
using Pipeline = std::vector<Augmentation>;

/// One image (C, H, W) of float values as they are stored (before any normalisation; 0 is black).
struct ImageView {
  float* data;
  std::int64_t channels, height, width;

  std::int64_t numel() const { return channels * height * width; }
};

/// Applies `pipeline` in place; the same numbers from `rng` give the same image. `scratch` is
/// working memory that is kept between calls.
///
/// Rotations and scalings turn about the image's centre ((H − 1)/2, (W − 1)/2) with the y axis
/// pointing down: an output pixel takes the bilinear value at the point that moves onto it; outside
/// the image is 0. Positive angles turn counter-clockwise as seen. O(C·H·W) an augmentation.
void augment(const Pipeline& pipeline, ImageView image, Rng& rng, std::vector<float>& scratch);

}  // namespace weightsmith
