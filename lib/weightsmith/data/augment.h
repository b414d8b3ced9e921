#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <vector>

#include "weightsmith/core/rng.h"
#include "weightsmith/data/augment_policy.h"
#include "weightsmith/data/image.h"

namespace weightsmith {

struct ConfigNode;

/// One random change of an image. A configuration names it ("horizontal_flip") or gives an object
/// with its parameters ({"name": "random_crop", "padding": 1}).
struct Augmentation {
  enum class Name {
    /// Pads every side with `padding` zeros and cuts out the original size at a uniform place.
    kRandomCrop,
    /// Cuts out a box of random `area` and `ratio` (image_ops::random_box) and resizes it to
    /// `size` × `size`.
    kRandomResizedCrop,
    /// Mirrors left and right with `probability`.
    kHorizontalFlip,
    /// Mirrors top and bottom with `probability`.
    kVerticalFlip,
    /// Rotates by a uniform angle in ±`degrees`.
    kRotation,
    /// Rotates by ±`degrees`, scales by 1 ± `scale` and shifts each axis by ± `shift` of its size,
    /// all uniform and independent.
    kAffine,
    /// Brightness, contrast and saturation by a uniform factor in 1 ± their parameter (not below
    /// 0), hue by a uniform turn in ± `hue` of the circle, in random order.
    kColorJitter,
    kAutoAugment,     ///< draw_autoaugment(`policy`)
    kRandAugment,     ///< draw_randaugment(`operations`, `magnitude`, `bins`)
    kTrivialAugment,  ///< draw_trivialaugment(`bins`)
    /// With `probability` overwrites a box of random `area` and `ratio` (Zhong, Zheng, Kang, Li,
    /// Yang, "Random erasing data augmentation", AAAI 2020), with 0 or with noise.
    kRandomErasing,
    /// Mix whole batches (data/batch_mixing.h); they end a pipeline.
    kMixup,
    kCutmix,
  };
  enum class Fill { kZero, kNoise };

  Name name = Name::kRandomCrop;
  std::optional<std::int64_t> padding =
      {};                    ///< default: an eighth of the height, rounded up (32: 4)
  double probability = 0.5;  ///< of a flip or of erasing, in [0, 1]
  double degrees = 15.0;     ///< in [0, 180]
  double shift = 0.125;      ///< in [0, 1]
  double scale = 0.1;        ///< in [0, 1)
  std::vector<double> crop_area = {0.08, 1.0};       ///< shares of the image, in (0, 1]
  std::vector<double> crop_ratio = {0.75, 4.0 / 3};  ///< width over height
  std::optional<std::int64_t> size = {};             ///< side of a crop; default: the height
  double brightness = 0.4;                           ///< of jitter: ≥ 0, like the next two
  double contrast = 0.4;
  double saturation = 0.4;
  double hue = 0.1;  ///< in [0, 1/2]
  AutoAugmentPolicy policy = AutoAugmentPolicy::kCifar10;
  std::int64_t operations = 2;  ///< of randaugment
  std::int64_t magnitude = 9;   ///< of randaugment: below `bins`
  std::int64_t bins = 31;       ///< steps of magnitude, ≥ 2
  std::vector<double> erased_area = {0.02, 0.33};
  std::vector<double> erased_ratio = {0.3, 3.3};
  Fill fill = Fill::kZero;
  double mixup_alpha = 0.2;  ///< both parameters of a beta distribution, > 0
  double cutmix_alpha = 1.0;
};

EnumNames<Augmentation::Name> enum_names(Augmentation::Name);
void from_config(const ConfigNode& node, Augmentation& augmentation);
nlohmann::json to_config(const Augmentation& augmentation);

/// Changes applied one after the other; empty: none.
using Pipeline = std::vector<Augmentation>;

/// Throws Error{kConfig} naming `key` when a mixing of batches is not at the pipeline's end, or is
/// there twice.
void validate_pipeline(const Pipeline& pipeline, const std::string& key);

/// True of those that exist for bytes of one or three channels alone: colour jitter and the
/// policies.
bool needs_colour(const Augmentation& augmentation);

/// How many augmentations from the front are applied to bytes; from there on values are floats, so
/// that the last rotations and resizings of a pipeline need not round.
std::size_t steps_on_bytes(const Pipeline& pipeline);

/// Side of the images that leave a pipeline, for images (H, W) that enter it.
std::array<std::int64_t, 2> augmented_size(const Pipeline& pipeline, std::int64_t height,
                                           std::int64_t width);

/// Draws what an augmentation does to an image (C, H, W) and appends it to `drawn`: nothing, one
/// step or several, one after the other. Those that mix batches do nothing to an image.
void draw_augmentation(const Augmentation& augmentation, std::array<std::int64_t, 3> shape,
                       Rng& rng, std::vector<DrawnStep>& drawn);

/// Draws and applies `steps` in place, of those that mix batches none; the same numbers from `rng`
/// give the same image. With floats no step may need colour.
///
/// Rotations and scalings turn about the image's centre ((H − 1)/2, (W − 1)/2) with the y axis
/// pointing down: an output pixel takes the bilinear value at the point that moves onto it; outside
/// the image is 0. Positive angles turn counter-clockwise as seen. O(C·H·W) an augmentation.
template <class T>
void augment(std::span<const Augmentation> steps, Image<T>& image, Rng& rng);

}  // namespace weightsmith
