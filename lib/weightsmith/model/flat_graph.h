#pragma once

#include <torch/csrc/jit/api/module.h>

#include <cstddef>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace torch::jit {
struct Block;
struct Graph;
struct Node;
}  // namespace torch::jit

namespace weightsmith {

/// The start or the end of a submodule's `forward` in a FlatGraph: a node of a kind of our own that
/// computes nothing. At the start its inputs are the call's arguments, at the end the call's
/// result.
struct ModuleBoundary {
  std::string module;  ///< "layer1.0"
  bool enter = true;
};

/// A module's `forward` with every function and method call replaced by the callee's nodes; `if`
/// and loop blocks stay. The graph is a copy: the module is shared but not changed.
///
/// Module boundaries are kept for every call of a submodule's `forward` that the graph shows, in
/// scripted and traced modules alike. A container whose children are called one by one
/// (ModuleList), or a module whose parameters are used without calling it, has none.
class FlatGraph {
 public:
  /// `where` names the model in errors. Throws Error{kInput} when the module has no `forward`, or
  /// calls something that has no graph (an interface type, a hook written in Python).
  FlatGraph(const torch::jit::Module& module, std::string where);

  const std::string& where() const { return where_; }
  const torch::jit::Module& module() const { return module_; }
  torch::jit::Graph& graph() const { return *graph_; }

  /// The nodes in preorder (a node before the nodes of its blocks), without module boundaries; a
  /// node's index here is its number. The same archive gives the same numbers.
  const std::vector<torch::jit::Node*>& nodes() const { return nodes_; }
  /// The innermost submodule whose `forward` the node stands in; "" for the network's own.
  const std::string& module_of(std::size_t number) const { return modules_[number]; }
  /// "layer1.0.conv1: aten::conv2d", for errors.
  std::string describe(std::size_t number) const;

  std::size_t number_of(const torch::jit::Node* node) const { return numbers_.at(node); }
  /// The boundary a node stands for, else null.
  const ModuleBoundary* boundary(const torch::jit::Node* node) const;
  /// The submodules with boundaries, in order of their calls, each once.
  const std::vector<std::string>& called_modules() const { return called_modules_; }

 private:
  void inline_calls(torch::jit::Block* block);
  void number_nodes(torch::jit::Block* block, std::vector<std::string>& stack);

  torch::jit::Module module_;
  std::string where_;
  std::shared_ptr<torch::jit::Graph> graph_;
  std::unordered_map<const torch::jit::Node*, ModuleBoundary> boundaries_;
  std::vector<torch::jit::Node*> nodes_;
  std::vector<std::string> modules_;
  std::unordered_map<const torch::jit::Node*, std::size_t> numbers_;
  std::vector<std::string> called_modules_;
};

}  // namespace weightsmith
