#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "weightsmith/model/script_model.h"

namespace weightsmith {

/// Fixes the parameters that one of `patterns` fits (parameters_fitting): they ask for no gradients
/// any more and no optimiser touches them. Statistics of batch norms still move.
/// Returns those that asked before, so that they can again when all is done. Throws Error{kConfig}
/// naming a pattern that fits no parameter.
std::vector<at::Tensor> freeze_parameters(ScriptModel& model,
                                          const std::vector<std::string>& patterns);

}  // namespace weightsmith
