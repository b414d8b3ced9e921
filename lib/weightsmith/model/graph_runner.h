#pragma once

#include <ATen/core/ivalue.h>
#include <torch/csrc/jit/api/module.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "weightsmith/model/flat_graph.h"

namespace weightsmith {

struct GraphRunnerOptions {
  /// What `torch.is_grad_enabled()` answers inside the network; empty: the truth. Attention layers
  /// take fused operators without gradients, whose inner values nobody can see; `true` keeps them
  /// on the plain path.
  std::optional<bool> is_grad_enabled = true;
  /// Replaces the `training` argument of every batch norm; empty: what the network says. A network
  /// traced in eval mode does not listen to Module::train. Buffers that count batches beside the
  /// operator (num_batches_tracked) do not move for it.
  std::optional<bool> batch_norm_training;
  /// Runs operators outside `aten` and `prim`, and those that touch files or other processes.
  bool trust = false;
};

/// Sees a network's concrete values while it runs. Values are shared with the network, and later
/// nodes may change them in place: copy what must last. Constants are not run, so not shown.
class NodeObserver {
 public:
  virtual ~NodeObserver() = default;
  /// Before node `number` (FlatGraph::nodes) runs on `inputs`, which may be replaced here.
  virtual void before(std::size_t number, std::vector<c10::IValue>& inputs);
  /// After it ran. `if` and loops come after the nodes of their blocks, with `inputs` empty, so
  /// that the values a loop starts from need not outlive its first round.
  virtual void after(std::size_t number, const std::vector<c10::IValue>& inputs,
                     const std::vector<c10::IValue>& outputs);
  /// At a module boundary: the arguments of the call, or its result.
  virtual void at_boundary(const ModuleBoundary& boundary, const std::vector<c10::IValue>& values);
};

/// Runs a TorchScript network node by node: the same operators on the same values as
/// Module::forward, bit for bit (Module::forward may fuse or rewrite nodes after a few runs, which
/// can round differently), with autograd, autocast and any device. Scripted and traced networks,
/// several inputs, optional arguments, results of any type.
///
/// Parameters and attributes such as `training` are read from the module when it runs. A value is
/// freed after its last use, so memory is what an ordinary forward pass takes. run() may be called
/// from several threads at once if the network itself allows it.
class GraphRunner {
 public:
  /// Throws Error{kInput} naming an operator that this LibTorch lacks or that `options` forbids.
  GraphRunner(const torch::jit::Module& module, std::string where, GraphRunnerOptions options = {});
  ~GraphRunner();
  GraphRunner(GraphRunner&&) noexcept;
  GraphRunner& operator=(GraphRunner&&) noexcept;

  /// `inputs`: the arguments of forward without self. Throws Error{kInput} when they do not fit,
  /// when an operator refuses its inputs (naming the submodule and operator) or when the network
  /// raises an exception (with its message); Error{kNumeric} when memory runs out.
  c10::IValue run(std::vector<c10::IValue> inputs, NodeObserver* observer = nullptr) const;

  const FlatGraph& graph() const { return *graph_; }

 private:
  struct Program;
  class Frame;

  std::unique_ptr<FlatGraph> graph_;
  std::unique_ptr<Program> program_;
};

/// True for operators that compute and nothing else: `aten` and `prim` without those that touch
/// files or processes. `name` is qualified ("aten::conv2d").
bool is_allowed_operator(const std::string& name);

}  // namespace weightsmith
