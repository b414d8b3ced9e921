#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace weightsmith {

/// Arrays that go to a device together, in one transfer.
class TransferBuffer {
 public:
  /// Where an array stands; `count` values.
  struct Part {
    std::int64_t offset = 0;
    std::int64_t count = 0;
    at::ScalarType type = at::kByte;
  };

  /// Appends an array, whose numbers may be of any type that tensors know.
  template <class T>
  Part add(std::span<const T> values) {
    constexpr std::size_t kAlignment = 8;  // of the largest type
    bytes_.resize((bytes_.size() + kAlignment - 1) / kAlignment * kAlignment);
    const Part part{static_cast<std::int64_t>(bytes_.size()),
                    static_cast<std::int64_t>(values.size()), c10::CppTypeToScalarType<T>::value};
    bytes_.resize(bytes_.size() + values.size_bytes());
    if (!values.empty())
      std::memcpy(bytes_.data() + part.offset, values.data(), values.size_bytes());
    return part;
  }
  template <class T>
  Part add(const std::vector<T>& values) {
    return add(std::span<const T>(values));
  }

  /// All of it on the CPU: (bytes) uint8, and where it will go to a GPU in memory that the GPU
  /// reads while the CPU goes on.
  at::Tensor finish(at::Device device) const;

  /// An array of what finish() made, there or on another device: (count), sharing its memory.
  static at::Tensor get(const at::Tensor& bytes, const Part& part);

 private:
  std::vector<std::byte> bytes_;
};

}  // namespace weightsmith
