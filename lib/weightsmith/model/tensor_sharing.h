#pragma once

#include <torch/csrc/jit/api/module.h>

#include <string>
#include <vector>

namespace weightsmith {

/// Leaves only one kind of sharing in a network: a tensor that stands in several places. Archives
/// know others, which LibTorch's own deepcopy confuses: it takes all tensors of one storage for the
/// first of them.
/// - Tensors that show the same elements in the same order (an LSTM's weights and its flat list of
///   them) become one tensor, also inside lists, dictionaries and objects.
/// - Different views of one storage (slices of a flat vector, a transposed weight) each get memory
///   of their own. What the network computes stays the same; views that overlap are tied no more.
///
/// Returns the qualified names of parameters that were tied by overlapping and are no more, each
/// pair as "a and b". O(number of tensors) but for what is copied.
std::vector<std::string> separate_views(const torch::jit::Module& module);

}  // namespace weightsmith
