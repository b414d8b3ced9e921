#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "weightsmith/core/progress.h"
#include "weightsmith/graph/unit_groups.h"
#include "weightsmith/merge/mudsc.h"
#include "weightsmith/model/script_model.h"

namespace weightsmith {

/// Throws Error{kInput} naming the first two models whose tensors differ in name, shape or data
/// type, or whose graphs do not compute the same of them (model/graph_difference.h), and how. The
/// models are in eval mode. `sizes_may_differ`: of shapes only the number of dimensions counts.
void check_same_architecture(const std::vector<ScriptModel>& models, bool sizes_may_differ = false);

/// The unit groups of networks of one architecture: from a group file; with "auto" from the builtin
/// network the first model was made as (its archive says so), else derived from its graph, run on
/// `inputs` (graph/derive_groups.h); `moving` are the buffers that differ among the models. Checked
/// against the model's tensors; member lengths are resolved. Throws Error{kInput} when they do not
/// fit, Error{kConfig} when the graph must be run and there is no input.
UnitGroups unit_groups_for(const ScriptModel& model, const std::string& groups,
                           const std::vector<c10::IValue>& inputs = {},
                           const std::set<std::string>& moving = {});

/// Proves the groups on a copy of the model (graph/proof.h). Throws Error{kNumeric} naming the
/// groups that change the outputs.
void verify_unit_groups(const ScriptModel& model, const UnitGroups& groups,
                        const std::vector<c10::IValue>& inputs, Progress& progress);

/// Views of the models' tensors.
NetworkStates states_of(const std::vector<ScriptModel>& models);

/// Throws Error{kNumeric} naming model and tensor when a weight is NaN or infinite; a constant (a
/// mask in a buffer) may be infinite.
void check_finite(const ScriptModel& model);

/// The data types of floating tensors that were not float32, by name.
using DataTypes = std::map<std::string, at::ScalarType>;

/// Converts a network's floating tensors to float32, in which everything is computed (a CPU runs
/// few operators in half precision, and sums need the bits), and returns what they were.
DataTypes convert_to_float32(ScriptModel& model);

/// Converts named tensors back. Throws Error{kNumeric} naming `where` and a tensor whose values the
/// type cannot hold.
void convert_back(ScriptModel& model, const DataTypes& types, const std::string& where);

/// A matching a group as a file: `slot/<group>` (models, units) int32 and `value/<group>` (double
/// scalar), readable by any safetensors reader (docs/formats.md). `metadata` is kept beside the
/// format's name. Atomic.
void write_matchings(const std::filesystem::path& path, const UnitGroups& groups,
                     const std::vector<Matching>& matchings,
                     std::map<std::string, std::string> metadata = {});

struct MatchingFile {
  std::vector<Matching> matchings;  ///< in the order of the groups
  std::map<std::string, std::string> metadata;
};

/// Reads what write_matchings wrote, for the same groups and `models` models; the file is not
/// trusted. Throws Error{kInput} naming the file and the group that is missing, surplus, of other
/// units or models, or damaged.
MatchingFile read_matchings(const std::filesystem::path& path, const UnitGroups& groups,
                            std::int64_t models);

}  // namespace weightsmith
