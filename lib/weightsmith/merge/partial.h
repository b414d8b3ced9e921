#pragma once

#include <ATen/core/ivalue.h>

#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "weightsmith/core/progress.h"
#include "weightsmith/graph/unit_groups.h"
#include "weightsmith/match/matching.h"
#include "weightsmith/model/network_parts.h"
#include "weightsmith/model/script_model.h"

namespace weightsmith {

/// Networks cut for a partial merge (ZipIt!, Stoica et al., ICLR 2024, section 4.3): their trunks,
/// of one architecture, are merged; every task keeps what comes behind as its head. The heads may
/// differ in every way.
struct CutModels {
  std::vector<ScriptModel> trunks;
  std::vector<ScriptModel> heads;  ///< in the same order
};

/// Cuts every network behind submodule `until` (model/network_parts.h); parts share their tensors
/// and must not outlive them. Throws Error{kInput} as cut_network.
CutModels cut_models(const std::vector<ScriptModel>& models, const std::string& until);

/// Where units of a group stand in the trunk's result: `positions` along dimension `dim`, which is
/// `size` long, units · k of them, the k of unit 0 first.
struct BoundaryUnits {
  std::size_t group = 0;
  std::int64_t dim = 0;
  std::int64_t size = 0;
  std::vector<std::int64_t> positions;
};

/// The unit groups of a trunk. What the trunk hands out is free: its order is mapped back for each
/// head, so the heads put no constraint on it, and such a group is seen in the result itself.
struct TrunkUnits {
  UnitGroups groups;
  std::vector<BoundaryUnits> boundary;
};

/// Derives them from the graph of the trunk, run on `inputs` (a batch of at least 2), with every
/// element of the result read by a weight of its own; `verify`: and proves them so
/// (verify_unit_groups); `moving` as in unit_groups_for. Throws Error{kInput} when the result has
/// no dimension beside the batch, and as derive_unit_groups; Error{kConfig} without inputs.
TrunkUnits trunk_units(const ScriptModel& trunk, const std::vector<c10::IValue>& inputs,
                       bool verify, Progress& progress, const std::set<std::string>& moving = {});

/// What the head of model `model` reads of the merged trunk's result: each unit of the model reads
/// the slot that it was merged into (ZipIt!'s "unmerge"; for a permutation its inverse). Dimensions
/// that stay as they are have no entry. Where models or the merged trunk differ in width, the units
/// must stand side by side: throws Error{kInput} naming the dimension else.
std::vector<Selection> head_reads(const std::vector<BoundaryUnits>& boundary,
                                  const std::vector<Matching>& matchings, std::int64_t model);

/// The merged trunk with copies of all heads: one network whose forward returns a tuple, a result a
/// head (join_network), under the first model's name. Metadata: {"partial": {"until", "tasks":
/// [names]}}.
ScriptModel attach_heads(const ScriptModel& trunk, const std::vector<ScriptModel>& heads,
                         const std::vector<BoundaryUnits>& boundary,
                         const std::vector<Matching>& matchings, const std::string& until);

/// The networks of the single tasks in what attach_heads made, under the names of their models:
/// trunk and one head each. They share its tensors.
std::vector<ScriptModel> task_networks(const ScriptModel& network);

}  // namespace weightsmith
