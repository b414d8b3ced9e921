#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "weightsmith/tensor/tensor_map.h"
#include "weightsmith/train/parameter_arena.h"
#include "weightsmith/train/sgd.h"

namespace weightsmith {

/// Lookaround: Zhang et al., "Lookaround Optimizer: k steps around, 1 step average", NeurIPS 2023
/// (arXiv 2306.07684), algorithm 1. From a common point θ, d heads θ₀ … θ_{d−1} train side by side,
/// each on its own augmentation of the same samples. In round t = 1, 2, … every head in turn makes
/// one step of the base optimiser (here SGD) with its own momentum,
///     θ_h ← θ_h − lr · SGD(∇L(θ_h; augmentation h of batch t), m_h),         h = 0 … d − 1,
/// and after every k-th round all heads become their mean,
///     θ_h ← (1/d) Σ_j θ_j;
/// momenta stay with their heads and are not averaged. One head (d = 1) is SGD.
///
/// A step costs one pass over a head, an average one over all of them; heads and momenta take
/// 2·d·P floats for P parameters (plus P once a mean was shown).
///
/// Differences from the authors' program: heads and momenta are part of the saved state, and
/// `show_average` gives the mean of the heads between two averages, where theirs evaluates and
/// saves whichever head comes next.
class Lookaround {
 public:
  /// `arena` must outlive this; its number of heads is d. k ≥ 1.
  Lookaround(ParameterArena& arena, const SgdOptions& options, std::int64_t k);

  /// Steps the head that is shown with the gradients of the arena's parameters (one without a
  /// gradient stays as it is) and drops them; averages when d·k steps are complete; shows the next
  /// head.
  void step(double lr);

  /// Base steps made so far, of all heads together; the head shown is steps() mod d.
  std::int64_t steps() const { return steps_; }

  /// Shows the mean of the heads, for evaluation and saving. Call show_head() to go on.
  void show_average();
  void show_head();

  /// Everything that a later step depends on: `heads` (d, width), `momenta` likewise (absent
  /// without momentum), `started` (d, parameters) uint8. The tensors are the live ones.
  TensorMap state() const;
  /// Restores a state, copied. Throws Error{kInput} naming `where` when names or shapes differ.
  void load_state(const TensorMap& state, std::int64_t steps, const std::string& where);

 private:
  ParameterArena& arena_;
  SgdOptions options_;
  std::int64_t k_;
  std::int64_t steps_ = 0;
  at::Tensor momenta_;  // (heads, width); undefined without momentum
  at::Tensor started_;  // (heads, parameters) uint8 on the CPU: has a momentum
};

}  // namespace weightsmith
