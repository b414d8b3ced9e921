#include "weightsmith/merge/partial.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

#include "weightsmith/core/error.h"
#include "weightsmith/core/rng.h"
#include "weightsmith/merge/networks.h"
#include "weightsmith/model/graph_runner.h"

namespace weightsmith {
namespace {

at::Tensor result_of(const ScriptModel& trunk, const std::vector<c10::IValue>& inputs) {
  const at::NoGradGuard no_grad;
  const at::Tensor result = GraphRunner(trunk.module(), trunk.where()).run(inputs).toTensor();
  if (result.dim() < 2)
    throw Error(ErrorKind::kInput, trunk.where(),
                fmt::format("what crosses the cut has {} dimensions, so no units", result.dim()),
                "cut it somewhere else");
  return result;
}

/// Weights in which no two elements are alike.
at::Tensor probe_weights(const at::Tensor& result) {
  at::Tensor weights = at::empty(result.sizes().slice(1), at::kFloat);
  Rng rng(0, {0x70726f62});
  auto* data = weights.data_ptr<float>();
  for (std::int64_t i = 0; i < weights.numel(); ++i) data[i] = static_cast<float>(rng.normal());
  return weights.to(result.device());
}

std::vector<std::int64_t> positions_in(const GroupMember& member) {
  if (!member.index.empty()) return member.index;
  std::vector<std::int64_t> positions(member.length);
  for (std::int64_t i = 0; i < member.length; ++i) positions[i] = member.offset + i;
  return positions;
}

/// A tap on the trunk's result for the units that stand there.
UnitTap tap_at(const std::string& where, const BoundaryUnits& units) {
  UnitTap tap(where);
  tap.axes = {units.dim};
  bool is_whole = static_cast<std::int64_t>(units.positions.size()) == units.size;
  for (std::size_t i = 0; i < units.positions.size(); ++i)
    is_whole &= units.positions[i] == static_cast<std::int64_t>(i);
  if (!is_whole) tap.index = units.positions;
  return tap;
}

/// Where a model's head finds what it read at each place of a dimension, when the units moved among
/// the places that units have.
std::vector<std::int64_t> places_of_units(const std::vector<BoundaryUnits>& stretches,
                                          const std::vector<Matching>& matchings,
                                          std::int64_t model) {
  std::vector<std::int64_t> index(stretches.front().size);
  std::iota(index.begin(), index.end(), 0);
  for (const BoundaryUnits& units : stretches) {
    const Matching& matching = matchings[units.group];
    const auto k = static_cast<std::int64_t>(units.positions.size()) / matching.slots;
    for (std::int64_t u = 0; u < matching.slots; ++u)
      for (std::int64_t j = 0; j < k; ++j)
        index[units.positions[u * k + j]] = units.positions[matching.slots_of(model)[u] * k + j];
  }
  return index;
}

/// The same when there are other numbers of them: what stands behind a stretch of units moves with
/// its end.
std::vector<std::int64_t> moved_places(std::vector<BoundaryUnits> stretches,
                                       const std::vector<Matching>& matchings, std::int64_t model) {
  std::sort(stretches.begin(), stretches.end(), [](const BoundaryUnits& a, const BoundaryUnits& b) {
    return a.positions.front() < b.positions.front();
  });
  std::vector<std::int64_t> index;
  std::int64_t place = 0;  // of the first model's result
  std::int64_t moved = 0;  // by how much it stands further behind in the merged one
  const auto keep_until = [&](std::int64_t end) {
    for (; place < end; ++place) index.push_back(place + moved);
  };
  for (const BoundaryUnits& units : stretches) {
    const std::int64_t begin = units.positions.front();
    const auto length = static_cast<std::int64_t>(units.positions.size());
    for (std::int64_t i = 0; i < length; ++i)
      if (units.positions[i] != begin + i)
        throw Error(ErrorKind::kInput, fmt::format("dimension {} at the cut", units.dim),
                    "its units do not stand side by side, so their number cannot change",
                    "cut somewhere else, or keep the width");
    keep_until(begin);
    const Matching& matching = matchings[units.group];
    const std::int64_t k = length / matching.stack.units(0);
    for (std::int64_t u = 0; u < matching.stack.units(model); ++u)
      for (std::int64_t j = 0; j < k; ++j)
        index.push_back(begin + moved + matching.slots_of(model)[u] * k + j);
    place = begin + length;
    moved += (matching.slots - matching.stack.units(0)) * k;
  }
  keep_until(stretches.front().size);
  return index;
}

}  // namespace

CutModels cut_models(const std::vector<ScriptModel>& models, const std::string& until) {
  CutModels cut;
  for (const ScriptModel& model : models) {
    NetworkParts parts = cut_network(model.module(), model.where(), until);
    cut.trunks.push_back(model.with_network(std::move(parts.trunk)));
    cut.heads.push_back(model.with_network(std::move(parts.head)));
  }
  return cut;
}

TrunkUnits trunk_units(const ScriptModel& trunk, const std::vector<c10::IValue>& inputs,
                       bool verify, Progress& progress, const std::set<std::string>& moving) {
  if (inputs.empty())
    throw Error(
        ErrorKind::kConfig, "inputs",
        fmt::format("the graph of {} must be run once to find its unit groups", trunk.where()),
        "give the shape of its input, such as \"inputs\": [\"2x3x224x224\"], or a data set");
  const at::Tensor result = result_of(trunk, inputs);
  const ProbedNetwork probed = add_probe(trunk.module(), trunk.where(), probe_weights(result));
  const ScriptModel network = trunk.with_network(probed.network);
  const UnitGroups all = unit_groups_for(network, "auto", inputs, moving);
  if (verify) verify_unit_groups(network, all, inputs, progress);

  TrunkUnits units;
  std::map<std::string, std::size_t> kept;
  for (const UnitGroup& group : all.groups) {
    UnitGroup own = group;
    std::vector<BoundaryUnits> seen;
    std::erase_if(own.members, [&](const GroupMember& member) {
      if (member.parameter != probed.parameter) return false;
      const std::int64_t dim = member.axis + 1;
      seen.push_back({units.groups.groups.size(), dim, result.size(dim), positions_in(member)});
      return true;
    });
    // Blocks of elements that no parameter of the trunk carries have nothing to be matched by.
    if (own.members.empty()) continue;
    if (!own.within.empty() && kept.count(own.within) == 0) own.within.clear();
    if (!seen.empty()) own.taps = {tap_at(probed.tap, seen.front())};
    kept[own.name] = units.groups.groups.size();
    units.groups.groups.push_back(std::move(own));
    units.boundary.insert(units.boundary.end(), seen.begin(), seen.end());
  }
  units.groups = check_unit_groups(units.groups, trunk.state_dict(), trunk.where());
  return units;
}

std::vector<Selection> head_reads(const std::vector<BoundaryUnits>& boundary,
                                  const std::vector<Matching>& matchings, std::int64_t model) {
  std::map<std::int64_t, std::vector<BoundaryUnits>> by_dim;
  for (const BoundaryUnits& units : boundary) by_dim[units.dim].push_back(units);
  std::vector<Selection> reads;
  for (auto& [dim, stretches] : by_dim) {
    const bool keeps_width =
        std::all_of(stretches.begin(), stretches.end(), [&](const BoundaryUnits& units) {
          return matchings[units.group].stack.is_even() &&
                 matchings[units.group].slots == matchings[units.group].stack.units(0);
        });
    const std::vector<std::int64_t> index = keeps_width
                                                ? places_of_units(stretches, matchings, model)
                                                : moved_places(stretches, matchings, model);
    const at::Tensor places = at::tensor(index, at::kLong);
    if (keeps_width && at::equal(places, at::arange(places.numel(), at::kLong))) continue;
    reads.push_back({dim, places});
  }
  return reads;
}

ScriptModel attach_heads(const ScriptModel& trunk, const std::vector<ScriptModel>& heads,
                         const std::vector<BoundaryUnits>& boundary,
                         const std::vector<Matching>& matchings, const std::string& until) {
  const TensorMap state = trunk.state_dict();
  std::vector<HeadPart> parts;
  nlohmann::json tasks = nlohmann::json::array();
  for (std::size_t i = 0; i < heads.size(); ++i) {
    HeadPart& part = parts.emplace_back();
    part.head = heads[i].clone().module();
    part.reads = head_reads(boundary, matchings, static_cast<std::int64_t>(i));
    for (Selection& selection : part.reads)
      selection.index = selection.index.to(state.begin()->second.device());
    tasks.push_back(heads[i].name());
  }
  ScriptModel network = trunk.with_network(join_network(trunk.module(), parts));
  network.metadata() = {{"partial", {{"until", until}, {"tasks", tasks}}}};
  return network;
}

std::vector<ScriptModel> task_networks(const ScriptModel& network) {
  const torch::jit::Module& module = network.module();
  const torch::jit::Module trunk = module.attr("trunk").toModule();
  const torch::jit::Module heads = module.attr("heads").toModule();
  const torch::jit::Module units = module.attr("units").toModule();
  std::vector<ScriptModel> tasks;
  const nlohmann::json& partial = network.metadata().at("partial");
  for (std::size_t i = 0; i < partial.at("tasks").size(); ++i) {
    const std::string name = std::to_string(i);
    HeadPart part{heads.attr(name).toModule(), {}};
    if (units.hasattr(name))
      for (const auto& buffer : units.attr(name).toModule().named_buffers(/*recurse=*/false))
        part.reads.push_back({std::stoll(buffer.name), buffer.value});
    const auto& task = partial.at("tasks").at(i);
    tasks.push_back(network.with_network(join_network(trunk, part), task.get<std::string>()));
    tasks.back().metadata() = {{"partial", {{"until", partial.at("until")}, {"task", task}}}};
  }
  return tasks;
}

}  // namespace weightsmith
