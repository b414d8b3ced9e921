#include "weightsmith/graph/unit_groups.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "weightsmith/config/nearest.h"
#include "weightsmith/core/atomic_file.h"
#include "weightsmith/core/error.h"
#include "weightsmith/core/json_text.h"

namespace weightsmith {
namespace {

constexpr const char* kRemedy = "docs/formats.md says what a group file holds";

/// An object of the file and what to call it in errors.
struct Object {
  const nlohmann::json& json;
  std::string place;  // "groups.json: group \"conv1\", member 2"

  [[noreturn]] void fail(const std::string& what, const std::string& remedy = kRemedy) const {
    throw Error(ErrorKind::kInput, place, what, remedy);
  }

  void expect_keys(const std::vector<std::string>& known) const {
    if (!json.is_object()) fail(fmt::format("expected an object, found {}", json.type_name()));
    for (const auto& [key, value] : json.items()) {
      if (std::find(known.begin(), known.end(), key) != known.end()) continue;
      const std::string nearest = nearest_name(key, known);
      fail(fmt::format("unknown key \"{}\"", key),
           nearest.empty() ? kRemedy : fmt::format("did you mean \"{}\"?", nearest));
    }
  }

  const nlohmann::json& at(const char* key) const {
    const auto it = json.find(key);
    if (it == json.end()) fail(fmt::format("\"{}\" is missing", key));
    return *it;
  }

  const nlohmann::json& list(const char* key) const {
    const nlohmann::json& value = at(key);
    if (!value.is_array()) fail(fmt::format("\"{}\" must be a list", key));
    return value;
  }

  std::string text(const char* key) const {
    const nlohmann::json& value = at(key);
    if (!value.is_string() || value.get_ref<const std::string&>().empty())
      fail(fmt::format("\"{}\" must be a string, found {}", key, value.dump()));
    return value.get<std::string>();
  }

  std::int64_t integer(const char* key, std::int64_t least) const {
    const nlohmann::json& value = at(key);
    if (!value.is_number_integer() || value.get<std::int64_t>() < least)
      fail(fmt::format("\"{}\" must be an integer of at least {}, found {}", key, least,
                       value.dump()));
    return value.get<std::int64_t>();
  }

  std::int64_t integer(const char* key, std::int64_t least, std::int64_t fallback) const {
    return json.contains(key) ? integer(key, least) : fallback;
  }
};

GroupMember read_member(const Object& object) {
  object.expect_keys({"parameter", "axis", "offset", "length", "role"});
  GroupMember member;
  member.parameter = object.text("parameter");
  member.axis = object.integer("axis", 0);
  member.offset = object.integer("offset", 0, 0);
  member.length = object.integer("length", 1, 0);
  const std::string role =
      object.json.contains("role") ? object.text("role") : (member.axis == 1 ? "in" : "out");
  if (role != "in" && role != "out")
    object.fail(fmt::format("\"role\" must be \"in\" or \"out\", found \"{}\"", role));
  member.role = role == "in" ? MemberRole::kIn : MemberRole::kOut;
  return member;
}

std::vector<std::string> read_taps(const Object& object) {
  if (!object.json.contains("tap")) return {};
  const nlohmann::json& tap = object.json.at("tap");
  if (tap.is_string()) return {object.text("tap")};
  if (!tap.is_array()) object.fail("\"tap\" must be a string or a list of strings");
  std::vector<std::string> taps;
  for (const nlohmann::json& item : tap) {
    if (!item.is_string()) object.fail("\"tap\" must be a string or a list of strings");
    taps.push_back(item.get<std::string>());
  }
  return taps;
}

UnitGroup read_group(const Object& object, const std::string& where) {
  object.expect_keys({"name", "units", "blocks", "members", "tap"});
  UnitGroup group;
  group.name = object.text("name");
  const Object named{object.json, fmt::format("{}: group \"{}\"", where, group.name)};
  group.units = named.integer("units", 1);
  group.blocks = named.integer("blocks", 1, 1);
  if (group.units % group.blocks != 0)
    named.fail(
        fmt::format("{} units do not divide into {} equal blocks", group.units, group.blocks));
  const nlohmann::json& members = named.list("members");
  if (members.empty()) named.fail("\"members\" is empty");
  for (std::size_t i = 0; i < members.size(); ++i)
    group.members.push_back(
        read_member({members[i], fmt::format("{}, member {}", named.place, i)}));
  group.taps = read_taps(named);
  return group;
}

/// The stretches of one axis taken so far: start → (end, owner).
using Stretches = std::map<std::int64_t, std::pair<std::int64_t, std::string>>;

/// The owner of a stretch that shares an element with [begin, end), else "".
std::string owner_of_overlap(const Stretches& taken, std::int64_t begin, std::int64_t end) {
  const auto after = taken.lower_bound(begin);
  if (after != taken.end() && after->first < end) return after->second.second;
  if (after == taken.begin()) return "";
  const auto& [previous_end, owner] = std::prev(after)->second;
  return previous_end > begin ? owner : "";
}

}  // namespace

UnitGroups unit_groups_from_json(const nlohmann::json& json, const std::string& where) {
  const Object file{json, where};
  file.expect_keys({"groups", "units", "pinned", "proof"});
  const nlohmann::json& list = file.list("groups");
  UnitGroups groups;
  std::set<std::string> names;
  for (std::size_t i = 0; i < list.size(); ++i) {
    groups.groups.push_back(read_group({list[i], fmt::format("{}: group {}", where, i)}, where));
    if (!names.insert(groups.groups.back().name).second)
      file.fail(fmt::format("two groups are called \"{}\"", groups.groups.back().name));
  }
  return groups;
}

nlohmann::json unit_groups_to_json(const UnitGroups& groups) {
  auto list = nlohmann::json::array();
  for (const UnitGroup& group : groups.groups) {
    auto members = nlohmann::json::array();
    for (const GroupMember& member : group.members) {
      nlohmann::json json = {{"parameter", member.parameter},
                             {"axis", member.axis},
                             {"offset", member.offset},
                             {"role", member.role == MemberRole::kIn ? "in" : "out"}};
      if (member.length > 0) json["length"] = member.length;
      members.push_back(std::move(json));
    }
    nlohmann::json json = {{"name", group.name},
                           {"units", group.units},
                           {"blocks", group.blocks},
                           {"members", std::move(members)}};
    if (group.taps.size() == 1) json["tap"] = group.taps.front();
    if (group.taps.size() > 1) json["tap"] = group.taps;
    list.push_back(std::move(json));
  }
  return {{"groups", std::move(list)}};
}

UnitGroups read_unit_groups(const std::filesystem::path& path) {
  return unit_groups_from_json(
      parse_json(read_text(path), ErrorKind::kInput, path.string(), kRemedy), path.string());
}

UnitGroups check_unit_groups(const UnitGroups& groups, const TensorMap& state,
                             const std::string& where) {
  std::vector<std::string> known;
  for (const auto& [name, tensor] : state) known.push_back(name);

  UnitGroups checked = groups;
  std::map<std::pair<std::string, std::int64_t>, Stretches> taken;
  for (UnitGroup& group : checked.groups) {
    for (GroupMember& member : group.members) {
      const auto fail = [&](const std::string& what, const std::string& remedy = kRemedy) {
        throw Error(ErrorKind::kInput, where,
                    fmt::format("group \"{}\", member \"{}\" axis {}: {}", group.name,
                                member.parameter, member.axis, what),
                    remedy);
      };
      const auto it = state.find(member.parameter);
      if (it == state.end()) {
        const std::string nearest = nearest_name(member.parameter, known);
        fail("the network has no such parameter",
             nearest.empty() ? kRemedy : fmt::format("did you mean \"{}\"?", nearest));
      }
      if (member.axis < 0 || member.axis >= it->second.dim())
        fail(fmt::format("the parameter has {} dimensions", it->second.dim()));
      const std::int64_t size = it->second.size(member.axis);
      const bool begins_inside = member.offset >= 0 && member.offset <= size;
      if (begins_inside && member.length == 0) member.length = size - member.offset;
      // Without adding offset and length: the sum of two large numbers would overflow.
      if (!begins_inside || member.length < 1 || member.length > size - member.offset)
        fail(fmt::format("{} elements from {} on lie outside the axis of {}", member.length,
                         member.offset, size));
      const std::int64_t end = member.offset + member.length;
      if (group.units < 1 || group.blocks < 1 || group.units % group.blocks != 0)
        fail(fmt::format("{} units in {} blocks", group.units, group.blocks));
      if (member.length % group.units != 0)
        fail(fmt::format("{} elements are not a multiple of the group's {} units", member.length,
                         group.units));
      Stretches& axis = taken[{member.parameter, member.axis}];
      const std::string owner = owner_of_overlap(axis, member.offset, end);
      if (!owner.empty())
        fail(fmt::format("elements {} to {} already belong to group \"{}\"", member.offset, end - 1,
                         owner));
      axis[member.offset] = {end, group.name};
    }
  }
  return checked;
}

}  // namespace weightsmith
