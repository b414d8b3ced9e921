#include "weightsmith/merge/widths.h"

#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "weightsmith/core/error.h"
#include "weightsmith/match/zip.h"
#include "weightsmith/merge/networks.h"
#include "weightsmith/merge/transform.h"
#include "weightsmith/model/graph_runner.h"
#include "weightsmith/model/tensors_in.h"

namespace weightsmith {
namespace {

/// An axis of a parameter and the stretches on it.
struct Axis {
  std::string parameter;
  std::int64_t axis = 0;
  std::vector<AxisUse> uses;
  bool is_plain = true;
};

std::vector<Axis> axes_of(const UnitGroups& groups) {
  std::vector<Axis> axes;
  for (const auto& [name, uses] : parameter_uses(groups)) {
    std::map<std::int64_t, Axis> by_axis;
    for (const AxisUse& use : uses) {
      const std::int64_t axis = groups.groups[use.group].members[use.member].axis;
      Axis& entry = by_axis[axis];
      entry.parameter = name;
      entry.axis = axis;
      entry.uses.push_back(use);
      entry.is_plain &= groups.groups[use.group].members[use.member].groups == 1;
    }
    // The second axis of a grouped convolution says nothing of the number of units.
    for (auto& [axis, entry] : by_axis)
      if (entry.is_plain) axes.push_back(std::move(entry));
  }
  return axes;
}

/// Elements along an axis for each unit of a stretch.
std::int64_t per_unit(const UnitGroups& groups, const AxisUse& use) {
  const UnitGroup& group = groups.groups[use.group];
  return group.members[use.member].length / group.units;
}

/// How many units every group of a model has, by the lengths of the axes. An axis with one group of
/// unknown units tells them; groups that no such axis carries are taken to be as in the first
/// model, which the comparison of shapes afterwards confirms or refutes.
std::vector<std::int64_t> solve_units(const UnitGroups& groups, const std::vector<Axis>& axes,
                                      const TensorMap& first, const TensorMap& state) {
  std::vector<std::optional<std::int64_t>> units(groups.groups.size());
  bool found = true;
  while (found) {
    found = false;
    for (const Axis& axis : axes) {
      std::int64_t grown =
          state.at(axis.parameter).size(axis.axis) - first.at(axis.parameter).size(axis.axis);
      std::set<std::size_t> unknown;
      std::int64_t elements = 0;  // of the unknown group, a unit
      for (const AxisUse& use : axis.uses) {
        if (units[use.group]) {
          grown -= per_unit(groups, use) * (*units[use.group] - groups.groups[use.group].units);
        } else {
          unknown.insert(use.group);
          elements += per_unit(groups, use);
        }
      }
      if (unknown.size() != 1 || elements == 0 || grown % elements != 0) continue;
      units[*unknown.begin()] = groups.groups[*unknown.begin()].units + grown / elements;
      found = true;
    }
  }
  std::vector<std::int64_t> solved;
  for (std::size_t g = 0; g < units.size(); ++g)
    solved.push_back(units[g].value_or(groups.groups[g].units));
  return solved;
}

/// Throws for a group whose number of units cannot change.
void check_can_change(const UnitGroups& groups, const UnitGroup& group, std::int64_t units,
                      const std::string& where) {
  const auto fail = [&](const std::string& why) {
    throw Error(ErrorKind::kInput, where,
                fmt::format("group {} would have {} units instead of {}, but {}", group.name, units,
                            group.units, why),
                "merge networks of equal widths, and keep the width: leave out zip.reduce");
  };
  if (units < 1) fail("a layer needs at least one");
  if (units % group.blocks != 0) fail(fmt::format("they stand in {} equal blocks", group.blocks));
  for (const UnitGroup& other : groups.groups)
    if (other.within == group.name) fail("its units are the blocks of group " + other.name);
  for (const GroupMember& member : group.members) {
    if (member.groups > 1)
      fail(fmt::format("{} is the weight of a grouped convolution", member.parameter));
    if (!member.index.empty())
      fail(fmt::format("they stand at places of their own along {}", member.parameter));
  }
  for (const UnitTap& tap : group.taps)
    if (!tap.index.empty())
      fail(fmt::format("they are not all that stands along {}, in this order", tap.at));
}

}  // namespace

bool find_widths(UnitGroups& groups, const std::vector<ScriptModel>& models) {
  const std::vector<Axis> axes = axes_of(groups);
  const TensorMap first = models.front().state_dict();
  std::vector<std::vector<std::int64_t>> units;  // [model][group]
  for (const ScriptModel& model : models) {
    const TensorMap state = model.state_dict();
    units.push_back(solve_units(groups, axes, first, state));
    std::map<std::string, std::vector<std::int64_t>> shapes;
    for (const auto& [name, tensor] : first) shapes[name] = tensor.sizes().vec();
    for (const Axis& axis : axes)
      for (const AxisUse& use : axis.uses)
        shapes[axis.parameter][axis.axis] +=
            per_unit(groups, use) * (units.back()[use.group] - groups.groups[use.group].units);
    for (const auto& [name, shape] : shapes)
      if (state.at(name).sizes().vec() != shape)
        throw Error(ErrorKind::kInput, model.where(),
                    fmt::format("{} has shape [{}], which no widths of the layers of {} explain: "
                                "[{}] would go with the rest",
                                name, fmt::join(state.at(name).sizes(), ", "),
                                models.front().where(), fmt::join(shape, ", ")),
                    "only the numbers of hidden units may differ");
  }
  bool differ = false;
  for (std::size_t g = 0; g < groups.groups.size(); ++g) {
    std::vector<std::int64_t> widths;
    for (std::size_t i = 0; i < models.size(); ++i) {
      widths.push_back(units[i][g]);
      if (widths.back() == widths.front()) continue;
      if (groups.groups[g].blocks > 1)
        throw Error(ErrorKind::kInput, models[i].where(),
                    fmt::format("group {} has {} units here and {} in {}, and they stand in blocks "
                                "(attention heads, groups of a group norm)",
                                groups.groups[g].name, widths.back(), widths.front(),
                                models.front().where()),
                    "blocks of unequal sizes cannot be matched: use networks equally wide there");
      check_can_change(groups, groups.groups[g], widths.back(), models[i].where());
    }
    if (std::all_of(widths.begin(), widths.end(),
                    [&](std::int64_t n) { return n == widths.front(); }))
      continue;
    groups.groups[g].widths = std::move(widths);
    differ = true;
  }
  return differ;
}

UnitGroups resized_groups(const UnitGroups& groups, const std::vector<std::int64_t>& units) {
  WS_CHECK(units.size() == groups.groups.size());
  // As the second of two models, whose stretches parameter_uses works out.
  UnitGroups pair = groups;
  for (std::size_t g = 0; g < units.size(); ++g)
    pair.groups[g].widths = {groups.groups[g].units, units[g]};
  UnitGroups resized = groups;
  for (const auto& [name, uses] : parameter_uses(pair))
    for (const AxisUse& use : uses)
      resized.groups[use.group].members[use.member] = member_of(pair, use, 1);
  for (std::size_t g = 0; g < units.size(); ++g) {
    resized.groups[g].units = units[g];
    resized.groups[g].widths.clear();
  }
  return resized;
}

UnitGroups groups_of_model(const UnitGroups& groups, std::int64_t model) {
  std::vector<std::int64_t> units;
  for (const UnitGroup& group : groups.groups)
    units.push_back(group.widths.empty() ? group.units : group.widths[model]);
  return resized_groups(groups, units);
}

std::vector<std::int64_t> merged_units(const std::vector<Matching>& matchings) {
  std::vector<std::int64_t> units;
  for (const Matching& matching : matchings) units.push_back(matching.slots);
  return units;
}

std::vector<std::int64_t> zipped_units(const UnitGroups& groups, std::int64_t models,
                                       double reduce) {
  std::vector<std::int64_t> units;
  const UnitGroup* smallest = nullptr;
  std::int64_t fewest = 0;  // units that are zipped together
  for (const UnitGroup& group : groups.groups) {
    // Blocks that others are within are assigned, not zipped.
    const bool is_order =
        std::any_of(groups.groups.begin(), groups.groups.end(),
                    [&](const UnitGroup& other) { return other.within == group.name; });
    const UnitStack stack = stack_of(group, models);
    units.push_back(is_order ? group.units : zip_slots(stack, group.blocks, reduce));
    const std::int64_t together = stack.size() / group.blocks;
    if (is_order || (smallest != nullptr && together >= fewest)) continue;
    smallest = &group;
    fewest = together;
  }
  if (std::find(units.begin(), units.end(), 0) != units.end()) {
    constexpr double kDigits = 1e4;
    const double most = 1.0 - 1.0 / static_cast<double>(fewest);
    throw Error(ErrorKind::kConfig, "zip.reduce",
                fmt::format("{} leaves none of the {} units of {} that are zipped together", reduce,
                            fewest, groups.describe(*smallest)),
                fmt::format("it must lie in [0, {}] for these networks; without it the width stays",
                            std::floor(most * kDigits) / kDigits));
  }
  return units;
}

bool changes_width(const UnitGroups& groups, const std::vector<std::int64_t>& units) {
  bool changes = false;
  for (std::size_t g = 0; g < units.size(); ++g) {
    if (units[g] == groups.groups[g].units) continue;
    check_can_change(groups, groups.groups[g], units[g], "the merged network");
    changes = true;
  }
  return changes;
}

void try_other_widths(const ScriptModel& merged, const ScriptModel& original,
                      const UnitGroups& groups, const std::vector<c10::IValue>& inputs,
                      Progress& progress) {
  if (inputs.empty()) return;
  const at::NoGradGuard no_grad;
  const std::string advice =
      "its graph may have the widths built in, as tracing and the builtin vit have them: export "
      "the models by scripting, or keep the width";
  const auto outputs_of = [&](const ScriptModel& model) {
    return tensors_in(GraphRunner(model.module(), model.where()).run(inputs));
  };
  std::vector<at::Tensor> outputs;
  try {
    outputs = outputs_of(merged);
  } catch (const Error& e) {
    throw Error(ErrorKind::kInput, "the merged network",
                fmt::format("does not run with its new widths: {}", e.what()), advice);
  }
  const std::vector<at::Tensor> wanted = outputs_of(original);
  bool agree = outputs.size() == wanted.size();
  for (std::size_t i = 0; agree && i < wanted.size(); ++i)
    agree = outputs[i].sizes() == wanted[i].sizes();
  if (!agree)
    throw Error(ErrorKind::kInput, "the merged network",
                "has outputs of other shapes with its new widths", advice);
  if (groups.groups.empty()) return;
  try {
    verify_unit_groups(merged, groups, inputs, progress);
  } catch (const Error& e) {
    throw Error(ErrorKind::kInput, "the merged network",
                fmt::format("mixes units up with its new widths: {}", e.what()), advice);
  }
}

}  // namespace weightsmith
