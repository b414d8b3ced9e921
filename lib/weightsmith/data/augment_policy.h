#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "weightsmith/config/enum_names.h"
#include "weightsmith/core/rng.h"
#include "weightsmith/data/drawn_step.h"

namespace weightsmith {

/// An operation of the augmentation policies. Magnitudes: of shears the tangent, of translations
/// pixels (cut to integers), of rotations degrees counter-clockwise; brightness, colour, contrast
/// and sharpness use the factor 1 + magnitude; posterize the bits kept, solarize the threshold; the
/// others have none. Nearest pixel, black outside.
enum class PolicyOp {
  kIdentity,
  kShearX,
  kShearY,
  kTranslateX,
  kTranslateY,
  kRotate,
  kBrightness,
  kColor,
  kContrast,
  kSharpness,
  kPosterize,
  kSolarize,
  kAutoContrast,
  kEqualize,
  kInvert,
};
EnumNames<PolicyOp> enum_names(PolicyOp);

/// What `op` does to images (H, W) of uint8, as torchvision 0.14 does it to tensors; none of
/// kIdentity.
std::optional<DrawnStep> policy_step(PolicyOp op, double magnitude, std::int64_t height,
                                     std::int64_t width);

/// True where a magnitude is as likely negative as positive: shears, translations, rotations,
/// brightness, colour, contrast, sharpness.
bool is_signed(PolicyOp op);

/// The magnitudes from none to the largest, in `bins` equal steps, of images (H, W): one value, 0,
/// for operations without. The ranges of AutoAugment and RandAugment, and with `wide` those of
/// TrivialAugmentWide. Computed in single precision like torchvision's, so that translations are
/// cut to the same integers.
std::vector<float> policy_magnitudes(PolicyOp op, std::int64_t bins, bool wide, std::int64_t height,
                                     std::int64_t width);

/// One half of a sub-policy of AutoAugment.
struct PolicyStep {
  PolicyOp op;
  double probability;
  std::optional<int> magnitude;  ///< of 0 to 9; none for operations without
};
using SubPolicy = std::array<PolicyStep, 2>;

enum class AutoAugmentPolicy { kCifar10, kImageNet };
EnumNames<AutoAugmentPolicy> enum_names(AutoAugmentPolicy);

/// The 25 sub-policies of Cubuk, Zoph, Mané, Vasudevan, Le, "AutoAugment: learning augmentation
/// strategies from data", CVPR 2019, appendix, tables 7 and 9.
std::span<const SubPolicy> autoaugment_policy(AutoAugmentPolicy policy);

/// A step that was drawn.
struct DrawnOp {
  PolicyOp op;
  double magnitude;
};

/// A uniform sub-policy, each half taken with its probability, signs by a coin. At most two steps.
std::vector<DrawnOp> draw_autoaugment(AutoAugmentPolicy policy, std::int64_t height,
                                      std::int64_t width, Rng& rng);

/// `operations` times a uniform one of the 14 operations (Identity to Equalize; no Invert) with the
/// magnitude number `magnitude` of `bins`, signs by a coin (Cubuk, Zoph, Shlens, Le, "RandAugment:
/// practical automated data augmentation with a reduced search space", NeurIPS 2020).
std::vector<DrawnOp> draw_randaugment(std::int64_t operations, std::int64_t magnitude,
                                      std::int64_t bins, std::int64_t height, std::int64_t width,
                                      Rng& rng);

/// One uniform operation of these 14 with a uniform one of `bins` magnitudes of the wide ranges
/// (Müller, Hutter, "TrivialAugment: tuning-free yet state-of-the-art data augmentation", ICCV
/// 2021).
DrawnOp draw_trivialaugment(std::int64_t bins, std::int64_t height, std::int64_t width, Rng& rng);

}  // namespace weightsmith
