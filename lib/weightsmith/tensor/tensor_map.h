#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <vector>

namespace weightsmith {

/// Tensors by qualified name ("layer1.0.conv1.weight"), in the order of the names.
using TensorMap = std::map<std::string, at::Tensor>;

/// How the names and shapes of two maps differ, one entry a name: "w: missing", "w: surplus" or
/// "w: shape [2, 3], [3, 2] wanted", seen from `actual`. Empty when they agree. Data types may
/// differ.
std::vector<std::string> state_differences(const TensorMap& actual, const TensorMap& wanted);

/// "a; b; c and 7 more": at most `limit` of `items`, for error messages.
std::string join_some(const std::vector<std::string>& items, std::size_t limit = 10);

}  // namespace weightsmith
