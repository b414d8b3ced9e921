#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>

namespace weightsmith {

/// Tensors by qualified name ("layer1.0.conv1.weight"), in the order of the names.
using TensorMap = std::map<std::string, at::Tensor>;

}  // namespace weightsmith
