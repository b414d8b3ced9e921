#include "weightsmith/eval/batch_norm_observer.h"

#include <ATen/Functions.h>
#include <spdlog/fmt/fmt.h>
#include <torch/csrc/jit/ir/ir.h>

#include "weightsmith/core/error.h"

namespace weightsmith {

void BatchNormObserver::before(std::size_t number, std::vector<c10::IValue>& inputs) {
  if (graph_.nodes()[number]->kind() != c10::Symbol::fromQualString("aten::batch_norm")) return;
  // (input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn)
  if (inputs[3].isNone() || inputs[4].isNone()) return;
  const at::Tensor running_mean = inputs[3].toTensor();
  Layer& layer = layers_[running_mean.unsafeGetTensorImpl()];
  if (!layer.running_mean.defined()) {
    layer.running_mean = running_mean;
    layer.running_var = inputs[4].toTensor();
    layer.number = number;
  }
  const at::Tensor& input = inputs[0].toTensor();
  const ChannelMoments batch = ChannelMoments::of(input, 1);
  layer.inputs.add(batch);
  // Given the batch's own statistics, the operator need not find them again.
  inputs[3] = batch.mean().to(layer.running_mean.options());
  inputs[4] = batch.variance().to(layer.running_var.options());
  inputs[5] = false;
}

void BatchNormObserver::store() const {
  // The first layer of those in need: those behind it follow.
  const auto first_where = [this](const auto& is_so) {
    const Layer* first = nullptr;
    for (const auto& [key, layer] : layers_)
      if (is_so(layer) && (first == nullptr || layer.number < first->number)) first = &layer;
    return first;
  };
  const auto fail = [this](ErrorKind kind, const Layer& layer, const char* what,
                           const char* remedy) {
    throw Error(kind, fmt::format("{}: {}", graph_.where(), graph_.describe(layer.number)), what,
                remedy);
  };
  if (const Layer* layer = first_where(
          [](const Layer& l) { return !at::isfinite(l.inputs.variance()).all().item<bool>(); }))
    fail(ErrorKind::kNumeric, *layer,
         "its inputs are not finite, so they have no mean and variance",
         "check the data and its normalisation, and the layers before it");
  if (const Layer* layer = first_where([](const Layer& l) { return l.inputs.count() < 2; }))
    fail(ErrorKind::kInput, *layer, "it sees one observation of a channel, which has no variance",
         "at least two observations are needed: give more samples in normalization.data");
  for (const auto& [key, layer] : layers_) {
    layer.running_mean.copy_(layer.inputs.mean());
    layer.running_var.copy_(layer.inputs.unbiased_variance());
  }
}

}  // namespace weightsmith
