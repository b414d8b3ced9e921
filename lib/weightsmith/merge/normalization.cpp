#include "weightsmith/merge/normalization.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/jit/ir/ir.h>

#include <algorithm>
#include <map>

#include "weightsmith/core/error.h"
#include "weightsmith/core/stop.h"
#include "weightsmith/model/graph_runner.h"

namespace weightsmith {
namespace {

/// Mean and sum of squared deviations of one layer's inputs, a channel each, over the batches so
/// far.
struct Moments {
  at::Tensor running_mean;  // of the network
  at::Tensor running_var;
  at::Tensor mean;    // (C) double
  at::Tensor square;  // (C) double
  double count = 0;

  /// Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983, equation 2.1.
  void add(const at::Tensor& input) {
    std::vector<std::int64_t> others;
    for (std::int64_t d = 0; d < input.dim(); ++d)
      if (d != 1) others.push_back(d);
    const auto n = static_cast<double>(input.numel() / input.size(1));
    const auto [batch_var, batch_mean] =
        at::var_mean(input.to(at::kFloat), others, /*unbiased=*/false);
    const at::Tensor new_mean = batch_mean.to(at::kDouble);
    const at::Tensor new_square = batch_var.to(at::kDouble) * n;
    if (count == 0) {
      mean = new_mean;
      square = new_square;
    } else {
      const at::Tensor delta = new_mean - mean;
      square += new_square + delta * delta * (count * n / (count + n));
      mean += delta * (n / (count + n));
    }
    count += n;
  }

  void store() const {
    running_mean.copy_(mean);
    running_var.copy_(square / std::max(count - 1.0, 1.0));
  }
};

/// Collects the inputs of every batch norm and lets each batch be normalised by its own statistics.
class BatchNormObserver final : public NodeObserver {
 public:
  explicit BatchNormObserver(const FlatGraph& graph) : graph_(graph) {}

  void before(std::size_t number, std::vector<c10::IValue>& inputs) override {
    if (graph_.nodes()[number]->kind() != c10::Symbol::fromQualString("aten::batch_norm")) return;
    // (input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn)
    if (inputs[3].isNone() || inputs[4].isNone()) return;
    const at::Tensor running_mean = inputs[3].toTensor();
    Moments& moments = layers_[running_mean.unsafeGetTensorImpl()];
    if (!moments.running_mean.defined()) {
      moments.running_mean = running_mean;
      moments.running_var = inputs[4].toTensor();
    }
    moments.add(inputs[0].toTensor());
    inputs[3] = c10::IValue();
    inputs[4] = c10::IValue();
    inputs[5] = true;
  }

  std::int64_t layers() const { return static_cast<std::int64_t>(layers_.size()); }
  void store() const {
    for (const auto& [key, moments] : layers_) moments.store();
  }

 private:
  const FlatGraph& graph_;
  std::map<const c10::TensorImpl*, Moments> layers_;
};

}  // namespace

std::int64_t reset_batch_norm(ScriptModel& model, const Dataset& data, std::int64_t batch_size,
                              at::Device device, Progress& progress) {
  const at::NoGradGuard no_grad;
  model.train(false);
  const GraphRunner runner(model.module(), model.where());
  BatchNormObserver observer(runner.graph());
  Phase phase(progress, "reset batch norm", data.size(), "images");
  for (std::int64_t begin = 0; begin < data.size(); begin += batch_size) {
    stop_here_if_requested();
    const std::int64_t count = std::min(batch_size, data.size() - begin);
    if (count == 1 && begin > 0) break;
    runner.run({model.preprocessed(normalised_batch(data, begin, count).to(device))}, &observer);
    if (observer.layers() == 0)
      return 0;  // one batch was enough to see that there is no batch norm
    phase.update(begin + count);
  }
  observer.store();
  return observer.layers();
}

}  // namespace weightsmith
