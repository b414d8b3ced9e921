#include "weightsmith/model/find_operator.h"

#include <torch/csrc/jit/passes/inliner.h>

namespace weightsmith {
namespace {

std::string find_in(const torch::jit::Block* block, const std::set<std::string>& kinds) {
  for (const torch::jit::Node* node : block->nodes()) {
    const std::string kind = node->kind().toQualString();
    if (kinds.contains(kind)) return kind;
    for (const torch::jit::Block* inner : node->blocks())
      if (std::string found = find_in(inner, kinds); !found.empty()) return found;
  }
  return {};
}

}  // namespace

std::string find_operator(const ScriptModel& model, const std::set<std::string>& kinds) {
  const auto graph = model.module().get_method("forward").graph()->copy();
  torch::jit::Inline(*graph);
  return find_in(graph->block(), kinds);
}

}  // namespace weightsmith
