#pragma once

#include <vector>

#include "weightsmith/model/script_model.h"
#include "weightsmith/train/base_optimizer.h"
#include "weightsmith/train/parameter_arena.h"
#include "weightsmith/train/train_config.h"

namespace weightsmith {

/// How each parameter of an arena on `model` is stepped: as the first of `groups` says that fits
/// one of its names, in the arena's order; empty without groups. Throws Error{kConfig} naming the
/// key of a pattern that fits no parameter of the model.
std::vector<ParameterSettings> parameter_settings(const std::vector<ParameterGroup>& groups,
                                                  const ScriptModel& model,
                                                  const ParameterArena& arena);

}  // namespace weightsmith
