#include "weightsmith/model/flat_graph.h"

#include <spdlog/fmt/fmt.h>
#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/ir/ir.h>
#include <torch/csrc/jit/passes/inliner.h>

#include <algorithm>

#include "weightsmith/core/error.h"

namespace weightsmith {
namespace {

using torch::jit::Block;
using torch::jit::Node;
using torch::jit::Value;
namespace prim = c10::prim;
namespace attr = c10::attr;

/// The path of a module that a chain of attributes leads to from the graph's first input.
std::string module_path(const Value* value) {
  std::vector<std::string> names;
  while (value->node()->kind() == prim::GetAttr) {
    names.push_back(value->node()->s(attr::name));
    value = value->node()->input(0);
  }
  std::string path;
  for (auto it = names.rbegin(); it != names.rend(); ++it) path += (path.empty() ? "" : ".") + *it;
  return path;
}

/// The submodule whose `forward` a node calls, else "".
std::string called_module(const Node* node) {
  if (node->kind() != prim::CallMethod || node->s(attr::name) != "forward") return "";
  const auto type = node->input(0)->type()->cast<c10::ClassType>();
  return type != nullptr && type->is_module() ? module_path(node->input(0)) : "";
}

std::string callee_name(const Node* node) {
  if (node->kind() == prim::CallMethod)
    return fmt::format("{}.{}", node->input(0)->type()->str(), node->s(attr::name));
  return node->input(0)->type()->str();
}

}  // namespace

FlatGraph::FlatGraph(const torch::jit::Module& module, std::string where)
    : module_(module), where_(std::move(where)) {
  const auto forward = module_.find_method("forward");
  if (!forward)
    throw Error(ErrorKind::kInput, where_, "the module has no forward method",
                "export the whole network, with torch.jit.script or torch.jit.trace");
  try {
    graph_ = torch::jit::toGraphFunction(forward->function()).graph()->copy();
    inline_calls(graph_->block());
  } catch (const c10::Error& e) {
    throw Error(ErrorKind::kInput, where_, e.what_without_backtrace());
  }
  std::vector<std::string> stack{""};
  number_nodes(graph_->block(), stack);
}

void FlatGraph::inline_calls(Block* block) {
  static const auto kEnter = c10::Symbol::fromQualString("weightsmith::enter_module");
  static const auto kLeave = c10::Symbol::fromQualString("weightsmith::leave_module");
  for (Node* node = *block->nodes().begin(); node != block->return_node();) {
    if (node->kind() != prim::CallMethod && node->kind() != prim::CallFunction) {
      for (Block* inner : node->blocks()) inline_calls(inner);
      node = node->next();
      continue;
    }
    torch::jit::GraphFunction* callee = torch::jit::tryToGraphFunction(node);
    if (callee == nullptr)
      throw Error(ErrorKind::kInput, where_,
                  fmt::format("the call of {} cannot be followed: what it runs is not known before "
                              "it does",
                              callee_name(node)),
                  "trace the network instead of scripting it");
    callee->ensure_defined();

    // The node before the callee's first one is the way back to it: the call itself disappears.
    Node* enter = graph_->create(kEnter, node->inputs().slice(1), 0)->insertBefore(node);
    const std::string path = called_module(node);
    if (!path.empty()) {
      boundaries_[enter] = {path, true};
      boundaries_[graph_->create(kLeave, node->outputs(), 0)->insertAfter(node)] = {path, false};
    }
    if (node->kind() == prim::CallFunction) node->removeInput(0);  // the function itself
    torch::jit::inlineCallTo(node, callee, callee->graph().get());
    node = enter->next();
    if (path.empty()) enter->destroy();
  }
}

void FlatGraph::number_nodes(Block* block, std::vector<std::string>& stack) {
  for (Node* node : block->nodes()) {
    if (const ModuleBoundary* b = boundary(node)) {
      if (b->enter) {
        stack.push_back(b->module);
        if (std::find(called_modules_.begin(), called_modules_.end(), b->module) ==
            called_modules_.end())
          called_modules_.push_back(b->module);
      } else {
        stack.pop_back();
      }
      continue;
    }
    numbers_[node] = nodes_.size();
    nodes_.push_back(node);
    modules_.push_back(stack.back());
    for (Block* inner : node->blocks()) number_nodes(inner, stack);
  }
}

std::string FlatGraph::describe(std::size_t number) const {
  const std::string kind = nodes_[number]->kind().toQualString();
  return modules_[number].empty() ? kind : fmt::format("{}: {}", modules_[number], kind);
}

const ModuleBoundary* FlatGraph::boundary(const Node* node) const {
  const auto it = boundaries_.find(node);
  return it == boundaries_.end() ? nullptr : &it->second;
}

}  // namespace weightsmith
