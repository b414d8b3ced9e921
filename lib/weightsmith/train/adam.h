#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace weightsmith {

/// Adam (Kingma & Ba, "Adam: A method for stochastic optimization", ICLR 2015, algorithm 1) and,
/// with `decoupled`, AdamW (Loshchilov & Hutter, "Decoupled weight decay regularization", ICLR
/// 2019, algorithm 2 with the schedule inside the learning rate, as PyTorch has it).
struct AdamOptions {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0.0;  ///< λ
  bool decoupled = false;     ///< AdamW

  friend bool operator==(const AdamOptions&, const AdamOptions&) = default;
};

/// Step number t, counted from 1:
///     g ← g + λ·θ                                  (Adam)
///     θ ← θ − lr·λ·θ                               (AdamW)
///     m ← β₁·m + (1 − β₁)·g,   v ← β₂·v + (1 − β₂)·g²
///     θ ← θ − lr · m̂ / (√v̂ + ε),   m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)
/// for `size` values in the memory of the CPU, on the calling thread, in one pass; values, momenta
/// (m) and squares (v) are changed in place.
void adam_update(const AdamOptions& options, double lr, std::int64_t t, std::int64_t size,
                 const float* gradient, float* values, float* momenta, float* squares);

/// The same by tensor operations, for any device: `values`, `momenta` and `squares` are flat
/// float32 tensors of equal size, `gradient` has as many values, of any shape and strides.
void adam_step_by_operators(const AdamOptions& options, double lr, std::int64_t t,
                            const at::Tensor& gradient, at::Tensor& values, at::Tensor& momenta,
                            at::Tensor& squares);

}  // namespace weightsmith
