#include "weightsmith/graph/unit_groups.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cctype>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <regex>
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

  /// Positions; empty when the key is missing.
  std::vector<std::int64_t> positions(const char* key) const {
    std::vector<std::int64_t> values;
    if (!json.contains(key)) return values;
    for (const nlohmann::json& value : list(key)) {
      if (!value.is_number_integer() || value.get<std::int64_t>() < 0)
        fail(fmt::format("\"{}\" must hold integers of at least 0, found {}", key, value.dump()));
      values.push_back(value.get<std::int64_t>());
    }
    return values;
  }
};

GroupMember read_member(const Object& object) {
  object.expect_keys({"parameter", "axis", "offset", "length", "role", "index", "groups"});
  GroupMember member;
  member.parameter = object.text("parameter");
  member.axis = object.integer("axis", 0);
  member.offset = object.integer("offset", 0, 0);
  member.length = object.integer("length", 1, 0);
  member.index = object.positions("index");
  member.groups = object.integer("groups", 1, 1);
  if (!member.index.empty()) {
    member.offset = *std::min_element(member.index.begin(), member.index.end());
    member.length = static_cast<std::int64_t>(member.index.size());
  }
  const std::string role =
      object.json.contains("role") ? object.text("role") : (member.axis == 1 ? "in" : "out");
  if (role != "in" && role != "out")
    object.fail(fmt::format("\"role\" must be \"in\" or \"out\", found \"{}\"", role));
  member.role = role == "in" ? MemberRole::kIn : MemberRole::kOut;
  return member;
}

std::vector<UnitTap> read_taps(const Object& object) {
  if (!object.json.contains("tap")) return {};
  const nlohmann::json& tap = object.json.at("tap");
  if (tap.is_string()) return {object.text("tap")};
  if (!tap.is_array()) object.fail("\"tap\" must be a string or a list");
  std::vector<UnitTap> taps;
  for (std::size_t i = 0; i < tap.size(); ++i) {
    if (tap[i].is_string()) {
      taps.emplace_back(tap[i].get<std::string>());
      continue;
    }
    const Object item{tap[i], fmt::format("{}, tap {}", object.place, i)};
    item.expect_keys({"at", "axes", "index"});
    UnitTap& read = taps.emplace_back(item.text("at"));
    read.axes = item.positions("axes");
    read.index = item.positions("index");
    if (!std::is_sorted(read.axes.begin(), read.axes.end(), std::less_equal<>()))
      item.fail("\"axes\" must ascend");
    if (read.axes.empty() && !read.index.empty()) item.fail("\"index\" needs \"axes\"");
  }
  return taps;
}

UnitGroup read_group(const Object& object, const std::string& where) {
  object.expect_keys({"name", "units", "blocks", "within", "members", "tap"});
  UnitGroup group;
  group.name = object.text("name");
  const Object named{object.json, fmt::format("{}: group \"{}\"", where, group.name)};
  group.units = named.integer("units", 1);
  group.blocks = named.integer("blocks", 1, 1);
  if (group.units % group.blocks != 0)
    named.fail(
        fmt::format("{} units do not divide into {} equal blocks", group.units, group.blocks));
  if (object.json.contains("within")) group.within = named.text("within");
  const nlohmann::json& members = named.list("members");
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

std::string UnitGroups::describe(const UnitGroup& group) const {
  const std::string named = fmt::format("group \"{}\"", group.name);
  return where.empty() ? named : fmt::format("{}: {}", where, named);
}

UnitGroups unit_groups_from_json(const nlohmann::json& json, const std::string& where) {
  const Object file{json, where};
  file.expect_keys({"groups", "units", "pinned", "rigid", "cuts", "proof", "model"});
  const nlohmann::json& list = file.list("groups");
  UnitGroups groups;
  groups.where = where;
  std::set<std::string> names;
  for (std::size_t i = 0; i < list.size(); ++i) {
    groups.groups.push_back(read_group({list[i], fmt::format("{}: group {}", where, i)}, where));
    if (!names.insert(groups.groups.back().name).second)
      file.fail(fmt::format("two groups are called \"{}\"", groups.groups.back().name));
  }
  for (const UnitGroup& group : groups.groups)
    if (group.members.empty() &&
        std::none_of(groups.groups.begin(), groups.groups.end(),
                     [&](const UnitGroup& other) { return other.within == group.name; }))
      file.fail(fmt::format("group \"{}\": \"members\" is empty", group.name));
  return groups;
}

namespace {

nlohmann::json tap_json(const UnitTap& tap) {
  if (tap.axes.empty()) return tap.at;
  nlohmann::json json = {{"at", tap.at}, {"axes", tap.axes}};
  if (!tap.index.empty()) json["index"] = tap.index;
  return json;
}

}  // namespace

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
      if (!member.index.empty()) json["index"] = member.index;
      if (member.groups > 1) json["groups"] = member.groups;
      members.push_back(std::move(json));
    }
    nlohmann::json json = {{"name", group.name},
                           {"units", group.units},
                           {"blocks", group.blocks},
                           {"members", std::move(members)}};
    if (!group.within.empty()) json["within"] = group.within;
    if (group.taps.size() == 1 && group.taps.front().axes.empty())
      json["tap"] = group.taps.front().at;
    else
      for (const UnitTap& tap : group.taps) json["tap"].push_back(tap_json(tap));
    list.push_back(std::move(json));
  }
  return {{"groups", std::move(list)}};
}

UnitGroups read_unit_groups(const std::filesystem::path& path) {
  return unit_groups_from_json(
      parse_json(read_text(path), ErrorKind::kInput, path.string(), kRemedy), path.string());
}

namespace {

/// What the "*"s of a pattern stand for in a name; empty when it does not fit.
std::optional<std::vector<std::string>> fit(const std::string& pattern, const std::string& name) {
  std::string expression;
  for (const char c : pattern) {
    if (c == '*')
      expression += "([^.]+)";
    else
      expression += std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'
                        ? std::string(1, c)
                        : std::string("\\") + c;
  }
  std::smatch match;
  if (!std::regex_match(name, match, std::regex(expression))) return std::nullopt;
  return std::vector<std::string>(match.begin() + 1, match.end());
}

std::string filled_in(const std::string& pattern, const std::vector<std::string>& parts) {
  std::string text;
  std::size_t next = 0;
  for (const char c : pattern)
    if (c == '*' && next < parts.size())
      text += parts[next++];
    else
      text += c;
  return text;
}

bool is_pattern(const std::string& text) { return text.find('*') != std::string::npos; }

}  // namespace

UnitGroups expand_patterns(const UnitGroups& groups, const TensorMap& state,
                           const std::string& where) {
  const auto fits_of = [&](const std::string& group, const std::string& pattern) {
    std::vector<std::vector<std::string>> fits;
    for (const auto& [name, tensor] : state)
      if (auto parts = fit(pattern, name)) fits.push_back(std::move(*parts));
    if (fits.empty())
      throw Error(ErrorKind::kInput, where,
                  fmt::format("group \"{}\": no parameter fits \"{}\"", group, pattern), kRemedy);
    return fits;
  };
  UnitGroups expanded;
  expanded.where = groups.where;
  for (const UnitGroup& group : groups.groups) {
    if (is_pattern(group.name)) {
      if (group.members.empty() || !is_pattern(group.members.front().parameter))
        throw Error(
            ErrorKind::kInput, where,
            fmt::format("group \"{}\": its first member must have a \"*\" as well", group.name),
            kRemedy);
      for (const auto& parts : fits_of(group.name, group.members.front().parameter)) {
        UnitGroup& one = expanded.groups.emplace_back(group);
        one.name = filled_in(group.name, parts);
        one.within = filled_in(group.within, parts);
        for (GroupMember& member : one.members)
          member.parameter = filled_in(member.parameter, parts);
        for (UnitTap& tap : one.taps) tap.at = filled_in(tap.at, parts);
      }
      continue;
    }
    UnitGroup& one = expanded.groups.emplace_back(group);
    one.members.clear();
    for (const GroupMember& member : group.members) {
      if (!is_pattern(member.parameter)) {
        one.members.push_back(member);
        continue;
      }
      for (const auto& parts : fits_of(group.name, member.parameter))
        one.members.emplace_back(member).parameter = filled_in(member.parameter, parts);
    }
  }
  return expanded;
}

UnitGroups check_unit_groups(const UnitGroups& groups, const TensorMap& state,
                             const std::string& where) {
  std::vector<std::string> known;
  for (const auto& [name, tensor] : state) known.push_back(name);

  UnitGroups checked = expand_patterns(groups, state, where);
  std::map<std::pair<std::string, std::int64_t>, Stretches> taken;
  std::map<std::string, std::int64_t> units_of;  // of the groups so far
  for (UnitGroup& group : checked.groups) {
    if (group.units < 1 || group.blocks < 1 || group.units % group.blocks != 0)
      throw Error(
          ErrorKind::kInput, where,
          fmt::format("group \"{}\": {} units in {} blocks", group.name, group.units, group.blocks),
          kRemedy);
    if (!group.within.empty()) {
      const auto outer = units_of.find(group.within);
      if (outer == units_of.end() || outer->second != group.blocks)
        throw Error(ErrorKind::kInput, where,
                    fmt::format("group \"{}\": \"within\" must name a group before it with {} "
                                "units, one a block; found \"{}\"",
                                group.name, group.blocks, group.within),
                    kRemedy);
    }
    units_of[group.name] = group.units;
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
      if (member.groups > 1 &&
          (member.axis != 1 || it->second.dim() < 2 || it->second.size(0) % member.groups != 0))
        fail(fmt::format("\"groups\": {} does not fit a weight of {} outputs on this axis",
                         member.groups, it->second.size(0)));
      const std::int64_t size = it->second.size(member.axis) * member.groups;
      const bool begins_inside = member.offset >= 0 && member.offset <= size;
      if (begins_inside && member.length == 0) member.length = size - member.offset;
      // Without adding offset and length: the sum of two large numbers would overflow.
      const bool fits = member.index.empty()
                            ? member.length >= 1 && member.length <= size - member.offset
                            : *std::max_element(member.index.begin(), member.index.end()) < size;
      if (!begins_inside || !fits)
        fail(fmt::format("{} elements from {} on lie outside the axis of {}", member.length,
                         member.offset, size));
      if (member.length % group.units != 0)
        fail(fmt::format("{} elements are not a multiple of the group's {} units", member.length,
                         group.units));
      Stretches& axis = taken[{member.parameter, member.axis}];
      const auto take = [&](std::int64_t begin, std::int64_t end) {
        const std::string owner = owner_of_overlap(axis, begin, end);
        if (!owner.empty())
          fail(fmt::format("elements {} to {} already belong to group \"{}\"", begin, end - 1,
                           owner));
        axis[begin] = {end, group.name};
      };
      if (member.index.empty()) take(member.offset, member.offset + member.length);
      for (const std::int64_t position : member.index) take(position, position + 1);
    }
  }
  return checked;
}

}  // namespace weightsmith
