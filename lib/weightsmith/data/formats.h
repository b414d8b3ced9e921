#pragma once
// Readers of the file formats behind load_dataset. Each returns whole files as they are stored and
// throws Error{kInput} naming the file at fault.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "weightsmith/data/data_config.h"

namespace weightsmith {
class Progress;
}

namespace weightsmith::formats {

struct Samples {
  at::Tensor images;                         ///< (N, C, H, W) uint8
  at::Tensor labels;                         ///< (N) int64
  std::vector<std::filesystem::path> files;  ///< that were read
  /// Of the label space, where the format fixes it.
  std::optional<std::int64_t> classes = std::nullopt;
};

/// The official binary version of CIFAR-10 in `folder` (or in its `cifar-10-batches-bin`).
Samples read_cifar10(const std::filesystem::path& folder, DataConfig::Split split);

/// That of CIFAR-100 in `folder` (or in its `cifar-100-binary`), with the fine labels of its
/// records or the coarse ones.
Samples read_cifar100(const std::filesystem::path& folder, DataConfig::Split split, bool coarse);

/// A pair of IDX files, plain or gzipped: images (N, H, W) or (N, C, H, W) and labels (N).
Samples read_idx(const std::filesystem::path& images, const std::filesystem::path& labels);

/// The same by the MNIST family's file names in `folder`.
Samples read_mnist(const std::filesystem::path& folder, DataConfig::Split split);

/// What a folder of images holds, before any is read.
struct ImageList {
  std::vector<std::filesystem::path> files;  ///< by class, then by name
  std::vector<std::int64_t> labels;
  std::int64_t classes = 0;
  std::filesystem::path folder;  ///< the split's
};

/// Lists the images of a split. Throws when there is no folder, no subfolder or no image.
ImageList list_images(const std::filesystem::path& folder, DataConfig::Split split);

/// How images become squares of one size.
struct Squaring {
  std::optional<std::int64_t> resize, crop;  ///< as in DataConfig

  /// (N, C, H, W) uint8 or float32 to the same kind. Throws Error{kInput} naming `where`.
  at::Tensor apply(const at::Tensor& images, const std::string& where) const;
};

/// Reads and squares the images `indices` of a list, each of them, which shows that it can be read,
/// and keeps the first so many that take at most `most_bytes`: (M, 3, H, W) uint8. With `skip`,
/// those that cannot be read are missing in both results and told of in `skipped`; else the first
/// one met is thrown. Beside what it keeps it takes the memory of a few images a thread. Throws
/// Interrupted when a stop was requested.
struct ImageBatch {
  at::Tensor images;               ///< the first of `read`
  std::vector<std::int64_t> read;  ///< those of `indices` that can be read
  std::vector<std::string> skipped;
};
ImageBatch read_images(const ImageList& list, const std::vector<std::int64_t>& indices,
                       const Squaring& squaring, bool skip, double most_bytes,
                       Progress* progress = nullptr);

}  // namespace weightsmith::formats
