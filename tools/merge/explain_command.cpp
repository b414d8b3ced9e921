#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <set>

#include "merge/commands.h"
#include "weightsmith/core/atomic_file.h"
#include "weightsmith/graph/derive_groups.h"
#include "weightsmith/graph/proof.h"
#include "weightsmith/graph/unit_orders.h"
#include "weightsmith/merge/networks.h"
#include "weightsmith/model/example_input.h"
#include "weightsmith/model/network_parts.h"
#include "weightsmith/report/table.h"

namespace weightsmith {
namespace {

using nlohmann::json;

struct ExplainFlags {
  std::string model;
  std::vector<std::string> inputs;
  std::vector<std::string> others;  // that it will be merged with
  std::string groups;               // a file, instead of the graph
  std::string out;
  std::string permuted;
  bool json = false;
  bool quick = false;
};

json remarks_json(const std::vector<UnitRemark>& remarks) {
  json list = json::array();
  for (const UnitRemark& r : remarks)
    list.push_back({{"reason", r.reason}, {"where", r.where}, {"units", r.units}});
  return list;
}

std::string tap_text(const UnitGroup& group) {
  std::string text;
  for (const UnitTap& tap : group.taps) text += (text.empty() ? "" : ", ") + tap.at;
  return text;
}

/// What a person wants to see.
std::string readable(const GroupDerivation& d, const GroupProof& proof) {
  Table table({"group", "units", "blocks", "parameter axes", "tap"});
  for (const UnitGroup& group : d.groups.groups) {
    std::string blocks = group.blocks > 1 ? std::to_string(group.blocks) : "";
    if (!group.within.empty()) blocks += " of " + group.within;
    std::string members;
    for (std::size_t i = 0; i < group.members.size() && i < 3; ++i)
      members += fmt::format("{}{}@{}", i > 0 ? ", " : "", group.members[i].parameter,
                             group.members[i].axis);
    if (group.members.size() > 3) members += fmt::format(" and {} more", group.members.size() - 3);
    table.add_row({group.name, std::to_string(group.units), blocks, members, tap_text(group)});
  }
  const std::int64_t all = d.free_units + d.pinned_units;
  std::string text = table.markdown();
  text += fmt::format(
      "\n{} groups; of {} hidden units {} are free ({:.1f} %), {} pinned\n", d.groups.groups.size(),
      all, d.free_units,
      all > 0 ? 100.0 * static_cast<double>(d.free_units) / static_cast<double>(all) : 100.0,
      d.pinned_units);
  for (const UnitRemark& r : d.pinned)
    text += fmt::format("  {} pinned: {}{}{}\n", r.units, r.reason, r.where.empty() ? "" : ", at ",
                        r.where);
  for (const UnitRemark& r : d.rigid)
    text += fmt::format("  {} move only with their block: {}{}{}\n", r.units, r.reason,
                        r.where.empty() ? "" : ", at ", r.where);
  if (d.groups.groups.empty()) return text + "proof: there is nothing to permute\n";
  text += fmt::format("proof ({}): permutations change the outputs by {:.2g}, {}\n",
                      proof.precision, proof.max_relative_change,
                      std::isfinite(proof.negative_control)
                          ? fmt::format("{} by {:.2g}",
                                        proof.control_is_disturbance ? "disturbing one parameter"
                                                                     : "leaving out one axis",
                                        proof.negative_control)
                          : "and no axis could be left out to see that it would show");
  if (proof.weak_outputs > 0) text += fmt::format("  a weak proof: {}\n", proof.weakness());
  return text;
}

/// Groups that failed, and those inside them, become pinned units.
void pin_failed(GroupDerivation& d, const std::vector<std::string>& failed) {
  std::set<std::string> names(failed.begin(), failed.end());
  for (const UnitGroup& group : d.groups.groups)
    if (names.contains(group.within)) names.insert(group.name);
  GroupDerivation kept = d;
  kept.groups.groups.clear();
  kept.hidden.clear();
  for (std::size_t g = 0; g < d.groups.groups.size(); ++g) {
    const UnitGroup& group = d.groups.groups[g];
    const std::int64_t hidden = d.hidden.at(g);
    if (!names.contains(group.name)) {
      kept.groups.groups.push_back(group);
      kept.hidden.push_back(hidden);
      continue;
    }
    kept.pinned_units += hidden;
    kept.free_units -= hidden;
    if (hidden > 0)
      kept.pinned.push_back({"permuting the group changes the outputs", group.name, hidden});
  }
  d = std::move(kept);
}

/// The same function with its units in random places: what a matching has to undo. `types`: of the
/// archive.
void save_permuted(const ScriptModel& model, const DataTypes& types, const UnitGroups& groups,
                   Run& run, const std::string& path) {
  Rng rng(static_cast<std::uint64_t>(run.settings().seed), {0x7065726d});
  ScriptModel copy = model.clone();
  const TensorMap state = copy.state_dict();
  const at::NoGradGuard no_grad;
  for (const auto& [name, value] : permuted_state(state, groups, random_orders(groups, rng)))
    state.at(name).copy_(value);
  convert_back(copy, types, "permuted weights");
  copy.save(path);
}

json explain(const ExplainFlags& flags, Run& run) {
  ModelRef ref;
  ref.script = flags.model;
  LoadOptions load;
  load.device = run.settings().device;
  load.trust = run.settings().trust;
  ScriptModel model = ScriptModel::load(ref, load);
  const DataTypes types = convert_to_float32(model);
  std::vector<ScriptModel> others;
  for (const std::string& path : flags.others) {
    ref.script = path;
    others.push_back(ScriptModel::load(ref, load));
    convert_to_float32(others.back());
  }
  std::vector<const ScriptModel*> all{&model};
  for (const ScriptModel& other : others) all.push_back(&other);
  const std::vector<c10::IValue> inputs =
      example_inputs(flags.inputs, "--input", run.settings().seed, run.settings().device);
  if (std::any_of(inputs.begin(), inputs.end(), [](const c10::IValue& input) {
        return input.toTensor().dim() > 0 && input.toTensor().size(0) < 2;
      }))
    run.progress().warn(
        "a batch of 1 hides where batch and units are merged: give --input a batch of 2");

  GroupDerivation derived;
  if (flags.groups.empty()) {
    const Phase phase(run.progress(), "derive unit groups");
    derived = derive_unit_groups(model.module(), model.where(), inputs, differing_buffers(all));
  } else {
    derived.groups = read_unit_groups(flags.groups);
  }
  derived.groups = check_unit_groups(derived.groups, model.state_dict(),
                                     flags.groups.empty() ? model.where() : flags.groups);
  // After patterns are expanded. A group without members only orders the blocks of others.
  if (!flags.groups.empty())
    for (const UnitGroup& group : derived.groups.groups) {
      derived.hidden.push_back(group.members.empty() ? 0 : group.units);
      derived.free_units += derived.hidden.back();
    }
  ProofOptions options;
  options.each_group = !flags.quick;
  options.seed = run.settings().seed;
  GroupProof proof = prove_unit_groups(model, derived.groups, inputs, options, run.progress());
  if (!proof.failed.empty()) {
    run.fail_at_end(Error(ErrorKind::kNumeric, model.where(),
                          fmt::format("permuting changes the outputs by {:.2g}: {}",
                                      proof.max_relative_change, join_some(proof.failed, 5)),
                          flags.out.empty()
                              ? "write groups without these with --out FILE"
                              : fmt::format("{} holds the groups without these", flags.out)));
    pin_failed(derived, proof.failed);
  } else if (!proof.holds()) {
    run.fail_at_end(Error(ErrorKind::kNumeric, model.where(),
                          "the proof is blind: disturbing a parameter does not change the outputs",
                          "give --input a shape that the network is made for"));
  }

  if (proof.weak_outputs > 0) run.progress().warn(model.where() + ": " + proof.weakness());

  json result = unit_groups_to_json(derived.groups);
  result["units"] = {{"free", derived.free_units},
                     {"pinned", derived.pinned_units},
                     {"outputs", derived.output_units}};
  result["pinned"] = remarks_json(derived.pinned);
  result["rigid"] = remarks_json(derived.rigid);
  result["cuts"] = possible_cuts(model.module(), model.where());
  result["proof"] = {{"max_relative_change", proof.max_relative_change},
                     {"negative_control", proof.negative_control},
                     {"control", proof.control_is_disturbance ? "disturbance" : "left_out"},
                     {"tolerance", proof.tolerance},
                     {"precision", proof.precision},
                     {"weak_outputs", proof.weak_outputs},
                     {"failed", proof.failed}};
  if (!flags.permuted.empty()) save_permuted(model, types, derived.groups, run, flags.permuted);
  if (!flags.out.empty()) write_text_atomically(flags.out, result.dump(2) + "\n");
  if (flags.json) return result;
  run.show(readable(derived, proof));
  return {{"model", flags.model},     {"groups", derived.groups.groups.size()},
          {"units", result["units"]}, {"pinned", result["pinned"]},
          {"cuts", result["cuts"]},   {"proof", result["proof"]}};
}

}  // namespace

Command explain_command() {
  const auto define = [](CLI::App& app) -> std::function<json(Run&)> {
    auto flags = std::make_shared<ExplainFlags>();
    app.add_option("MODEL", flags->model, "TorchScript archive")->required();
    app.add_option("--input", flags->inputs,
                   "Shape of an argument of forward, such as 2x3x224x224, or i64:2x16 for integers "
                   "below 100; once an argument")
        ->required()
        ->type_name("SHAPE")
        ->allow_extra_args(false);
    app.add_option("--with", flags->others,
                   "A model that it will be merged with: buffers that differ between the two move "
                   "with the units; once a model")
        ->type_name("MODEL")
        ->allow_extra_args(false);
    app.add_option("--groups", flags->groups, "Prove the groups of this file instead")
        ->type_name("FILE");
    app.add_flag("--json", flags->json, "Print everything as JSON instead of a table");
    app.add_option("--out", flags->out, "Write the groups to this file (the key `groups`)")
        ->type_name("FILE");
    app.add_option(
           "--permuted", flags->permuted,
           "Write a copy of the model whose units are permuted at random (by --seed): the same "
           "function, to try a matching on")
        ->type_name("FILE");
    app.add_flag("--quick", flags->quick, "Prove all groups together, not each by itself as well");
    return [flags](Run& run) { return explain(*flags, run); };
  };
  return {"explain", "Show which parameter axes share units, and prove it", define};
}

}  // namespace weightsmith
