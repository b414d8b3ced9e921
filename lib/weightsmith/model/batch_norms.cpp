#include "weightsmith/model/batch_norms.h"

#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/ir/ir.h>

namespace weightsmith {

BatchNormUses batch_norm_uses(const FlatGraph& graph) {
  // (input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn)
  constexpr std::size_t kRunningMean = 3;
  constexpr std::size_t kTraining = 5;
  BatchNormUses uses;
  for (const torch::jit::Node* node : graph.nodes()) {
    if (node->kind() != c10::Symbol::fromQualString("aten::batch_norm") ||
        node->input(kRunningMean)->mustBeNone())
      continue;
    ++uses.all;
    const auto training = torch::jit::toIValue(node->input(kTraining));
    if (training && training->isBool() && !training->toBool()) ++uses.frozen;
  }
  return uses;
}

}  // namespace weightsmith
