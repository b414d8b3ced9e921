#include "weightsmith/model/fast_network.h"

#include <ATen/ATen.h>
#include <torch/csrc/jit/passes/freeze_module.h>
#include <torch/csrc/jit/passes/frozen_conv_folding.h>
#include <torch/csrc/jit/passes/inliner.h>

#include <array>
#include <string>

#include "weightsmith/core/error.h"
#include "weightsmith/model/jit_runtime.h"

namespace weightsmith {
namespace {

/// The first operator that keeps gradients from passing, or null. Freezing is made for inference
/// and drops them.
const torch::jit::Node* gradient_cut(const torch::jit::Block* block) {
  static const std::array kCuts{
      c10::Symbol::fromQualString("aten::detach"), c10::Symbol::fromQualString("aten::detach_"),
      c10::Symbol::fromQualString("prim::data"), c10::Symbol::fromQualString("prim::Enter")};
  for (const torch::jit::Node* node : block->nodes()) {
    for (const c10::Symbol cut : kCuts)
      if (node->kind() == cut) return node;
    for (const torch::jit::Block* inner : node->blocks())
      if (const torch::jit::Node* found = gradient_cut(inner)) return found;
  }
  return nullptr;
}

}  // namespace

ScriptModel fast_network(const ScriptModel& model, const FastNetworkOptions& options) {
  try {
    ScriptModel copy = model.clone();
    copy.train(false);
    for (auto& [name, tensor] : copy.state_dict()) {
      at::Tensor value = tensor.detach();
      if (options.channels_last && value.dim() == 4)
        value = value.contiguous(at::MemoryFormat::ChannelsLast);
      tensor.set_requires_grad(false);
      tensor.set_data(value);
    }
    const auto whole = copy.module().get_method("forward").graph()->copy();
    torch::jit::Inline(*whole);
    if (const torch::jit::Node* cut = gradient_cut(whole->block()))
      throw Error(ErrorKind::kInput, model.where(),
                  std::string("its ") + cut->kind().toQualString() +
                      " keeps gradients from passing, which a frozen network would not",
                  "compute it plainly, in float32");
    torch::jit::Module frozen = torch::jit::freeze_module(copy.module());
    auto graph = frozen.get_method("forward").graph();
    torch::jit::FoldFrozenConvBatchnorm(graph);
    if (options.bfloat16) {
      // Constants are converted behind folding, which is better done in float32.
      for (torch::jit::Node* node : graph->nodes())
        if (node->kind() == c10::prim::Constant && node->hasAttribute(c10::attr::value) &&
            node->kindOf(c10::attr::value) == torch::jit::AttributeKind::t &&
            node->t(c10::attr::value).scalar_type() == at::kFloat)
          node->t_(c10::attr::value, node->t(c10::attr::value).to(at::kBFloat16));
    }
    torch::jit::Module outer("FastNetwork");
    outer.register_module("network", frozen);
    // TorchScript written in C++ knows data types and memory formats by their numbers only.
    const auto number = [](auto value) { return std::to_string(static_cast<int>(value)); };
    std::string source = "def forward(self, x):\n";
    if (options.bfloat16) source += "    x = x.to(" + number(at::kBFloat16) + ")\n";
    if (options.channels_last)
      source += "    if x.dim() == 4:\n        x = x.contiguous(memory_format=" +
                number(at::MemoryFormat::ChannelsLast) + ")\n";
    source += "    y = self.network.forward(x)\n";
    source += options.bfloat16 ? "    return y.to(" + number(at::kFloat) + ")\n" : "    return y\n";
    outer.define(source);
    outer.eval();
    return model.with_network(outer, model.name());
  } catch (...) {
    throw_jit_error(ErrorKind::kInput, model.where(), "it cannot be made faster");
  }
}

}  // namespace weightsmith
