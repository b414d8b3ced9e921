#include "weightsmith/train/base_optimizer.h"

#include <ATen/ATen.h>

namespace weightsmith {
namespace {

/// The stretches of values and momenta that belong to one parameter.
struct ParameterStep {
  double lr;
  std::int64_t count;  // of this step, from 1
  const at::Tensor& gradient;
  at::Tensor values, momenta, squares;

  void operator()(const SgdOptions& options) {
    sgd_step(options, lr, count == 1, gradient, values, momenta);
  }
  void operator()(const AdamOptions& options) {
    adam_step(options, lr, count, gradient, values, momenta, squares);
  }
};

}  // namespace

BaseOptimizer::BaseOptimizer(ParameterArena& arena, const BaseOptions& options)
    : arena_(arena), options_(options) {
  const auto* sgd = std::get_if<SgdOptions>(&options);
  if (sgd == nullptr || sgd->momentum != 0) momenta_ = at::zeros_like(arena.values());
  if (sgd == nullptr) squares_ = at::zeros_like(arena.values());
  counts_ =
      at::zeros({arena.heads(), static_cast<std::int64_t>(arena.segments().size())}, at::kLong);
}

void BaseOptimizer::step(std::int64_t head, double lr) {
  auto* counts = counts_[head].data_ptr<std::int64_t>();
  const at::Tensor values = arena_.head(head);
  for (std::size_t i = 0; i < arena_.segments().size(); ++i) {
    at::Tensor& gradient = arena_.parameters()[i].mutable_grad();
    if (!gradient.defined()) continue;
    const auto& segment = arena_.segments()[i];
    const auto own = [&](const at::Tensor& flat) {
      return flat.defined() ? flat.narrow(0, segment.offset, segment.numel) : at::Tensor();
    };
    const auto row = [&](const at::Tensor& rows) {
      return rows.defined() ? own(rows[head]) : at::Tensor();
    };
    ParameterStep step{lr, ++counts[i], gradient, own(values), row(momenta_), row(squares_)};
    std::visit(step, options_);
    gradient.reset();
  }
}

TensorMap BaseOptimizer::state() const {
  TensorMap state{{"counts", counts_}};
  if (momenta_.defined()) state.emplace("momenta", momenta_);
  if (squares_.defined()) state.emplace("squares", squares_);
  return state;
}

}  // namespace weightsmith
