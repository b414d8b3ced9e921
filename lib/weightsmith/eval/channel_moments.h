#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace weightsmith {

/// Mean and variance of a tensor's channels, over values that arrive in batches of any size.
class ChannelMoments {
 public:
  /// Of one batch: first the mean, then the squares about it, in double. `values` is real;
  /// `channel_dim` is not negative, and the other dimensions are observations. On the CPU with the
  /// threads of at::get_num_threads, whatever their number to the same bits.
  static ChannelMoments of(const at::Tensor& values, std::int64_t channel_dim);

  /// Merges batches in double, exactly (Chan, Golub, LeVeque, "Algorithms for computing the sample
  /// variance", The American Statistician 37(3), 1983, equation 2.1).
  void add(const ChannelMoments& batch);

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
