#include "weightsmith/train/base_optimizer.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "weightsmith/core/error.h"

namespace weightsmith {
namespace {

/// On a GPU: the stretches of values and momenta that belong to one parameter.
struct ParameterStep {
  double lr;
  std::int64_t count;  // of this step, from 1
  const at::Tensor& gradient;
  at::Tensor values, momenta, squares;

  void operator()(const SgdOptions& options) {
    sgd_step_by_operators(options, lr, count == 1, gradient, values, momenta);
  }
  void operator()(const AdamOptions& options) {
    adam_step_by_operators(options, lr, count, gradient, values, momenta, squares);
  }
};

/// One parameter of a head in the memory of the CPU.
struct Stretch {
  const BaseOptions* options;
  double lr;
  const float* gradient;
  std::int64_t offset;  // in the head
  std::int64_t count;   // of this step, from 1
};

/// A head, and what its base optimiser keeps of it (or null).
struct HeadMemory {
  float* values;
  float* momenta;
  float* squares;

  /// Values [from, to) of a stretch.
  void step(const Stretch& s, std::int64_t from, std::int64_t to) const {
    const std::int64_t at = s.offset + from;
    if (const auto* sgd = std::get_if<SgdOptions>(s.options))
      sgd_update(*sgd, s.lr, s.count == 1, to - from, s.gradient + from, values + at,
                 momenta == nullptr ? nullptr : momenta + at);
    else
      adam_update(std::get<AdamOptions>(*s.options), s.lr, s.count, to - from, s.gradient + from,
                  values + at, momenta + at, squares + at);
  }
};

}  // namespace

BaseOptimizer::BaseOptimizer(ParameterArena& arena, const BaseOptions& options)
    : arena_(arena), options_(arena.segments().size(), OwnOptions{1, options}) {
  const auto* sgd = std::get_if<SgdOptions>(&options);
  if (sgd == nullptr || sgd->momentum != 0) momenta_ = at::zeros_like(arena.values());
  if (sgd == nullptr) squares_ = at::zeros_like(arena.values());
  counts_ =
      at::zeros({arena.heads(), static_cast<std::int64_t>(arena.segments().size())}, at::kLong);
}

void BaseOptimizer::set_parameters(const std::vector<ParameterSettings>& settings) {
  if (settings.empty()) return;
  WS_CHECK(settings.size() == options_.size());
  for (std::size_t i = 0; i < settings.size(); ++i) {
    options_[i].lr_factor = settings[i].lr_factor;
    if (settings[i].weight_decay)
      std::visit([&](auto& options) { options.weight_decay = *settings[i].weight_decay; },
                 options_[i].options);
  }
}

void BaseOptimizer::step(std::int64_t head, double lr) {
  const at::NoGradGuard no_grad;
  if (arena_.values().is_cpu()) {
    step_in_one_pass(head, lr);
    return;
  }
  auto* counts = counts_[head].data_ptr<std::int64_t>();
  const at::Tensor values = arena_.head(head);
  for (std::size_t i = 0; i < arena_.segments().size(); ++i) {
    at::Tensor& gradient = arena_.parameters()[i].mutable_grad();
    if (!gradient.defined()) continue;
    const auto& segment = arena_.segments()[i];
    WS_CHECK(gradient.numel() == segment.numel && gradient.scalar_type() == at::kFloat);
    const auto own = [&](const at::Tensor& flat) {
      return flat.narrow(0, segment.offset, segment.numel);
    };
    const auto row = [&](const at::Tensor& rows) {
      return rows.defined() ? own(rows[head]) : at::Tensor();
    };
    ParameterStep step{lr * options_[i].lr_factor,
                       ++counts[i],
                       gradient,
                       own(values),
                       row(momenta_),
                       row(squares_)};
    std::visit(step, options_[i].options);
    gradient.reset();
  }
}

/// Parameters are often small: what a tensor operation costs by itself would be most of the time.
void BaseOptimizer::step_in_one_pass(std::int64_t head, double lr) {
  const std::size_t parameters = arena_.segments().size();
  auto* counts = counts_.data_ptr<std::int64_t>() + head * static_cast<std::int64_t>(parameters);
  const auto row = [&](const at::Tensor& rows) {
    return rows.defined() ? rows.data_ptr<float>() + head * arena_.width() : nullptr;
  };
  const HeadMemory memory{row(arena_.values()), row(momenta_), row(squares_)};
  std::vector<at::Tensor> gradients;
  std::vector<Stretch> stretches;
  std::vector<std::int64_t> ends;  // of the stretches, laid end to end
  std::int64_t size = 0;
  for (std::size_t i = 0; i < parameters; ++i) {
    at::Tensor& gradient = arena_.parameters()[i].mutable_grad();
    if (!gradient.defined()) continue;
    const auto& segment = arena_.segments()[i];
    WS_CHECK(gradient.numel() == segment.numel && gradient.scalar_type() == at::kFloat);
    gradients.push_back(gradient.contiguous());
    gradient.reset();
    stretches.push_back({&options_[i].options, lr * options_[i].lr_factor,
                         gradients.back().data_ptr<float>(), segment.offset, ++counts[i]});
    ends.push_back(size += segment.numel);
  }
  at::parallel_for(0, size, kArenaGrain, [&](std::int64_t begin, std::int64_t end) {
    auto s =
        static_cast<std::size_t>(std::upper_bound(ends.begin(), ends.end(), begin) - ends.begin());
    for (; begin < end; ++s) {
      const std::int64_t start = s == 0 ? 0 : ends[s - 1];
      const std::int64_t stop = std::min(end, ends[s]);
      memory.step(stretches[s], begin - start, stop - start);
      begin = stop;
    }
  });
}

TensorMap BaseOptimizer::state() const {
  TensorMap state{{"counts", counts_}};
  if (momenta_.defined()) state.emplace("momenta", momenta_);
  if (squares_.defined()) state.emplace("squares", squares_);
  return state;
}

}  // namespace weightsmith
