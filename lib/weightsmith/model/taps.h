#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/jit/api/module.h>

#include <cstddef>
#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

#include "weightsmith/model/graph_runner.h"

namespace weightsmith {

/// Observes chosen values inside a network while it runs. A tap is one of
/// - `PARAM/input`, `PARAM/output`: what the operator that consumes a parameter or buffer
///   ("layer1.0.conv1.weight", "bn1.running_mean") receives as data, and its result. The data are
///   the operator's first tensor that is not itself a parameter or computed from parameters alone
///   (a transposed, cast or sliced weight stands for the weight). A parameter used several times,
///   or shared under several names, is observed at each use.
/// - `MODULE/input`, `MODULE/output`: the first tensor among the arguments of a submodule's call
///   ("layer1.0"), and the first tensor of its result. Submodules whose `forward` is not called
///   (containers used item by item) have no such taps: FlatGraph::called_modules.
/// - `#N/input.K`, `#N/output.K`: value K of node N (FlatGraph::nodes); K may be left out for 0.
class TapSet {
 public:
  using Observe = std::function<void(std::size_t tap, const at::Tensor& value)>;

  /// `where` names the model in errors, and `owners`, one a tap, what asks for the tap; empty: the
  /// model alone is named. Throws Error{kInput} naming a tap that the network does not have and the
  /// nearest that it has; else as GraphRunner.
  TapSet(const torch::jit::Module& module, const std::vector<std::string>& taps, std::string where,
         GraphRunnerOptions options = {}, std::vector<std::string> owners = {});

  /// Runs the network once on the arguments of forward and returns its result. `observe` is called
  /// with a tap's index while the operator runs: what it sees is what the operator sees, but later
  /// operators may change the tensor in place, so copy or reduce it there and then. No activation
  /// is kept alive for the taps. Throws Error{kInput} naming a tap that was not reached (it stands
  /// in a branch not taken) or is no tensor; else as GraphRunner::run.
  c10::IValue run(std::vector<c10::IValue> inputs, const Observe& observe) const;

  std::size_t size() const { return taps_.size(); }
  const GraphRunner& runner() const { return runner_; }

 private:
  class Observer;

  /// Indices of the taps at one place.
  struct Place {
    std::vector<std::size_t> input;
    std::vector<std::size_t> output;
  };
  struct NodeTap {
    std::size_t tap;
    bool is_input;
    std::size_t value;
  };

  [[noreturn]] void fail(std::size_t index, const std::string& what,
                         const std::string& remedy = {}) const;
  void add(std::size_t index, const std::vector<std::string>& known);
  bool add_node_tap(std::size_t index, const std::string& node, const std::string& side);

  std::vector<std::string> taps_;
  std::vector<std::string> owners_;
  GraphRunner runner_;
  std::vector<bool> computes_;  // by node number: an operator that makes tensors
  std::unordered_map<std::string, Place> parameters_;
  std::unordered_map<std::string, Place> modules_;
  std::unordered_map<std::size_t, std::vector<NodeTap>> nodes_;
};

/// Every tap of parameters, buffers and called submodules.
std::vector<std::string> list_taps(const FlatGraph& graph);

}  // namespace weightsmith
