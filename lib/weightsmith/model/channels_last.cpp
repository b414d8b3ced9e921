#include "weightsmith/model/channels_last.h"

#include <ATen/ATen.h>

#include <exception>

#include "weightsmith/model/find_operator.h"

namespace weightsmith {
namespace {

/// Of the norm of all outputs: orders of summation differ between memory formats.
constexpr double kRounding = 1e-4;

/// Puts a network's buffers back and drops its gradients, whatever happens.
class RestoredNetwork {
 public:
  explicit RestoredNetwork(ScriptModel& model) : model_(model) {
    for (const auto& [name, buffer] : model.buffers()) buffers_.emplace(name, buffer.clone());
  }
  ~RestoredNetwork() {
    const at::NoGradGuard no_grad;
    for (auto& [name, buffer] : model_.buffers()) {
      at::Tensor target = buffer;
      target.copy_(buffers_.at(name));
    }
    for (const auto& [name, parameter] : model_.parameters()) parameter.mutable_grad().reset();
    model_.train(true);
  }
  RestoredNetwork(const RestoredNetwork&) = delete;
  RestoredNetwork& operator=(const RestoredNetwork&) = delete;

 private:
  ScriptModel& model_;
  TensorMap buffers_;
};

}  // namespace

bool gradients_take_channels_last(const ScriptModel& model) {
  return find_operator(model, {"aten::gelu", "aten::gelu_"}).empty();
}

bool takes_channels_last(ScriptModel& model, const at::Tensor& inputs) {
  if (inputs.dim() != 4 || inputs.size(1) == 1 || !gradients_take_channels_last(model))
    return false;
  const RestoredNetwork restored(model);
  const at::Tensor innermost = inputs.contiguous(at::MemoryFormat::ChannelsLast);
  try {
    model.train(false);
    {
      const at::NoGradGuard no_grad;
      const at::Tensor plain = model.forward(inputs).to(at::kDouble);
      const at::Tensor other = model.forward(innermost).to(at::kDouble);
      if (plain.sizes() != other.sizes() ||
          !((plain - other).norm() <= kRounding * plain.norm()).item<bool>())
        return false;
    }
    model.train(true);
    const at::AutoGradMode with_grad(true);
    model.forward(innermost).sum().backward();
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

}  // namespace weightsmith
