#pragma once

#include <string>

#include "weightsmith/model/script_model.h"
#include "weightsmith/tensor/tensor_map.h"

namespace weightsmith {

/// The parameters whose qualified names fit `pattern`, in which * stands for any text, dots
/// included, ? for any character and [..] for one of a set (POSIX fnmatch). Throws Error{kConfig}
/// naming `key` when there is none.
TensorMap parameters_fitting(const ScriptModel& model, const std::string& pattern,
                             const std::string& key);

}  // namespace weightsmith
