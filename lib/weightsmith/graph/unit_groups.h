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

/// The JSON of docs/formats.md. Reading throws Error{kInput} naming `where` and the group.
UnitGroups unit_groups_from_json(const nlohmann::json& json, const std::string& where);
nlohmann::json unit_groups_to_json(const UnitGroups& groups);
UnitGroups read_unit_groups(const std::filesystem::path& path);

/// Checks groups against a network's parameters and buffers: every member exists, lies inside its
/// axis, holds units · k elements; no element of an axis belongs to two groups. Throws
/// Error{kInput} naming the group and member.
void check_unit_groups(const UnitGroups& groups, const TensorMap& state, const std::string& where);

/// The groups of a builtin network (model/builtin.h) with the given options.
UnitGroups builtin_unit_groups(const std::string& name, const nlohmann::json& options);

}  // namespace weightsmith
