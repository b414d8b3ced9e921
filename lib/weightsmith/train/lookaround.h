#pragma once

#include <cstdint>

#include "weightsmith/train/training_method.h"

namespace weightsmith {

/// Lookaround: Zhang et al., "Lookaround Optimizer: k steps around, 1 step average", NeurIPS 2023
/// (arXiv 2306.07684), algorithm 1. From a common point θ, d heads θ₀ … θ_{d−1} train side by side,
/// each on its own augmentation of the same samples. In round t = 1, 2, … every head in turn makes
/// one step of the base optimiser with its own momentum,
///     θ_h ← θ_h − lr · Opt(∇L(θ_h; augmentation h of batch t), m_h),         h = 0 … d − 1,
/// and after every k-th round all heads become their mean,
///     θ_h ← (1/d) Σ_j θ_j;
/// momenta stay with their heads and are not averaged. One head (d = 1) is the base optimiser.
///
/// A step costs one pass over a head, an average one over all of them; heads and momenta take
/// 2·d·P floats for P parameters with SGD, 3·d·P with Adam (plus P once a mean was shown).
///
/// Differences from the authors' program: heads and momenta are part of the saved state, and
/// `show_result` gives the mean of the heads between two averages, where theirs evaluates and
/// saves whichever head comes next.
class Lookaround final : public TrainingMethod {
 public:
  /// The arena's number of heads is d. k ≥ 1.
  Lookaround(ParameterArena& arena, const BaseOptions& options, std::int64_t k);

  std::int64_t head() const override { return steps() % arena_.heads(); }
  /// The mean of the heads.
  void show_result() override;
  bool result_is_average() const override { return arena_.heads() > 1; }

 private:
  void after_step(std::int64_t stepped) override;
  bool just_averaged() const { return steps() % (arena_.heads() * k_) == 0; }

  std::int64_t k_;
};

}  // namespace weightsmith
