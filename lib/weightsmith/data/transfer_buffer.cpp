#include "weightsmith/data/transfer_buffer.h"

#include <ATen/ATen.h>

namespace weightsmith {

at::Tensor TransferBuffer::finish(at::Device device) const {
  at::Tensor bytes = at::empty({static_cast<std::int64_t>(bytes_.size())},
                               at::TensorOptions(at::kByte).pinned_memory(device.is_cuda()));
  if (!bytes_.empty()) std::memcpy(bytes.data_ptr<std::uint8_t>(), bytes_.data(), bytes_.size());
  return bytes;
}

at::Tensor TransferBuffer::get(const at::Tensor& bytes, const Part& part) {
  const auto length = part.count * static_cast<std::int64_t>(c10::elementSize(part.type));
  return bytes.narrow(0, part.offset, length).view(part.type);
}

}  // namespace weightsmith
