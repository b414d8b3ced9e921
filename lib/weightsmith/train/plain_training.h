#pragma once

#include "weightsmith/train/training_method.h"

namespace weightsmith {

/// The base optimiser by itself (`sgd` where that is SGD): the result is where it got to. Steps
/// through the same streams of augmented batches as the heads of Lookaround, one after the other.
class PlainTraining final : public TrainingMethod {
 public:
  PlainTraining(ParameterArena& arena, const BaseOptions& options)
      : TrainingMethod(arena, options) {}

 private:
  void after_step(std::int64_t) override {}
};

}  // namespace weightsmith
