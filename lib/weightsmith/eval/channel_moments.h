#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace weightsmith {

/// Mean and variance of a tensor's channels, over values that arrive in batches of any size.
class ChannelMoments {
 public:
  /// `channel_dim` is not negative; the other dimensions are observations. Batches are merged in
  /// double, exactly (Chan, Golub, LeVeque, "Algorithms for computing the sample variance", The
  /// American Statistician 37(3), 1983, equation 2.1).
  void add(const at::Tensor& values, std::int64_t channel_dim);

  /// Observations of a channel so far.
  double count() const { return count_; }
  at::Tensor mean() const { return mean_; }  ///< (C) double
  at::Tensor variance() const;               ///< (C) double, about the mean, divided by the count
  at::Tensor unbiased_variance() const;      ///< divided by the count less one

 private:
  at::Tensor mean_;
  at::Tensor squares_;  // (C) double: sums of squared deviations
  double count_ = 0;
};

}  // namespace weightsmith
