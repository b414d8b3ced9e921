#include "weightsmith/data/drawn_step.h"

#include "weightsmith/core/error.h"

namespace weightsmith {
namespace {

template <class T>
void apply(const ShiftStep& step, Image<T>& image) {
  image_ops::shift(image, step.dy, step.dx);
}

template <class T>
void apply(const FlipStep& step, Image<T>& image) {
  step.top_bottom ? image_ops::flip_top_bottom(image) : image_ops::flip_left_right(image);
}

template <class T>
void apply(const WarpStep& step, Image<T>& image) {
  if (!step.nearest) {
    image_ops::warp_bilinear(image, step.map);
  } else if constexpr (std::is_same_v<T, std::uint8_t>) {
    image_ops::warp_nearest(image, step.map);
  } else {
    WS_CHECK(false, "the nearest pixel is taken of bytes");
  }
}

template <class T>
void apply(const ResizedCropStep& step, Image<T>& image) {
  image_ops::resized_crop(image, step.box, step.size);
}

template <class T>
void apply(const EraseStep& step, Image<T>& image) {
  const image_ops::Box& box = step.box;
  std::optional<Rng> noise = step.noise;
  for (std::int64_t c = 0; c < image.channels; ++c) {
    for (std::int64_t y = box.top; y < box.top + box.height; ++y) {
      T* row = image.data() + c * image.plane() + y * image.width + box.left;
      for (T* value = row; value != row + box.width; ++value)
        *value = noise ? erasing_noise<T>(*noise) : T{0};
    }
  }
}

void apply(const ColourStep& step, Image<std::uint8_t>& image) {
  using enum ColourStep::Op;
  switch (step.op) {
    case kBrightness:
      return image_ops::brightness(image, step.amount);
    case kContrast:
      return image_ops::contrast(image, step.amount);
    case kSaturation:
      return image_ops::saturation(image, step.amount);
    case kHue:
      return image_ops::hue(image, step.amount);
    case kSharpness:
      return image_ops::sharpness(image, step.amount);
    case kPosterize:
      return image_ops::posterize(image, static_cast<int>(step.amount));
    case kSolarize:
      return image_ops::solarize(image, step.amount);
    case kInvert:
      return image_ops::invert(image);
    case kAutocontrast:
      return image_ops::autocontrast(image);
    case kEqualize:
      return image_ops::equalize(image);
  }
}

void apply(const ColourStep&, Image<float>&) { WS_CHECK(false, "colours are changed as bytes"); }

}  // namespace

template <class T>
void apply_step(const DrawnStep& step, Image<T>& image) {
  std::visit([&image](const auto& known) { apply(known, image); }, step);
}

template void apply_step(const DrawnStep&, Image<std::uint8_t>&);
template void apply_step(const DrawnStep&, Image<float>&);

}  // namespace weightsmith
