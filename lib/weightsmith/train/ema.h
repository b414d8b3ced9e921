#pragma once

#include "weightsmith/train/training_method.h"

namespace weightsmith {

/// Exponential moving average of the weights (Polyak & Juditsky, "Acceleration of stochastic
/// approximation by averaging", SIAM J. Control and Optimization 30(4), 1992, weighted
/// exponentially as by Tarvainen & Valpola, "Mean teachers are better role models", NeurIPS 2017,
/// equation 2): after step t = 1, 2, …
///     θ_EMA ← β_t · θ_EMA + (1 − β_t) · θ,   β_t = min(β, 1 − 1/t),
/// so that the average is a plain mean of all weights so far until it has forgotten the start. The
/// result is θ_EMA. One more copy of the parameters, one pass over memory a step.
class Ema final : public TrainingMethod {
 public:
  /// β = `decay` in [0, 1); the arena has one head.
  Ema(ParameterArena& arena, const BaseOptions& options, double decay);

  void show_result() override { arena_.show_values(average_); }
  bool result_is_average() const override { return steps() > 0; }

 private:
  void after_step(std::int64_t) override;

  double decay_;
  at::Tensor average_;  // (width)
};

}  // namespace weightsmith
