#pragma once

#include <optional>
#include <string>

#include "weightsmith/model/flat_graph.h"

namespace weightsmith {

/// The first point in which two networks compute differently, in words, or nothing: "relu:
/// aten::relu, there aten::tanh". Compared are the operators in their order, what each one reads
/// (parameters and buffers by name, constants and other attributes by value) and the results; names
/// of values and types say nothing. So an attribute of a scripted network equals the same number in
/// a traced one, but a graph that reaches the same result by other operators counts as different,
/// and so do independent operators in another order.
///
/// What acts in training alone (dropout's probability, batch norm's momentum) and the choice of
/// kernels (cudnn, tf32) may differ. Whether a layer is in training mode may not: put both networks
/// into the same mode first.
std::optional<std::string> graph_difference(const FlatGraph& graph, const FlatGraph& other);

}  // namespace weightsmith
