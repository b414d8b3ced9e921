#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace weightsmith {

/// Stochastic gradient descent as PyTorch defines it (Sutskever et al., ICML 2013, with the
/// learning rate outside the momentum).
struct SgdOptions {
  double momentum = 0.0;      ///< µ
  double dampening = 0.0;     ///< τ
  double weight_decay = 0.0;  ///< λ
  bool nesterov = false;

  friend bool operator==(const SgdOptions&, const SgdOptions&) = default;
};

/// One step:
///     g ← g + λ·θ
///     m ← g at the first step, else µ·m + (1 − τ)·g       (only where µ ≠ 0)
///     g ← g + µ·m with Nesterov's momentum, else m        (only where µ ≠ 0)
///     θ ← θ − lr·g
/// for `size` values in the memory of the CPU, on the calling thread, in one pass; values and
/// momenta are changed in place. `momenta` may be null when µ is 0.
void sgd_update(const SgdOptions& options, double lr, bool first, std::int64_t size,
                const float* gradient, float* values, float* momenta);

/// The same by tensor operations, for any device: `values` and `momenta` are flat float32 tensors
/// of equal size (momenta may be undefined when µ is 0), `gradient` has as many values, of any
/// shape and strides.
void sgd_step_by_operators(const SgdOptions& options, double lr, bool first,
                           const at::Tensor& gradient, at::Tensor& values, at::Tensor& momenta);

}  // namespace weightsmith
