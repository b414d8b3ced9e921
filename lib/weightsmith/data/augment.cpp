#include "weightsmith/data/augment.h"

#include <algorithm>
#include <cmath>

#include "weightsmith/config/fields.h"
#include "weightsmith/data/image_ops.h"

namespace weightsmith {

EnumNames<Augmentation::Name> enum_names(Augmentation::Name) {
  using enum Augmentation::Name;
  return {{kRandomCrop, "random_crop"},
          {kRandomResizedCrop, "random_resized_crop"},
          {kHorizontalFlip, "horizontal_flip"},
          {kVerticalFlip, "vertical_flip"},
          {kRotation, "rotation"},
          {kAffine, "affine"},
          {kColorJitter, "color_jitter"},
          {kAutoAugment, "autoaugment"},
          {kRandAugment, "randaugment"},
          {kTrivialAugment, "trivialaugment"},
          {kRandomErasing, "random_erasing"},
          {kMixup, "mixup"},
          {kCutmix, "cutmix"}};
}

EnumNames<Augmentation::Fill> enum_names(Augmentation::Fill) {
  return {{Augmentation::Fill::kZero, "zero"}, {Augmentation::Fill::kNoise, "noise"}};
}

/// Each augmentation has the fields that matter to it, so that a misplaced one is an unknown key.
template <class Fields>
void fields(Fields& f, Augmentation& a) {
  f("name", a.name);
  switch (a.name) {
    case Augmentation::Name::kRandomCrop:
      f("padding", a.padding);
      break;
    case Augmentation::Name::kRandomResizedCrop:
      f("size", a.size);
      f("area", a.crop_area);
      f("ratio", a.crop_ratio);
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
    case Augmentation::Name::kColorJitter:
      f("brightness", a.brightness);
      f("contrast", a.contrast);
      f("saturation", a.saturation);
      f("hue", a.hue);
      break;
    case Augmentation::Name::kAutoAugment:
      f("policy", a.policy);
      break;
    case Augmentation::Name::kRandAugment:
      f("operations", a.operations);
      f("magnitude", a.magnitude);
      f("bins", a.bins);
      break;
    case Augmentation::Name::kTrivialAugment:
      f("bins", a.bins);
      break;
    case Augmentation::Name::kRandomErasing:
      f("probability", a.probability);
      f("area", a.erased_area);
      f("ratio", a.erased_ratio);
      f("fill", a.fill);
      break;
    case Augmentation::Name::kMixup:
      f("alpha", a.mixup_alpha);
      break;
    case Augmentation::Name::kCutmix:
      f("alpha", a.cutmix_alpha);
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
  const auto is_range = [](const std::vector<double>& range, double most) {
    return range.size() == 2 && range[0] > 0 && range[0] <= range[1] && range[1] <= most;
  };
  constexpr double kLargestRatio = 1000;
  require(!a.padding || *a.padding >= 0, "padding must not be negative");
  require(!a.size || *a.size >= 1, "size must be at least 1");
  require(a.probability >= 0 && a.probability <= 1, "probability must lie in [0, 1]");
  require(a.degrees >= 0 && a.degrees <= 180, "degrees must lie in [0, 180]");
  require(a.shift >= 0 && a.shift <= 1, "shift must lie in [0, 1]");
  require(a.scale >= 0 && a.scale < 1, "scale must lie in [0, 1)");
  require(is_range(a.crop_area, 1) && is_range(a.erased_area, 1),
          "area must be two ascending numbers in (0, 1]");
  require(is_range(a.crop_ratio, kLargestRatio) && is_range(a.erased_ratio, kLargestRatio),
          "ratio must be two ascending numbers in (0, 1000]");
  require(a.brightness >= 0 && a.contrast >= 0 && a.saturation >= 0,
          "brightness, contrast and saturation must not be negative");
  require(a.hue >= 0 && a.hue <= 0.5, "hue must lie in [0, 0.5]");
  require(a.operations >= 1, "operations must be at least 1");
  require(a.bins >= 2, "bins must be at least 2");
  require(a.magnitude >= 0 && a.magnitude < a.bins, "magnitude must lie below bins");
  require(a.mixup_alpha > 0 && a.cutmix_alpha > 0, "alpha must be positive");
}

nlohmann::json to_config(const Augmentation& augmentation) { return write_fields(augmentation); }

namespace {

using Name = Augmentation::Name;

bool mixes_batches(const Augmentation& a) {
  return a.name == Name::kMixup || a.name == Name::kCutmix;
}

bool interpolates(const Augmentation& a) {
  return a.name == Name::kRotation || a.name == Name::kAffine || a.name == Name::kRandomResizedCrop;
}

double jitter_factor(double range, Rng& rng) {
  return rng.uniform(std::max(0.0, 1 - range), 1 + range);
}

/// An image that something is drawn for.
struct Shape {
  std::int64_t channels, height, width;
};

template <class Sink>
void draw_jitter(const Augmentation& a, Rng& rng, Sink& sink) {
  using Op = ColourStep::Op;
  const double brightness = jitter_factor(a.brightness, rng);
  const double contrast = jitter_factor(a.contrast, rng);
  const double saturation = jitter_factor(a.saturation, rng);
  const double turn = rng.uniform(-a.hue, a.hue);
  for (const std::int64_t which : random_permutation(4, rng)) {
    if (which == 0 && a.brightness > 0) sink(ColourStep{Op::kBrightness, brightness});
    if (which == 1 && a.contrast > 0) sink(ColourStep{Op::kContrast, contrast});
    if (which == 2 && a.saturation > 0) sink(ColourStep{Op::kSaturation, saturation});
    if (which == 3 && a.hue > 0) sink(ColourStep{Op::kHue, turn});
  }
}

template <class Sink>
void draw_erasing(const Augmentation& a, Shape image, Rng& rng, Sink& sink) {
  if (rng.uniform() >= a.probability) return;
  const auto box =
      image_ops::random_box(rng, image.height, image.width, {a.erased_area[0], a.erased_area[1]},
                            {a.erased_ratio[0], a.erased_ratio[1]});
  if (!box) return;
  if (a.fill == Augmentation::Fill::kZero) {
    sink(EraseStep{*box, std::nullopt});
    return;
  }
  const Rng noise = rng;
  rng.skip(static_cast<std::uint64_t>(image.channels * box->height * box->width));
  sink(EraseStep{*box, noise});
}

template <class Sink>
void draw_policy(const Augmentation& a, Shape image, Rng& rng, Sink& sink) {
  const auto take = [&](const DrawnOp& drawn) {
    if (const auto step = policy_step(drawn.op, drawn.magnitude, image.height, image.width))
      sink(*step);
  };
  if (a.name == Name::kTrivialAugment)
    return take(draw_trivialaugment(a.bins, image.height, image.width, rng));
  for (const DrawnOp& drawn :
       a.name == Name::kAutoAugment
           ? draw_autoaugment(a.policy, image.height, image.width, rng)
           : draw_randaugment(a.operations, a.magnitude, a.bins, image.height, image.width, rng))
    take(drawn);
}

/// Hands each step that is drawn to `sink`.
template <class Sink>
void draw_steps(const Augmentation& a, Shape image, Rng& rng, Sink&& sink) {
  switch (a.name) {
    case Name::kRandomCrop: {
      const std::int64_t padding = a.padding.value_or((image.height + 7) / 8);
      WS_CHECK(padding >= 0);
      const auto offset = [&] {
        return static_cast<std::int64_t>(rng.below(static_cast<std::uint64_t>(2 * padding + 1))) -
               padding;
      };
      const std::int64_t dy = offset();
      const std::int64_t dx = offset();
      sink(ShiftStep{dy, dx});
      break;
    }
    case Name::kRandomResizedCrop: {
      const std::array ratio{a.crop_ratio[0], a.crop_ratio[1]};
      const auto box = image_ops::random_box(rng, image.height, image.width,
                                             {a.crop_area[0], a.crop_area[1]}, ratio);
      sink(ResizedCropStep{box ? *box : image_ops::central_box(image.height, image.width, ratio),
                           a.size.value_or(image.height)});
      break;
    }
    case Name::kHorizontalFlip:
    case Name::kVerticalFlip:
      if (rng.uniform() < a.probability) sink(FlipStep{a.name == Name::kVerticalFlip});
      break;
    case Name::kRotation:
      sink(WarpStep{image_ops::inverse_affine(rng.uniform(-a.degrees, a.degrees), 1, 0, 0), false});
      break;
    case Name::kAffine: {
      const double degrees = rng.uniform(-a.degrees, a.degrees);
      const double scale = 1.0 + rng.uniform(-a.scale, a.scale);
      const double dx = rng.uniform(-a.shift, a.shift) * static_cast<double>(image.width);
      const double dy = rng.uniform(-a.shift, a.shift) * static_cast<double>(image.height);
      sink(WarpStep{image_ops::inverse_affine(degrees, scale, dx, dy), false});
      break;
    }
    case Name::kColorJitter:
      draw_jitter(a, rng, sink);
      break;
    case Name::kAutoAugment:
    case Name::kRandAugment:
    case Name::kTrivialAugment:
      draw_policy(a, image, rng, sink);
      break;
    case Name::kRandomErasing:
      draw_erasing(a, image, rng, sink);
      break;
    case Name::kMixup:
    case Name::kCutmix:
      break;
  }
}

}  // namespace

void validate_pipeline(const Pipeline& pipeline, const std::string& key) {
  const auto first = std::find_if(pipeline.begin(), pipeline.end(), mixes_batches);
  if (!std::all_of(first, pipeline.end(), mixes_batches))
    throw Error(ErrorKind::kConfig, key, "mixup and cutmix mix what the other augmentations made",
                "put them at the end");
  if (pipeline.end() - first > 2 ||
      (pipeline.end() - first == 2 && first->name == std::next(first)->name))
    throw Error(ErrorKind::kConfig, key, "mixes batches twice in the same way",
                "one mixup and one cutmix at most");
}

bool needs_colour(const Augmentation& a) {
  return a.name == Name::kColorJitter || a.name == Name::kAutoAugment ||
         a.name == Name::kRandAugment || a.name == Name::kTrivialAugment;
}

std::size_t steps_on_bytes(const Pipeline& pipeline) {
  const auto last_colour =
      std::find_if(pipeline.rbegin(), pipeline.rend(), [](const Augmentation& a) {
        return needs_colour(a) || a.name == Name::kRandomErasing;  // noise has the range of bytes
      });
  const auto first_float = std::find_if(last_colour.base(), pipeline.end(), interpolates);
  return static_cast<std::size_t>(first_float - pipeline.begin());
}

std::array<std::int64_t, 2> augmented_size(const Pipeline& pipeline, std::int64_t height,
                                           std::int64_t width) {
  for (const Augmentation& a : pipeline)
    if (a.name == Name::kRandomResizedCrop) height = width = a.size.value_or(height);
  return {height, width};
}

void draw_augmentation(const Augmentation& augmentation, std::array<std::int64_t, 3> shape,
                       Rng& rng, std::vector<DrawnStep>& drawn) {
  draw_steps(augmentation, {shape[0], shape[1], shape[2]}, rng,
             [&](const DrawnStep& step) { drawn.push_back(step); });
}

template <class T>
void augment(std::span<const Augmentation> steps, Image<T>& image, Rng& rng) {
  for (const Augmentation& a : steps)
    draw_steps(a, {image.channels, image.height, image.width}, rng,
               [&](const DrawnStep& step) { apply_step(step, image); });
}

template void augment(std::span<const Augmentation>, Image<std::uint8_t>&, Rng&);
template void augment(std::span<const Augmentation>, Image<float>&, Rng&);

}  // namespace weightsmith
