#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

#include "weightsmith/data/augment.h"
#include "weightsmith/data/batch_steps.h"
#include "weightsmith/data/drawn_step.h"
#include "weightsmith/data/image.h"

namespace weightsmith::testing {

/// An image of the values of a tensor (C, H, W).
template <class T>
Image<T> image_of(const at::Tensor& tensor) {
  const at::Tensor values = tensor.contiguous();
  Image<T> image;
  image.reshape(values.size(0), values.size(1), values.size(2));
  std::copy_n(values.data_ptr<T>(), values.numel(), image.data());
  return image;
}

template <class T>
at::Tensor tensor_of(const Image<T>& image) {
  at::Tensor tensor =
      at::empty({image.channels, image.height, image.width}, c10::CppTypeToScalarType<T>::value);
  std::copy_n(image.data(), image.numel(), tensor.data_ptr<T>());
  return tensor;
}

/// steps[i] applied to image i of (B, C, H, W) uint8, one image after the other.
inline at::Tensor applied_singly(const at::Tensor& images,
                                 const std::vector<std::vector<DrawnStep>>& steps) {
  std::vector<at::Tensor> changed;
  for (std::size_t i = 0; i < steps.size(); ++i) {
    Image<std::uint8_t> image = image_of<std::uint8_t>(images[static_cast<std::int64_t>(i)]);
    for (const DrawnStep& step : steps[i]) apply_step(step, image);
    changed.push_back(tensor_of(image));
  }
  return at::stack(changed);
}

/// The same, all images together.
inline at::Tensor applied_together(const at::Tensor& images,
                                   const std::vector<std::vector<DrawnStep>>& steps) {
  BatchSteps batch(images.size(0), {images.size(1), images.size(2), images.size(3)});
  TransferBuffer numbers;
  batch.add(steps, numbers);
  return batch.apply(images.clone(), numbers.finish(at::kCPU));
}

/// An augmentation with its default parameters.
inline Augmentation augmentation(Augmentation::Name name) {
  Augmentation a;
  a.name = name;
  return a;
}

}  // namespace weightsmith::testing
