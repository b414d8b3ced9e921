#include "weightsmith/tensor/first_row.h"

#include <ATen/ATen.h>

namespace weightsmith {

std::optional<std::int64_t> first_row_where(const at::Tensor& mask) {
  if (!mask.any().item<bool>()) return std::nullopt;
  return at::nonzero(mask.reshape({mask.size(0), -1}).any(1))[0].item<std::int64_t>();
}

}  // namespace weightsmith
