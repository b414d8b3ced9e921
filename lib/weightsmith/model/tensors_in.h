#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <vector>

namespace weightsmith {

/// Every defined tensor that a value holds: itself, or inside lists, tuples and dictionaries, in
/// order.
std::vector<at::Tensor> tensors_in(const c10::IValue& value);
std::vector<at::Tensor> tensors_in(const std::vector<c10::IValue>& values);

}  // namespace weightsmith
