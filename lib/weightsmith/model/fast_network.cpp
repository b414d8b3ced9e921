#include "weightsmith/model/fast_network.h"

#include <ATen/ATen.h>
#include <torch/csrc/jit/passes/freeze_module.h>
#include <torch/csrc/jit/passes/frozen_conv_folding.h>

#include <set>
#include <string>

#include "weightsmith/core/error.h"
#include "weightsmith/model/channels_last.h"
#include "weightsmith/model/find_operator.h"
#include "weightsmith/model/jit_runtime.h"

namespace weightsmith {
namespace {

/// What keeps gradients from passing; freezing is made for inference and drops it.
const std::set<std::string> kGradientCuts{"aten::detach", "aten::detach_", "prim::data",
                                          "prim::Enter"};

}  // namespace

ScriptModel fast_network(const ScriptModel& model, const FastNetworkOptions& options) {
  try {
    ScriptModel copy = model.clone();
    copy.train(false);
    if (const std::string cut = find_operator(model, kGradientCuts); !cut.empty())
      throw Error(ErrorKind::kInput, model.where(),
                  "its " + cut + " keeps gradients from passing, which a frozen network would not",
                  "compute it plainly, in float32");
    const bool channels_last = options.channels_last && gradients_take_channels_last(model);
    for (auto& [name, tensor] : copy.state_dict()) {
      at::Tensor value = tensor.detach();
      if (channels_last && value.dim() == 4)
        value = value.contiguous(at::MemoryFormat::ChannelsLast);
      tensor.set_requires_grad(false);
      tensor.set_data(value);
    }
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
    if (channels_last)
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
