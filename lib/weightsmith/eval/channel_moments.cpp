#include "weightsmith/eval/channel_moments.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <vector>

namespace weightsmith {
namespace {

constexpr std::int64_t kLanes = 8;        // sums side by side, which the compiler makes vectors of
constexpr std::int64_t kGrain = 1 << 15;  // values a thread
constexpr std::int64_t kShortRow = kLanes;  // rows shorter than this are put together

/// The sum of term(x) over n contiguous values, in double.
template <class Value, class Term>
double sum_of(const Value* x, std::int64_t n, const Term& term) {
  std::array<double, kLanes> lanes{};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (std::int64_t l = 0; l < kLanes; ++l) lanes[l] += term(static_cast<double>(x[i + l]));
  double sum = 0;
  for (; i < n; ++i) sum += term(static_cast<double>(x[i]));
  for (const double lane : lanes) sum += lane;
  return sum;
}

/// Means and sums of squared deviations of the channels of x (outer, channels, inner), contiguous.
/// LibTorch's var_mean follows Welford's recursion, a division a value: ten times as slow.
template <class Value>
void moments_of(const at::Tensor& x, double* mean, double* squares) {
  const std::int64_t outer = x.size(0);
  const std::int64_t channels = x.size(1);
  const std::int64_t inner = x.size(2);
  const auto n = static_cast<double>(outer * inner);
  const auto* data = x.data_ptr<Value>();
  const std::int64_t grain =
      std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, outer * inner));
  at::parallel_for(0, channels, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t c = begin; c < end; ++c) {
      const auto over_rows = [&](const auto& term) {
        double sum = 0;
        for (std::int64_t o = 0; o < outer; ++o)
          sum += sum_of(data + (o * channels + c) * inner, inner, term);
        return sum;
      };
      const double m = over_rows([](double v) { return v; }) / n;
      mean[c] = m;
      squares[c] = over_rows([m](double v) { return (v - m) * (v - m); });
    }
  });
}

}  // namespace

ChannelMoments ChannelMoments::of(const at::Tensor& values, std::int64_t channel_dim) {
  const std::int64_t channels = values.size(channel_dim);
  ChannelMoments batch;
  batch.count_ = static_cast<double>(values.numel() / std::max<std::int64_t>(1, channels));
  const bool is_double = values.scalar_type() == at::kDouble;
  at::Tensor x = values.detach().to(is_double ? at::kDouble : at::kFloat);
  if (!x.device().is_cpu()) {
    std::vector<std::int64_t> others;
    for (std::int64_t d = 0; d < x.dim(); ++d)
      if (d != channel_dim) others.push_back(d);
    x = x.to(at::kDouble);
    batch.mean_ = x.mean(others);
    std::vector<std::int64_t> shape(x.dim(), 1);
    shape[channel_dim] = channels;
    batch.squares_ = (x - batch.mean_.view(shape)).square().sum(others);
    return batch;
  }
  std::int64_t outer = 1;
  for (std::int64_t d = 0; d < channel_dim; ++d) outer *= x.size(d);
  x = x.contiguous().view({outer, channels, -1});
  if (x.size(2) < kShortRow) x = x.transpose(0, 1).contiguous().view({1, channels, -1});
  batch.mean_ = at::empty({channels}, at::kDouble);
  batch.squares_ = at::empty({channels}, at::kDouble);
  auto* mean = batch.mean_.data_ptr<double>();
  auto* squares = batch.squares_.data_ptr<double>();
  if (is_double)
    moments_of<double>(x, mean, squares);
  else
    moments_of<float>(x, mean, squares);
  return batch;
}

void ChannelMoments::add(const ChannelMoments& batch) {
  if (count_ == 0) {
    mean_ = batch.mean_.clone();
    squares_ = batch.squares_.clone();
  } else {
    const double total = count_ + batch.count_;
    const at::Tensor delta = batch.mean_ - mean_;
    squares_ += batch.squares_ + delta * delta * (count_ * batch.count_ / total);
    mean_ += delta * (batch.count_ / total);
  }
  count_ += batch.count_;
}

at::Tensor ChannelMoments::variance() const { return squares_ / std::max(count_, 1.0); }

at::Tensor ChannelMoments::unbiased_variance() const {
  return squares_ / std::max(count_ - 1.0, 1.0);
}

}  // namespace weightsmith
