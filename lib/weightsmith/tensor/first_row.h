#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace weightsmith {

/// The number of the first row of `mask` (N, ...), bool, that holds a true; nothing where none
/// does. One look at the device where none does, which is the usual case.
std::optional<std::int64_t> first_row_where(const at::Tensor& mask);

}  // namespace weightsmith
