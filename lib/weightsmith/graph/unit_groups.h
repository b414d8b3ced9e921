#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <utility>
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
  /// Where the units stand when that is not one after another: units · k positions along the axis,
  /// the k of unit 0 first. Then `offset` is the least of them and `length` their number.
  std::vector<std::int64_t> index;
  /// Above 1: the second axis of a grouped convolution's weight, which each of so many groups of
  /// the first axis uses for other inputs. Positions are then those of the convolution's input
  /// (groups · the axis's size in all), and units stay inside their group, which moves with the
  /// first axis.
  std::int64_t groups = 1;
};

/// Where the activations of a group's units can be seen.
struct UnitTap {
  UnitTap() = default;
  UnitTap(std::string where) : at(std::move(where)) {}  // NOLINT(google-explicit-constructor)
  UnitTap(const char* where) : at(where) {}             // NOLINT(google-explicit-constructor)
  bool operator==(const UnitTap&) const = default;

  std::string at;  ///< a tap of model/taps.h
  /// The dimensions of its value that carry the units, ascending; empty: as the value's consumer
  /// tells (the second one for a convolution, else the last).
  std::vector<std::int64_t> axes;
  /// units · k positions in these dimensions, flattened; empty: all, k consecutive ones a unit.
  std::vector<std::int64_t> index;
};

/// Parameter axes that share one permutation of hidden units. `blocks` > 1: units stand in that
/// many equal blocks (attention heads, groups of a group norm); blocks move as wholes and units
/// within their block. `within` names the group whose units are these blocks, when their order is
/// not this group's alone (queries, keys and values of an attention layer have one order of heads).
struct UnitGroup {
  std::string name;
  std::int64_t units = 0;
  std::int64_t blocks = 1;
  std::vector<GroupMember> members;
  std::vector<UnitTap> taps;
  std::string within;
  /// Units in each of several models whose layers differ in width (merge/widths.h); empty: `units`
  /// in every one. Members are those of the first model, which has `units`.
  std::vector<std::int64_t> widths;
};

struct UnitGroups {
  std::vector<UnitGroup> groups;
  std::string where = {};  ///< the group file they were read from; empty: found in a network

  /// How errors name a group: `groups.json: group "fc1"`.
  std::string describe(const UnitGroup& group) const;
};

/// Reads what `mudsc-merge explain --json` writes, or a file written by hand:
///     {"groups": [{"name": "fc1", "units": 64, "blocks": 1, "tap": "fc2.weight/input",
///                  "members": [{"parameter": "fc1.weight", "axis": 0}, ...]}]}
/// In names, "*" stands for one part between dots. A group whose name has one stands for as many
/// groups as there are names of parameters that its first member fits, each with what "*" stood for
/// put in everywhere; in a group without one, a member stands for every parameter that fits.
/// `expand_patterns` does that. A member's `offset` defaults to 0, its `length` to the rest of the
/// axis (0 in the struct until check_unit_groups fills it in), its `role` to "in" on axis 1 and
/// "out" elsewhere; `blocks` defaults to 1; `tap` is a string or a list and may be missing. The
/// keys `units`, `pinned` and `proof` beside `groups` are ignored. Throws Error{kInput} naming
/// `where`, the group and the member.
UnitGroups unit_groups_from_json(const nlohmann::json& json, const std::string& where);
/// Every key written out, except a `length` not known yet.
nlohmann::json unit_groups_to_json(const UnitGroups& groups);
/// Throws Error{kInput} when the file is missing or not JSON.
UnitGroups read_unit_groups(const std::filesystem::path& path);

/// Replaces patterns by the names that fit; see unit_groups_from_json. Throws Error{kInput} naming
/// `where` and a pattern that fits nothing.
UnitGroups expand_patterns(const UnitGroups& groups, const TensorMap& state,
                           const std::string& where);

/// Checks groups against a network's parameters and buffers and returns them with every length
/// filled in: every member exists, lies inside its axis and holds units · k elements; no element of
/// an axis belongs to two members; a group is `within` an earlier one with as many units as it has
/// blocks. Patterns are expanded first. Throws Error{kInput} naming `where`, the group and the
/// member.
[[nodiscard]] UnitGroups check_unit_groups(const UnitGroups& groups, const TensorMap& state,
                                           const std::string& where);

/// The groups of a builtin network (model/builtin.h) with the given options, in the order in which
/// the network first produces them and each named after the layer that does so ("layer1.0.conv1").
/// Members stand in the order of the forward pass. A group's tap is the input of the last layer
/// that consumes it. A group norm makes its groups the blocks. Throws Error{kConfig} as
/// builtin_options does.
UnitGroups builtin_unit_groups(const std::string& name, const nlohmann::json& options);

/// False of the builtins whose groups are not written down but derived from their graph
/// (graph/derive_groups.h): the deep ResNets and the vision transformer.
bool has_written_groups(const std::string& builtin);

}  // namespace weightsmith
