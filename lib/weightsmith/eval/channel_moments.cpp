#include "weightsmith/eval/channel_moments.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

namespace weightsmith {

void ChannelMoments::add(const at::Tensor& values, std::int64_t channel_dim) {
  std::vector<std::int64_t> others;
  for (std::int64_t d = 0; d < values.dim(); ++d)
    if (d != channel_dim) others.push_back(d);
  const auto n = static_cast<double>(values.numel() / values.size(channel_dim));
  const auto [batch_var, batch_mean] =
      at::var_mean(values.to(at::kFloat), others, /*unbiased=*/false);
  const at::Tensor new_mean = batch_mean.to(at::kDouble);
  const at::Tensor new_squares = batch_var.to(at::kDouble) * n;
  if (count_ == 0) {
    mean_ = new_mean;
    squares_ = new_squares;
  } else {
    const at::Tensor delta = new_mean - mean_;
    squares_ += new_squares + delta * delta * (count_ * n / (count_ + n));
    mean_ += delta * (n / (count_ + n));
  }
  count_ += n;
}

at::Tensor ChannelMoments::variance() const { return squares_ / std::max(count_, 1.0); }

at::Tensor ChannelMoments::unbiased_variance() const {
  return squares_ / std::max(count_ - 1.0, 1.0);
}

}  // namespace weightsmith
