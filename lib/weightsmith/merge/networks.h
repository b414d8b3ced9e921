#pragma once

#include <string>
#include <vector>

#include "weightsmith/graph/unit_groups.h"
#include "weightsmith/merge/mudsc.h"
#include "weightsmith/model/script_model.h"

namespace weightsmith {

/// Throws Error{kInput} naming the first two models whose tensors differ in name, shape or data
/// type, or whose graphs do not compute the same of them (model/graph_difference.h), and how. The
/// models are in eval mode.
void check_same_architecture(const std::vector<ScriptModel>& models);

/// The unit groups of networks of one architecture: from a group file, or with "auto" from the
/// builtin network the first model was made as (its archive says so). Checked against the model's
/// tensors; member lengths are resolved. Throws Error{kInput} when there are none to be had or they
/// do not fit.
UnitGroups unit_groups_for(const ScriptModel& model, const std::string& groups);

/// Views of the models' tensors.
NetworkStates states_of(const std::vector<ScriptModel>& models);

/// Throws Error{kNumeric} naming model and tensor when a weight is NaN or infinite.
void check_finite(const std::vector<ScriptModel>& models);

/// A matching a group as a file: `slot/<group>` (models, units) int32 and `value/<group>` (double
/// scalar), readable by any safetensors reader (docs/formats.md). Atomic.
void write_matchings(const std::filesystem::path& path, const UnitGroups& groups,
                     const std::vector<Matching>& matchings);

}  // namespace weightsmith
