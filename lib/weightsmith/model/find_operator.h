#pragma once

#include <set>
#include <string>

#include "weightsmith/model/script_model.h"

namespace weightsmith {

/// The name of the first operator of a network's forward, calls inlined and in blocks of others
/// too, that is one of `kinds` ("aten::gelu"); empty: there is none.
std::string find_operator(const ScriptModel& model, const std::set<std::string>& kinds);

}  // namespace weightsmith
