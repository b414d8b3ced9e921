#include "weightsmith/data/augment_policy.h"

#include <cmath>

#include "weightsmith/core/error.h"
#include "weightsmith/data/image_ops.h"

namespace weightsmith {
namespace {

using enum PolicyOp;

/// What RandAugment and TrivialAugment draw from: all but kInvert.
constexpr std::uint64_t kDrawnOps = 14;

/// The map that shears by the tangents tx and ty about the upper left corner of the image.
image_ops::Warp inverse_shear(double tx, double ty, std::int64_t height, std::int64_t width) {
  const double half_w = 0.5 * static_cast<double>(width);
  const double half_h = 0.5 * static_cast<double>(height);
  return {1, tx, ty, 1, tx * half_h, ty * half_w};
}

/// `bins` values from `first` to `last`, in single precision, from both ends towards the middle.
std::vector<float> evenly_spaced(float first, float last, std::int64_t bins) {
  std::vector<float> values(static_cast<std::size_t>(bins));
  const float step = (last - first) / static_cast<float>(bins - 1);
  for (std::int64_t i = 0; i < bins; ++i)
    values[i] = i < bins / 2 ? first + step * static_cast<float>(i)
                             : last - step * static_cast<float>(bins - 1 - i);
  return values;
}

constexpr std::optional<int> kNone = std::nullopt;

constexpr SubPolicy kCifar10Policy[] = {
    {{{kInvert, 0.1, kNone}, {kContrast, 0.2, 6}}},
    {{{kRotate, 0.7, 2}, {kTranslateX, 0.3, 9}}},
    {{{kSharpness, 0.8, 1}, {kSharpness, 0.9, 3}}},
    {{{kShearY, 0.5, 8}, {kTranslateY, 0.7, 9}}},
    {{{kAutoContrast, 0.5, kNone}, {kEqualize, 0.9, kNone}}},
    {{{kShearY, 0.2, 7}, {kPosterize, 0.3, 7}}},
    {{{kColor, 0.4, 3}, {kBrightness, 0.6, 7}}},
    {{{kSharpness, 0.3, 9}, {kBrightness, 0.7, 9}}},
    {{{kEqualize, 0.6, kNone}, {kEqualize, 0.5, kNone}}},
    {{{kContrast, 0.6, 7}, {kSharpness, 0.6, 5}}},
    {{{kColor, 0.7, 7}, {kTranslateX, 0.5, 8}}},
    {{{kEqualize, 0.3, kNone}, {kAutoContrast, 0.4, kNone}}},
    {{{kTranslateY, 0.4, 3}, {kSharpness, 0.2, 6}}},
    {{{kBrightness, 0.9, 6}, {kColor, 0.2, 8}}},
    {{{kSolarize, 0.5, 2}, {kInvert, 0.0, kNone}}},
    {{{kEqualize, 0.2, kNone}, {kAutoContrast, 0.6, kNone}}},
    {{{kEqualize, 0.2, kNone}, {kEqualize, 0.6, kNone}}},
    {{{kColor, 0.9, 9}, {kEqualize, 0.6, kNone}}},
    {{{kAutoContrast, 0.8, kNone}, {kSolarize, 0.2, 8}}},
    {{{kBrightness, 0.1, 3}, {kColor, 0.7, 0}}},
    {{{kSolarize, 0.4, 5}, {kAutoContrast, 0.9, kNone}}},
    {{{kTranslateY, 0.9, 9}, {kTranslateY, 0.7, 9}}},
    {{{kAutoContrast, 0.9, kNone}, {kSolarize, 0.8, 3}}},
    {{{kEqualize, 0.8, kNone}, {kInvert, 0.1, kNone}}},
    {{{kTranslateY, 0.7, 9}, {kAutoContrast, 0.9, kNone}}},
};

constexpr SubPolicy kImageNetPolicy[] = {
    {{{kPosterize, 0.4, 8}, {kRotate, 0.6, 9}}},
    {{{kSolarize, 0.6, 5}, {kAutoContrast, 0.6, kNone}}},
    {{{kEqualize, 0.8, kNone}, {kEqualize, 0.6, kNone}}},
    {{{kPosterize, 0.6, 7}, {kPosterize, 0.6, 6}}},
    {{{kEqualize, 0.4, kNone}, {kSolarize, 0.2, 4}}},
    {{{kEqualize, 0.4, kNone}, {kRotate, 0.8, 8}}},
    {{{kSolarize, 0.6, 3}, {kEqualize, 0.6, kNone}}},
    {{{kPosterize, 0.8, 5}, {kEqualize, 1.0, kNone}}},
    {{{kRotate, 0.2, 3}, {kSolarize, 0.6, 8}}},
    {{{kEqualize, 0.6, kNone}, {kPosterize, 0.4, 6}}},
    {{{kRotate, 0.8, 8}, {kColor, 0.4, 0}}},
    {{{kRotate, 0.4, 9}, {kEqualize, 0.6, kNone}}},
    {{{kEqualize, 0.0, kNone}, {kEqualize, 0.8, kNone}}},
    {{{kInvert, 0.6, kNone}, {kEqualize, 1.0, kNone}}},
    {{{kColor, 0.6, 4}, {kContrast, 1.0, 8}}},
    {{{kRotate, 0.8, 8}, {kColor, 1.0, 2}}},
    {{{kColor, 0.8, 8}, {kSolarize, 0.8, 7}}},
    {{{kSharpness, 0.4, 7}, {kInvert, 0.6, kNone}}},
    {{{kShearX, 0.6, 5}, {kEqualize, 1.0, kNone}}},
    {{{kColor, 0.4, 0}, {kEqualize, 0.6, kNone}}},
    {{{kEqualize, 0.4, kNone}, {kSolarize, 0.2, 4}}},
    {{{kSolarize, 0.6, 5}, {kAutoContrast, 0.6, kNone}}},
    {{{kInvert, 0.6, kNone}, {kEqualize, 1.0, kNone}}},
    {{{kColor, 0.6, 4}, {kContrast, 1.0, 8}}},
    {{{kEqualize, 0.8, kNone}, {kEqualize, 0.6, kNone}}},
};

DrawnOp draw_sign(PolicyOp op, double magnitude, Rng& rng) {
  return {op, is_signed(op) && rng.below(2) == 0 ? -magnitude : magnitude};
}

}  // namespace

EnumNames<PolicyOp> enum_names(PolicyOp) {
  return {{kIdentity, "Identity"},         {kShearX, "ShearX"},         {kShearY, "ShearY"},
          {kTranslateX, "TranslateX"},     {kTranslateY, "TranslateY"}, {kRotate, "Rotate"},
          {kBrightness, "Brightness"},     {kColor, "Color"},           {kContrast, "Contrast"},
          {kSharpness, "Sharpness"},       {kPosterize, "Posterize"},   {kSolarize, "Solarize"},
          {kAutoContrast, "AutoContrast"}, {kEqualize, "Equalize"},     {kInvert, "Invert"}};
}

EnumNames<AutoAugmentPolicy> enum_names(AutoAugmentPolicy) {
  return {{AutoAugmentPolicy::kCifar10, "cifar10"}, {AutoAugmentPolicy::kImageNet, "imagenet"}};
}

std::optional<DrawnStep> policy_step(PolicyOp op, double magnitude, std::int64_t height,
                                     std::int64_t width) {
  using Op = ColourStep::Op;
  const auto pixels = -static_cast<std::int64_t>(magnitude);
  switch (op) {
    case kIdentity:
      return std::nullopt;
    case kShearX:
      return WarpStep{inverse_shear(magnitude, 0, height, width), true};
    case kShearY:
      return WarpStep{inverse_shear(0, magnitude, height, width), true};
    case kTranslateX:
      return ShiftStep{0, pixels};
    case kTranslateY:
      return ShiftStep{pixels, 0};
    case kRotate:
      return WarpStep{image_ops::inverse_affine(magnitude, 1, 0, 0), true};
    case kBrightness:
      return ColourStep{Op::kBrightness, 1 + magnitude};
    case kColor:
      return ColourStep{Op::kSaturation, 1 + magnitude};
    case kContrast:
      return ColourStep{Op::kContrast, 1 + magnitude};
    case kSharpness:
      return ColourStep{Op::kSharpness, 1 + magnitude};
    case kPosterize:
      return ColourStep{Op::kPosterize, magnitude};
    case kSolarize:
      return ColourStep{Op::kSolarize, magnitude};
    case kAutoContrast:
      return ColourStep{Op::kAutocontrast, 0};
    case kEqualize:
      return ColourStep{Op::kEqualize, 0};
    case kInvert:
      return ColourStep{Op::kInvert, 0};
  }
  return std::nullopt;
}

bool is_signed(PolicyOp op) { return op >= kShearX && op <= kSharpness; }

std::vector<float> policy_magnitudes(PolicyOp op, std::int64_t bins, bool wide, std::int64_t height,
                                     std::int64_t width) {
  WS_CHECK(bins >= 2);
  const auto up_to = [&](double narrow_most, double wide_most) {
    return evenly_spaced(0, static_cast<float>(wide ? wide_most : narrow_most), bins);
  };
  switch (op) {
    case kShearX:
    case kShearY:
      return up_to(0.3, 0.99);
    case kTranslateX:
      return up_to(150.0 / 331.0 * static_cast<double>(width), 32);
    case kTranslateY:
      return up_to(150.0 / 331.0 * static_cast<double>(height), 32);
    case kRotate:
      return up_to(30, 135);
    case kBrightness:
    case kColor:
    case kContrast:
    case kSharpness:
      return up_to(0.9, 0.99);
    case kPosterize: {
      std::vector<float> bits;
      const double lost = wide ? 6 : 4;
      for (std::int64_t i = 0; i < bins; ++i)
        bits.push_back(static_cast<float>(
            8 - std::nearbyint(static_cast<double>(i) / (static_cast<double>(bins - 1) / lost))));
      return bits;
    }
    case kSolarize:
      return evenly_spaced(255, 0, bins);
    case kIdentity:
    case kAutoContrast:
    case kEqualize:
    case kInvert:
      break;
  }
  return {0.0F};
}

std::span<const SubPolicy> autoaugment_policy(AutoAugmentPolicy policy) {
  if (policy == AutoAugmentPolicy::kCifar10) return kCifar10Policy;
  return kImageNetPolicy;
}

std::vector<DrawnOp> draw_autoaugment(AutoAugmentPolicy policy, std::int64_t height,
                                      std::int64_t width, Rng& rng) {
  constexpr std::int64_t kBins = 10;
  const auto policies = autoaugment_policy(policy);
  std::vector<DrawnOp> drawn;
  for (const PolicyStep& step : policies[rng.below(policies.size())]) {
    if (rng.uniform() >= step.probability) continue;
    const auto magnitudes = policy_magnitudes(step.op, kBins, false, height, width);
    drawn.push_back(draw_sign(step.op, magnitudes.at(step.magnitude.value_or(0)), rng));
  }
  return drawn;
}

std::vector<DrawnOp> draw_randaugment(std::int64_t operations, std::int64_t magnitude,
                                      std::int64_t bins, std::int64_t height, std::int64_t width,
                                      Rng& rng) {
  WS_CHECK(magnitude >= 0 && magnitude < bins);
  std::vector<DrawnOp> drawn;
  for (std::int64_t i = 0; i < operations; ++i) {
    const auto op = static_cast<PolicyOp>(rng.below(kDrawnOps));
    const auto magnitudes = policy_magnitudes(op, bins, false, height, width);
    drawn.push_back(draw_sign(op, magnitudes.size() == 1 ? 0 : magnitudes[magnitude], rng));
  }
  return drawn;
}

DrawnOp draw_trivialaugment(std::int64_t bins, std::int64_t height, std::int64_t width, Rng& rng) {
  const auto op = static_cast<PolicyOp>(rng.below(kDrawnOps));
  const auto magnitudes = policy_magnitudes(op, bins, true, height, width);
  return draw_sign(op, magnitudes[rng.below(magnitudes.size())], rng);
}

}  // namespace weightsmith
