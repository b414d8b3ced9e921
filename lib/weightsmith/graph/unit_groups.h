#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "weightsmith/tensor/tensor_map.h"

namespace weightsmith {

/// How a parameter axis relates to the units along it. `kOut`: the unit is produced or scaled there
/// (a layer's output axis, bias, norm parameters, running statistics). `kIn`: the unit is consumed
/// there.
enum class MemberRole { kOut, kIn };

/// A stretch of one axis of one parameter or buffer that carries the units of a group: `length` =
/// units · k elements from `offset` on, k consecutive ones a unit (k > 1 where an image was
/// flattened into a linear layer).
struct GroupMember {
  std::string parameter;
  std::int64_t axis = 0;
  std::int64_t offset = 0;
  std::int64_t length = 0;
  MemberRole role = MemberRole::kOut;
};

/// Parameter axes that share one permutation of hidden units. `blocks` > 1: units stand in that
/// many equal blocks (attention heads, groups of a group norm); blocks move as wholes and units
/// within their block.
struct UnitGroup {
  std::string name;
  std::int64_t units = 0;
  std::int64_t blocks = 1;
  std::vector<GroupMember> members;
  std::vector<std::string> taps;  ///< where the units' activations are observed (model/taps.h)
};

struct UnitGroups {
  std::vector<UnitGroup> groups;
};

/// Reads what `mudsc-merge explain --json` writes, or a file written by hand:
///     {"groups": [{"name": "fc1", "units": 64, "blocks": 1, "tap": "fc2.weight/input",
///                  "members": [{"parameter": "fc1.weight", "axis": 0}, ...]}]}
/// A member's `offset` defaults to 0, its `length` to the rest of the axis (0 in the struct until
/// check_unit_groups fills it in), its `role` to "in" on axis 1 and "out" elsewhere; `blocks`
/// defaults to 1; `tap` is a string or a list and may be missing. The keys `units`, `pinned` and
/// `proof` beside `groups` are ignored. Throws Error{kInput} naming `where`, the group and the
/// member.
UnitGroups unit_groups_from_json(const nlohmann::json& json, const std::string& where);
/// Every key written out, except a `length` not known yet.
nlohmann::json unit_groups_to_json(const UnitGroups& groups);
/// Throws Error{kInput} when the file is missing or not JSON.
UnitGroups read_unit_groups(const std::filesystem::path& path);

/// Checks groups against a network's parameters and buffers and returns them with every length
/// filled in: every member exists, lies inside its axis and holds units · k elements; no element of
/// an axis belongs to two members. Throws Error{kInput} naming `where`, the group and the member.
[[nodiscard]] UnitGroups check_unit_groups(const UnitGroups& groups, const TensorMap& state,
                                           const std::string& where);

/// The groups of a builtin network (model/builtin.h) with the given options, in the order in which
/// the network first produces them and each named after the layer that does so ("layer1.0.conv1").
/// Members stand in the order of the forward pass. A group's tap is the input of the last layer
/// that consumes it. A group norm makes its groups the blocks. Throws Error{kConfig} as
/// builtin_options does.
UnitGroups builtin_unit_groups(const std::string& name, const nlohmann::json& options);

}  // namespace weightsmith
