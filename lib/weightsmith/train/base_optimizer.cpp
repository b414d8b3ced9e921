#include "weightsmith/train/base_optimizer.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "weightsmith/core/error.h"

namespace weightsmith {
namespace {

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
  if (arena_.values().is_cpu()) {
    step_in_one_pass(head, lr);
  } else {
    step_by_operators(head, lr);
  }
}

void BaseOptimizer::step_by_operators(std::int64_t head, double lr) {
  const at::NoGradGuard no_grad;
  auto* counts = counts_[head].data_ptr<std::int64_t>();
  const auto& segments = arena_.segments();
  for (std::size_t first = 0; first < segments.size();) {
    if (!arena_.parameters()[first].grad().defined()) {
      ++first;
      continue;
    }
    const std::size_t end = end_of_run(first, counts);
    for (std::size_t i = first; i < end; ++i) ++counts[i];
    const std::int64_t offset = segments[first].offset;
    const std::int64_t size = segments[end - 1].offset + segments[end - 1].numel - offset;
    const auto own = [&](const at::Tensor& rows) {
      return rows.defined() ? rows[head].narrow(0, offset, size) : at::Tensor();
    };
    const at::Tensor gradient = flat_gradient(first, end);
    at::Tensor values = own(arena_.values());
    at::Tensor momenta = own(momenta_);
    const double own_lr = lr * options_[first].lr_factor;
    if (const auto* sgd = std::get_if<SgdOptions>(&options_[first].options)) {
      sgd_step_by_operators(*sgd, own_lr, counts[first] == 1, gradient, values, momenta);
    } else {
      at::Tensor squares = own(squares_);
      adam_step_by_operators(std::get<AdamOptions>(options_[first].options), own_lr, counts[first],
                             gradient, values, momenta, squares);
    }
    first = end;
  }
}

std::size_t BaseOptimizer::end_of_run(std::size_t first, const std::int64_t* counts) const {
  // Enough to keep a GPU busy for longer than it takes to ask for the next; operators need memory
  // of this size several times.
  constexpr std::int64_t kMost = std::int64_t{4} << 20;  // values
  std::size_t end = first;
  for (std::int64_t size = 0; end < options_.size(); ++end) {
    size += arena_.segments()[end].numel;
    if (!arena_.parameters()[end].grad().defined() || counts[end] != counts[first] ||
        options_[end] != options_[first] || (end > first && size > kMost))
      break;
  }
  return end;
}

/// The gradients of parameters [first, end), which are dropped, laid out as the arena lays out
/// values. What lies between two of them is stepped as well: zeros by zero gradients, to zeros.
at::Tensor BaseOptimizer::flat_gradient(std::size_t first, std::size_t end) {
  const auto& segments = arena_.segments();
  std::vector<at::Tensor> parts;
  for (std::size_t i = first; i < end; ++i) {
    at::Tensor& gradient = arena_.parameters()[i].mutable_grad();
    WS_CHECK(gradient.numel() == segments[i].numel && gradient.scalar_type() == at::kFloat);
    parts.push_back(gradient.reshape({-1}));
    gradient.reset();
    if (i + 1 == end) break;
    const std::int64_t gap = segments[i + 1].offset - segments[i].offset - segments[i].numel;
    if (gap == 0) continue;
    if (!padding_.defined() || padding_.numel() < gap) padding_ = parts.back().new_zeros({gap});
    parts.push_back(padding_.narrow(0, 0, gap));
  }
  return parts.size() == 1 ? parts.front() : at::cat(parts);
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
