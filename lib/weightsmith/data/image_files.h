#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

#include "weightsmith/data/formats.h"

namespace weightsmith {

/// Images of a folder of which only some are kept decoded: (N, 3, H, W) uint8. The others are
/// decoded each time that they are used. What is read does not depend on which are kept.
class ImageFiles {
 public:
  /// Sound images that `squaring` brings to one size, and the first so many of them as they come
  /// out: `kept` (M, 3, H, W) uint8, M ≤ N.
  ImageFiles(std::vector<std::filesystem::path> files, formats::Squaring squaring, at::Tensor kept);

  std::int64_t size() const { return static_cast<std::int64_t>(order_.size()); }
  /// (3, H, W)
  std::vector<std::int64_t> shape() const;
  std::int64_t bytes_each() const;
  /// What the images kept take.
  std::int64_t kept_bytes() const;

  /// Copies image `index` to `out`, bytes_each() bytes. Throws Error{kInput} naming the file when
  /// it has been damaged, has gone or has another size since it was checked. May be called from
  /// several threads.
  void read(std::int64_t index, std::uint8_t* out) const;

  /// The images of `indices`, in that order; those kept are shared.
  ImageFiles subset(const std::vector<std::int64_t>& indices) const;

 private:
  struct Store {
    std::vector<std::filesystem::path> files;
    formats::Squaring squaring;
    at::Tensor kept;
  };
  bool is_kept(std::int64_t number) const { return number < store_->kept.size(0); }

  std::shared_ptr<const Store> store_;
  std::vector<std::int64_t> order_;  // numbers in the store
};

}  // namespace weightsmith
