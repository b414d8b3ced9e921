#pragma once
// Readers of the file formats behind load_dataset. Each returns whole files as they are stored and
// throws Error{kInput} naming the file at fault.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <vector>

#include "weightsmith/data/data_config.h"

namespace weightsmith::formats {

struct Samples {
  at::Tensor images;                         ///< (N, C, H, W) uint8
  at::Tensor labels;                         ///< (N) int64
  std::vector<std::filesystem::path> files;  ///< that were read
};

/// The official binary version of CIFAR-10 in `folder` (or in its `cifar-10-batches-bin`).
Samples read_cifar10(const std::filesystem::path& folder, DataConfig::Split split);

/// A pair of IDX files, plain or gzipped: images (N, H, W) or (N, C, H, W) and labels (N).
Samples read_idx(const std::filesystem::path& images, const std::filesystem::path& labels);

/// The same by the MNIST family's file names in `folder`.
Samples read_mnist(const std::filesystem::path& folder, DataConfig::Split split);

}  // namespace weightsmith::formats
