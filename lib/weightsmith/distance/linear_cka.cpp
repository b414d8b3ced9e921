#include "weightsmith/distance/linear_cka.h"

#include <ATen/ATen.h>
#include <torch/csrc/jit/ir/ir.h>

#include <algorithm>
#include <set>
#include <string>

#include "weightsmith/core/error.h"
#include "weightsmith/core/stop.h"
#include "weightsmith/model/graph_runner.h"

namespace weightsmith {
namespace {

/// The data of an operator with weights: its first tensor with a row a sample that is no parameter.
at::Tensor data_of(const std::vector<c10::IValue>& inputs, std::int64_t batch,
                   const std::set<const void*>& parameters) {
  for (const c10::IValue& value : inputs)
    if (value.isTensor()) {
      const at::Tensor& tensor = value.toTensor();
      if (tensor.defined() && tensor.dim() >= 2 && tensor.size(0) == batch &&
          tensor.is_floating_point() && !parameters.contains(tensor.unsafeGetTensorImpl()))
        return tensor;
    }
  return {};
}

/// Keeps what the last of the operators looked at was given.
class LastData : public NodeObserver {
 public:
  LastData(std::int64_t batch, const std::set<const void*>& parameters,
           const std::vector<bool>& looked_at)
      : batch_(batch), parameters_(parameters), looked_at_(looked_at) {}
  void before(std::size_t number, std::vector<c10::IValue>& inputs) override {
    if (!looked_at_[number]) return;
    const at::Tensor data = data_of(inputs, batch_, parameters_);
    if (!data.defined()) return;
    node = number;
    seen = data.clone();  // later operators may change it in place
  }
  std::optional<std::size_t> node;
  at::Tensor seen;

 private:
  std::int64_t batch_;
  const std::set<const void*>& parameters_;
  const std::vector<bool>& looked_at_;
};

bool may_have_weights(const torch::jit::Node* node) {
  static const std::set<std::string> kNames = {"aten::linear", "aten::matmul",      "aten::mm",
                                               "aten::addmm",  "aten::conv1d",      "aten::conv2d",
                                               "aten::conv3d", "aten::_convolution"};
  return kNames.contains(node->kind().toQualString());
}

}  // namespace

struct PenultimateFeatures::Impl {
  GraphRunner runner;
  std::set<const void*> parameters;
  std::vector<bool> looked_at;
};

PenultimateFeatures::PenultimateFeatures(ScriptModel& model, const at::Tensor& example, bool trust)
    : model_(model) {
  GraphRunnerOptions options;
  options.trust = trust;
  impl_.reset(new Impl{GraphRunner(model.module(), model.where(), options), {}, {}});
  for (const auto& [name, tensor] : model.parameters())
    impl_->parameters.insert(tensor.unsafeGetTensorImpl());
  const FlatGraph& graph = impl_->runner.graph();
  for (std::size_t n = 0; n < graph.nodes().size(); ++n)
    impl_->looked_at.push_back(may_have_weights(graph.nodes()[n]));
  const at::NoGradGuard no_grad;
  LastData last(example.size(0), impl_->parameters, impl_->looked_at);
  impl_->runner.run({model.preprocessed(example.clone())}, &last);
  node_ = last.node;
  // From now on that one alone.
  impl_->looked_at.assign(impl_->looked_at.size(), false);
  if (node_) impl_->looked_at[*node_] = true;
}

PenultimateFeatures::~PenultimateFeatures() = default;

at::Tensor PenultimateFeatures::operator()(const at::Tensor& inputs) const {
  WS_CHECK(found());
  const at::NoGradGuard no_grad;
  LastData last(inputs.size(0), impl_->parameters, impl_->looked_at);
  impl_->runner.run({model_.preprocessed(inputs.clone())}, &last);
  if (!last.seen.defined())
    throw Error(ErrorKind::kInput, model_.where(), "its last layer is not the same for all inputs",
                "export a network without branches");
  return last.seen.flatten(1).to(at::kFloat).cpu();
}

at::Tensor linear_cka(const std::vector<at::Tensor>& features, std::optional<std::size_t> against,
                      std::int64_t memory_bytes) {
  WS_CHECK(!features.empty() && (!against || *against < features.size()));
  const auto models = static_cast<std::int64_t>(features.size());
  const std::int64_t samples = features.front().size(0);
  std::vector<at::Tensor> centred;
  for (const at::Tensor& x : features) {
    WS_CHECK(x.dim() == 2 && x.size(0) == samples);
    const at::Tensor exact = x.to(at::kDouble);
    const at::Tensor deviation = exact - exact.mean(0, /*keepdim=*/true);
    // In units of its own size, so that no product over- or underflows.
    const double size = deviation.norm().item<double>();
    centred.push_back(size > 0 ? deviation / size : deviation);
  }
  at::Tensor products = at::zeros({models, against ? 1 : models}, at::kDouble);
  at::Tensor squares = at::zeros({models}, at::kDouble);
  const std::int64_t stretch =
      std::clamp<std::int64_t>(memory_bytes / (8 * models * std::max<std::int64_t>(samples, 1)), 1,
                               std::max<std::int64_t>(samples, 1));
  const at::Tensor memory = at::empty({models * stretch * samples}, at::kDouble);
  for (std::int64_t begin = 0; begin < samples; begin += stretch) {
    stop_here_if_requested();
    const std::int64_t count = std::min(stretch, samples - begin);
    const at::Tensor gram = memory.narrow(0, 0, models * count * samples).view({models, -1});
    for (std::int64_t m = 0; m < models; ++m) {
      at::Tensor rows = gram[m].view({count, samples});
      at::mm_out(rows, centred[m].narrow(0, begin, count), centred[m].t());
    }
    squares += gram.norm(2, {1}).square();
    products +=
        at::mm(gram, (against ? gram.narrow(0, static_cast<std::int64_t>(*against), 1) : gram).t());
  }
  const at::Tensor norm = squares.sqrt();
  const at::Tensor other = against ? norm.narrow(0, static_cast<std::int64_t>(*against), 1) : norm;
  const at::Tensor size = norm.unsqueeze(1) * other.unsqueeze(0);
  const at::Tensor cka =
      at::where(size > 0, products / size.clamp_min(1e-300), at::zeros_like(products));
  return against ? cka.squeeze(1) : (cka + cka.t()) / 2;  // the same both ways, to the last bit
}

}  // namespace weightsmith
