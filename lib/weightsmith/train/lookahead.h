#pragma once

#include "weightsmith/config/enum_names.h"
#include "weightsmith/train/training_method.h"

namespace weightsmith {

/// Where Lookahead's slow weights come from: the initial weights (the paper), or those after the
/// first step, from when they are also counted: slow and fast weights meet after steps 1 + k, 1 +
/// 2k, … (the program that the authors of Lookaround compare with).
enum class SlowFrom { kStart, kFirstStep };
EnumNames<SlowFrom> enum_names(SlowFrom);

/// Lookahead: Zhang, Lucas, Hinton, Ba, "Lookahead Optimizer: k steps forward, 1 step back",
/// NeurIPS 2019, algorithm 1. The base optimiser moves the fast weights θ; after every k of its
/// steps
///     φ ← φ + α (θ − φ),   θ ← φ.
/// The result is the slow weights φ. Momenta go on as they are. One more copy of the parameters and
/// every k steps one pass over memory.
class Lookahead final : public TrainingMethod {
 public:
  /// k ≥ 1, α in (0, 1]; the arena has one head.
  Lookahead(ParameterArena& arena, const BaseOptions& options, std::int64_t k, double alpha,
            SlowFrom from = SlowFrom::kStart);

  void show_result() override { arena_.show_values(slow_); }
  bool result_is_average() const override { return true; }

 private:
  void after_step(std::int64_t) override;

  std::int64_t k_;
  double alpha_;
  SlowFrom from_;
  at::Tensor slow_;  // (width)
};

}  // namespace weightsmith
