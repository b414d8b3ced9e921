#pragma once

#include <spdlog/fmt/fmt.h>

#include <catch2/catch.hpp>
#include <string>
#include <utility>
#include <vector>

#include "support/builtin_cases.h"
#include "support/networks.h"
#include "weightsmith/core/progress.h"
#include "weightsmith/graph/derive_groups.h"
#include "weightsmith/graph/proof.h"
#include "weightsmith/graph/unit_groups.h"
#include "weightsmith/model/script_model.h"

namespace weightsmith::testing {

/// A group on one line: "name units/blocks in within: parameter@axis[begin:end]{index}/groups ...",
/// each part only where it says something (a stretch shorter than the axis).
inline std::string line_of(const UnitGroup& group, const TensorMap& state) {
  std::string line = fmt::format("{} {}", group.name, group.units);
  if (group.blocks > 1) line += fmt::format("/{}", group.blocks);
  if (!group.within.empty()) line += " in " + group.within;
  line += ":";
  for (const GroupMember& m : group.members) {
    line += fmt::format(" {}@{}", m.parameter, m.axis);
    const std::int64_t size = state.at(m.parameter).size(m.axis) * m.groups;
    if (!m.index.empty())
      line += fmt::format("{{{}}}", fmt::join(m.index, ","));
    else if (m.length != size)
      line += fmt::format("[{}:{}]", m.offset, m.offset + m.length);
    if (m.groups > 1) line += fmt::format("/{}", m.groups);
  }
  return line;
}

/// A network's groups, derived, checked and proved.
struct DerivedNetwork {
  DerivedNetwork(torch::jit::Module net, std::vector<c10::IValue> arguments)
      : module(std::move(net)),
        inputs(std::move(arguments)),
        state(state_of(module)),
        derivation(derive_unit_groups(module, "net", inputs)),
        groups(check_unit_groups(derivation.groups, state, "net")) {
    NoProgress progress;
    proof = prove_unit_groups(ScriptModel(module, "net"), groups, inputs, {}, progress);
  }

  std::vector<std::string> lines() const {
    std::vector<std::string> all;
    for (const UnitGroup& group : groups.groups) all.push_back(line_of(group, state));
    return all;
  }

  std::string describe() const {
    std::string text = fmt::format(
        "free {}, pinned {}, outputs {}, relative change {}, failed [{}], control {}\n",
        derivation.free_units, derivation.pinned_units, derivation.output_units,
        proof.max_relative_change, fmt::join(proof.failed, ", "), proof.negative_control);
    for (const std::string& line : lines()) text += line + "\n";
    for (const UnitRemark& r : derivation.pinned)
      text += fmt::format("pinned {}: {} ({})\n", r.units, r.reason, r.where);
    return text;
  }

  torch::jit::Module module;
  std::vector<c10::IValue> inputs;
  TensorMap state;
  GroupDerivation derivation;
  UnitGroups groups;
  GroupProof proof;
};

inline void check_proved(const DerivedNetwork& net) {
  INFO(net.describe());
  CHECK(net.proof.failed.empty());
  CHECK(net.proof.max_relative_change <= net.proof.tolerance);
  CHECK(net.proof.holds());
  CHECK(net.proof.precision == "float64");
}

}  // namespace weightsmith::testing
