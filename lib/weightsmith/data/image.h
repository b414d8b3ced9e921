#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace weightsmith {

/// One image (C, H, W) of bytes, or of float values as they are stored (before any normalisation;
/// 0 is black), with a second buffer that operations write to before they swap(): nothing is
/// allocated once both have their size.
template <class T>
class Image {
 public:
  std::int64_t channels = 0;
  std::int64_t height = 0;
  std::int64_t width = 0;

  /// Gives the image another shape; values are undefined afterwards.
  void reshape(std::int64_t c, std::int64_t h, std::int64_t w) {
    channels = c;
    height = h;
    width = w;
    values_.resize(static_cast<std::size_t>(numel()));
  }
  std::int64_t numel() const { return channels * height * width; }
  std::int64_t plane() const { return height * width; }
  T* data() { return values_.data(); }
  const T* data() const { return values_.data(); }

  /// Room for `numel` values; kept until the next call.
  T* spare(std::int64_t numel) {
    spare_.resize(static_cast<std::size_t>(numel));
    return spare_.data();
  }
  /// Makes what was written to spare() the image.
  void swap() { std::swap(values_, spare_); }

 private:
  std::vector<T> values_;
  std::vector<T> spare_;
};

}  // namespace weightsmith
