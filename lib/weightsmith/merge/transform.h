#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "weightsmith/graph/unit_groups.h"
#include "weightsmith/match/matching.h"
#include "weightsmith/tensor/tensor_map.h"

namespace weightsmith {

/// A stretch of one parameter axis and the group whose units it carries.
struct AxisUse {
  std::size_t group = 0;   ///< index into UnitGroups::groups
  std::size_t member = 0;  ///< index into its members
  /// The stretch in each model, where their widths differ (UnitGroup::widths); empty: as the member
  /// says.
  std::vector<GroupMember> in_models;
};

/// The stretch in a model's parameter.
const GroupMember& member_of(const UnitGroups& groups, const AxisUse& use, std::int64_t model);

/// The units of a group in `models` models.
UnitStack stack_of(const UnitGroup& group, std::int64_t models);

/// Which groups meet each parameter. From the end of an axis to its start: spreading one stretch
/// may change the length of what lies behind it.
using ParameterUses = std::map<std::string, std::vector<AxisUse>>;
ParameterUses parameter_uses(const UnitGroups& groups);

/// The weight of each model in averages, of sum 1; empty: all alike.
using ModelShares = std::vector<double>;

/// What a unit's elements are multiplied by when they are added to its slot. The mean over models
/// of what is spread so, weighted by their shares, gives the merged parameter (mudsc.md,
/// "Applying").
enum class SlotWeight {
  kOne,      ///< an axis that consumes units: the slots' contributions add up
  kAverage,  ///< an axis that produces units: 1 / the summed shares of the slot's units (N / c
             ///< where all models count alike), so that the slot is the weighted mean of its units
};

/// Spreads the units of model `model` along one stretch of an axis into their slots: element block
/// u of the stretch (units · k → k elements a unit) is added, weighted, to block slot(u) of the
/// result, whose stretch is slots · k long. The rest of the axis stays. Shapes: tensor (…, L, …) →
/// (…, L − units·k + slots·k, …). A slot whose units all have share 0 becomes 0. A member with an
/// index keeps its places, so slots must be as many as units. `keep_inside` = p > 0: only the place
/// inside stretches of p elements changes, as it does on the second axis of a grouped convolution.
at::Tensor spread_units(const at::Tensor& tensor, const GroupMember& member,
                        const Matching& matching, std::int64_t model, SlotWeight weight,
                        const ModelShares& shares = {}, std::int64_t keep_inside = 0);

/// What spreading the units of `uses`, all of them stretches of one axis of `positions` positions,
/// makes of it for `model`: position p of the result is position order[p]. Nothing where units are
/// added or weighted, or where a stretch is inside the groups of a convolution.
std::optional<std::vector<std::int64_t>> axis_order(std::int64_t positions,
                                                    const std::vector<AxisUse>& uses,
                                                    const UnitGroups& groups,
                                                    const std::vector<Matching>& matchings,
                                                    std::int64_t model);

/// What a member says of each unit: (units, elements a unit, the other axes); a view where that can
/// be.
at::Tensor unit_rows(const at::Tensor& tensor, const GroupMember& member, std::int64_t units);

/// Merges one parameter: every model's tensor is spread along all its member axes, then averaged
/// over the models, each with its share. A tensor that is not floating point is taken from the
/// first model (batch norm's counter of batches). `matchings[g]` belongs to group g. `tensors`
/// holds one tensor a model, equal in shape once they are spread; the result has their dtype and is
/// accumulated in float32 or wider.
at::Tensor merge_parameter(const std::vector<at::Tensor>& tensors, const std::vector<AxisUse>& uses,
                           const UnitGroups& groups, const std::vector<Matching>& matchings,
                           const ModelShares& shares = {});

/// merge_parameter over whole networks.
TensorMap merge_states(const std::vector<TensorMap>& states, const UnitGroups& groups,
                       const std::vector<Matching>& matchings, const ModelShares& shares = {});

/// A whole network with its units in the order of the slots: the same function, for matchings that
/// are permutations.
TensorMap reordered_state(const TensorMap& state, const UnitGroups& groups,
                          const std::vector<Matching>& matchings, std::int64_t model);

}  // namespace weightsmith
