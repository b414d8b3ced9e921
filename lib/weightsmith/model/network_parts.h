#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/jit/api/module.h>

#include <cstdint>
#include <string>
#include <vector>

#include "weightsmith/model/flat_graph.h"

namespace weightsmith {

/// A network as two that run one after the other: network(x...) = head(trunk(x...)).
struct NetworkParts {
  torch::jit::Module trunk;  ///< forward takes the network's arguments and returns one tensor
  torch::jit::Module head;   ///< forward takes that tensor and returns what the network returned
};

/// Cuts a network behind the call of submodule `until` ("layer2", "encoder.layers.3"). The cut is
/// well defined when one tensor crosses it: everything that the network computes afterwards depends
/// on what came before only through the submodule's result. Constants, attributes, and what is
/// computed from them alone, may be used on both sides.
///
/// The parts hold the parameters and buffers that they use, under the names that these have in the
/// network, and share the tensors with it; one used on both sides is in both. The trunk hands out a
/// copy, which no head can spoil. They are scripted modules of the same operators, so everything
/// that works on a TorchScript network works on them. `module` must outlive them (they may use
/// classes that it defines).
///
/// Throws Error{kInput} naming `where`, the submodule and the reason (the network does not call it,
/// calls it twice, in a loop or under a condition; its result is no tensor; another value crosses,
/// and which; nothing is left on one side), with the submodules behind which it can be cut.
NetworkParts cut_network(const torch::jit::Module& module, const std::string& where,
                         const std::string& until);

/// The submodules that cut_network can cut a network behind, in order of their calls.
std::vector<std::string> possible_cuts(const torch::jit::Module& module, const std::string& where);

/// A copy of `trunk` that reads each element of its result by a weight of its own: forward returns
/// sum(result · weight) a sample (B), `weight` being a parameter of the returned name in the shape
/// of a sample's result. Nodes keep their numbers, and the first one behind them reads the result.
struct ProbedNetwork {
  torch::jit::Module network;
  std::string parameter;
  std::string tap;  ///< of the trunk's result, in the trunk itself (model/taps.h)
};
ProbedNetwork add_probe(const torch::jit::Module& trunk, const std::string& where,
                        const at::Tensor& weight);

/// The elements of the trunk's result, along one dimension, that a head reads: int64, of any
/// length.
struct Selection {
  std::int64_t dim = 0;
  at::Tensor index;
};

/// A head and what it reads of the trunk's result: one selection after another; empty: everything.
struct HeadPart {
  torch::jit::Module head;
  std::vector<Selection> reads;
};

/// One network of a trunk and its heads: forward(x...) runs the trunk once and returns a tuple of
/// the heads' results. Submodules: `trunk`, `heads.0`, `heads.1`, ...; buffers `units.0.1` hold the
/// index of head 0 along dimension 1. The parts are shared, not copied.
torch::jit::Module join_network(const torch::jit::Module& trunk,
                                const std::vector<HeadPart>& heads);
/// The same for one head: forward returns its result.
torch::jit::Module join_network(const torch::jit::Module& trunk, const HeadPart& head);

}  // namespace weightsmith
