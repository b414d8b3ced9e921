#pragma once

#include <ATen/ATen.h>

#include <cmath>
#include <cstdint>

#include "weightsmith/core/rng.h"

namespace weightsmith::testing {

inline at::Tensor random_matrix(std::int64_t rows, std::int64_t columns, Rng& rng,
                                double low = -1.0, double high = 1.0) {
  at::Tensor m = at::empty({rows, columns}, at::kFloat);
  float* data = m.data_ptr<float>();
  for (std::int64_t k = 0; k < m.numel(); ++k) data[k] = static_cast<float>(rng.uniform(low, high));
  return m;
}

inline at::Tensor normal_matrix(std::int64_t rows, std::int64_t columns, Rng& rng) {
  at::Tensor m = at::empty({rows, columns}, at::kFloat);
  float* data = m.data_ptr<float>();
  for (std::int64_t k = 0; k < m.numel(); ++k) data[k] = static_cast<float>(rng.normal());
  return m;
}

/// Rectified responses of `units` random filters to inputs with `latent` factors of falling
/// strength, (units, length): rows correlate as those of a network's hidden layer do.
inline at::Tensor structured_features(const at::Tensor& factors, std::int64_t units, Rng& rng) {
  return at::relu(at::mm(normal_matrix(units, factors.size(0), rng), factors));
}

inline at::Tensor falling_factors(std::int64_t latent, std::int64_t length, Rng& rng) {
  at::Tensor factors = normal_matrix(latent, length, rng);
  for (std::int64_t k = 0; k < latent; ++k)
    factors[k].mul_(1.0 / std::sqrt(static_cast<double>(k + 1)));
  return factors;
}

/// Correlation of the rows of a with those of b, (A, B) float32.
inline at::Tensor row_correlation(const at::Tensor& a, const at::Tensor& b) {
  const auto unit_rows = [](const at::Tensor& x) {
    const at::Tensor centred = x - x.mean(1, true);
    return centred / centred.norm(2, {1}, true).clamp_min(1e-12);
  };
  return at::mm(unit_rows(a), unit_rows(b).t());
}

/// A random symmetric matrix; `levels` > 0 rounds to that many steps a unit, which makes ties.
inline at::Tensor symmetric_matrix(std::int64_t size, int levels, Rng& rng) {
  at::Tensor m = random_matrix(size, size, rng);
  m = at::triu(m) + at::triu(m, 1).t();
  if (levels > 0) m = at::round(m * levels) / levels;
  return m.contiguous();
}

}  // namespace weightsmith::testing
