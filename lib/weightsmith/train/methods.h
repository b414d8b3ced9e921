#pragma once

#include <cstdint>
#include <memory>

#include "weightsmith/train/train_config.h"
#include "weightsmith/train/training_method.h"

namespace weightsmith {

/// The base optimiser that a configuration names.
BaseOptions base_options(const OptimizerConfig& config);

/// The method that a configuration names, on an arena with config.method.trained_heads() heads. An
/// epoch has `batches` batches, each of which gives config.views() gradients.
std::unique_ptr<TrainingMethod> make_method(const TrainConfig& config, ParameterArena& arena,
                                            std::int64_t batches);

}  // namespace weightsmith
