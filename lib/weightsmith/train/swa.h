#pragma once

#include "weightsmith/train/training_method.h"

namespace weightsmith {

/// Stochastic weight averaging: Izmailov, Podoprikhin, Garipov, Vetrov, Wilson, "Averaging Weights
/// Leads to Wider Optima and Better Generalization", UAI 2018, algorithm 1. From step `first` on,
/// every `every` steps,
///     θ_SWA ← (n · θ_SWA + θ) / (n + 1),   n ← n + 1,
/// kept as θ_SWA ← θ_SWA + (θ − θ_SWA) / (n + 1). The result is θ_SWA, and θ before the first
/// average. Batch-norm statistics must be computed anew for it (section 3.2). The paper averages at
/// the end of epochs or cycles, at a constant or cyclical learning rate; the authors of Lookaround
/// average every batch, at an annealed rate (learning_rate in train/schedule.h). One more copy of
/// the parameters, and one pass over memory an average.
class Swa final : public TrainingMethod {
 public:
  /// The weights after steps first + every, first + 2·every, … are averaged (steps counted from 1).
  /// The arena has one head.
  Swa(ParameterArena& arena, const BaseOptions& options, std::int64_t first, std::int64_t every);

  void show_result() override;
  bool result_is_average() const override { return averaged() > 0; }
  /// n: how many weights the average holds.
  std::int64_t averaged() const;

 private:
  void after_step(std::int64_t) override;

  std::int64_t first_;
  std::int64_t every_;
  at::Tensor average_;  // (width)
};

}  // namespace weightsmith
