#include "weightsmith/merge/networks.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "weightsmith/core/error.h"
#include "weightsmith/graph/derive_groups.h"
#include "weightsmith/graph/proof.h"
#include "weightsmith/graph/unit_flow.h"
#include "weightsmith/model/flat_graph.h"
#include "weightsmith/model/graph_difference.h"
#include "weightsmith/tensor/safetensors.h"

namespace weightsmith {
namespace {

constexpr const char* kMatchingFormat = "weightsmith matching 1";
constexpr std::int32_t kNoUnit = -1;  // behind the units of a model narrower than the widest

/// "w: Half, there Float", one entry a tensor; the names are the same in both.
std::vector<std::string> type_differences(const TensorMap& actual, const TensorMap& wanted) {
  std::vector<std::string> differences;
  for (const auto& [name, tensor] : wanted)
    if (const at::ScalarType type = actual.at(name).scalar_type(); type != tensor.scalar_type())
      differences.push_back(fmt::format("{}: {}, there {}", name, at::toString(type),
                                        at::toString(tensor.scalar_type())));
  return differences;
}

/// `wanted` with the sizes of `state` wherever both have as many dimensions.
TensorMap with_sizes_of(const TensorMap& state, TensorMap wanted) {
  for (auto& [name, tensor] : wanted)
    if (const auto own = state.find(name); own != state.end() && own->second.dim() == tensor.dim())
      tensor = own->second;
  return wanted;
}

}  // namespace

void check_same_architecture(const std::vector<ScriptModel>& models, bool sizes_may_differ) {
  WS_CHECK(!models.empty());
  const ScriptModel& first = models.front();
  const TensorMap wanted = first.state_dict();
  const FlatGraph graph(first.module(), first.where());
  for (std::size_t i = 1; i < models.size(); ++i) {
    const TensorMap state = models[i].state_dict();
    const TensorMap resized = with_sizes_of(state, wanted);
    if (const auto differences = state_differences(state, sizes_may_differ ? resized : wanted);
        !differences.empty()) {
      const bool only_sizes = state_differences(state, resized).empty();
      throw Error(
          ErrorKind::kInput, models[i].where(),
          fmt::format("not of the architecture of {}: {}{}", first.where(),
                      only_sizes ? "its layers differ in width: " : "", join_some(differences, 3)),
          only_sizes ? "\"method\": \"zip\" alone, in every variant, merges layers of "
                       "unequal width; inputs and outputs must agree"
                     : "only networks of one architecture can be merged");
    }
    if (const auto differences = type_differences(state, wanted); !differences.empty())
      throw Error(
          ErrorKind::kInput, models[i].where(),
          fmt::format("not of the data types of {}: {}", first.where(), join_some(differences, 3)),
          "convert the networks to one data type");
    if (const auto difference =
            graph_difference(FlatGraph(models[i].module(), models[i].where()), graph))
      throw Error(ErrorKind::kInput, models[i].where(),
                  fmt::format("does not compute what {} does: {}", first.where(), *difference),
                  sizes_may_differ
                      ? "export both from the same code in the same way and mode; sizes that are "
                        "built into a graph must be read off the tensors: script the models"
                      : "export both from the same code in the same way and mode; if only the "
                        "export differs, give the first file as \"script\" and this one as "
                        "\"weights\"");
  }
}

UnitGroups unit_groups_for(const ScriptModel& model, const std::string& groups,
                           const std::vector<c10::IValue>& inputs,
                           const std::set<std::string>& moving) {
  if (groups != "auto")
    return check_unit_groups(read_unit_groups(groups), model.state_dict(), groups);
  const nlohmann::json& metadata = model.metadata();
  const auto builtin = metadata.find("builtin");
  if (builtin == metadata.end() ||
      (builtin->is_string() && !has_written_groups(builtin->get<std::string>()))) {
    if (inputs.empty())
      throw Error(
          ErrorKind::kConfig, "inputs",
          fmt::format("the graph of {} must be run once to find its unit groups", model.where()),
          "give the shape of its input, such as \"inputs\": [\"2x3x224x224\"], or a data "
          "set");
    return check_unit_groups(
        derive_unit_groups(model.module(), model.where(), inputs, moving).groups,
        model.state_dict(), model.where());
  }
  // What an archive says of itself is no configuration of the user's.
  UnitGroups found;
  try {
    found = builtin_unit_groups(metadata.at("builtin").get<std::string>(),
                                metadata.value("options", nlohmann::json::object()));
  } catch (const nlohmann::json::exception&) {
    throw Error(ErrorKind::kInput, model.where(), "its weightsmith.json is damaged",
                "save the model again, or give a group file");
  } catch (const Error& e) {
    throw Error(ErrorKind::kInput, model.where(), e.what(),
                "save the model again, or give a group file");
  }
  return check_unit_groups(found, model.state_dict(), model.where());
}

void verify_unit_groups(const ScriptModel& model, const UnitGroups& groups,
                        const std::vector<c10::IValue>& inputs, Progress& progress) {
  ProofOptions options;
  options.each_group = false;
  const GroupProof proof = prove_unit_groups(model, groups, inputs, options, progress);
  if (!proof.failed.empty())
    throw Error(ErrorKind::kNumeric, model.where(),
                fmt::format("permuting unit groups changes its outputs by {:.2g}: {}",
                            proof.max_relative_change, join_some(proof.failed, 5)),
                "see mudsc-merge explain; correct the group file, or set verify to false");
  if (proof.weak_outputs > 0) progress.warn(model.where() + ": " + proof.weakness());
  if (!proof.holds())
    progress.warn(
        fmt::format("{}: the check of unit groups is blind: disturbing a parameter does not "
                    "change the outputs for this input",
                    model.where()));
}

NetworkStates states_of(const std::vector<ScriptModel>& models) {
  NetworkStates states;
  for (const ScriptModel& model : models) states.models.push_back(model.state_dict());
  for (const auto& [name, tensor] : models.front().buffers()) states.buffers.insert(name);
  return states;
}

void check_finite(const ScriptModel& model) {
  const TensorMap buffers = model.buffers();
  const auto may_be_infinite = [&](const std::string& name) {
    return buffers.contains(name) && !is_trained_buffer(name);
  };
  for (const auto& [name, tensor] : model.state_dict())
    if (tensor.is_floating_point() &&
        !(may_be_infinite(name) ? at::isnan(tensor).logical_not() : at::isfinite(tensor))
             .all()
             .item<bool>())
      throw Error(ErrorKind::kNumeric, model.where(),
                  fmt::format("{} holds NaN or infinite values", name),
                  "the model is broken: train it again or use an earlier checkpoint");
}

DataTypes convert_to_float32(ScriptModel& model) {
  const at::NoGradGuard no_grad;
  DataTypes types;
  std::set<const c10::TensorImpl*> converted;  // a tensor may have several names
  for (auto& [name, tensor] : model.state_dict()) {
    if (!tensor.is_floating_point() || tensor.scalar_type() == at::kFloat) continue;
    if (!converted.insert(tensor.unsafeGetTensorImpl()).second) continue;
    types[name] = tensor.scalar_type();
    at::Tensor target = tensor;
    target.set_data(tensor.to(at::kFloat));
  }
  return types;
}

void convert_back(ScriptModel& model, const DataTypes& types, const std::string& where) {
  const at::NoGradGuard no_grad;
  const TensorMap state = model.state_dict();
  for (const auto& [name, type] : types) {
    at::Tensor tensor = state.at(name);
    const at::Tensor converted = tensor.to(type);
    if (at::isfinite(tensor).logical_and(at::isfinite(converted).logical_not()).any().item<bool>())
      throw Error(ErrorKind::kNumeric, where,
                  fmt::format("{} does not fit into {} after merging", name, c10::toString(type)),
                  "convert the models to float32 first");
    tensor.set_data(converted);
  }
}

void write_matchings(const std::filesystem::path& path, const UnitGroups& groups,
                     const std::vector<Matching>& matchings,
                     std::map<std::string, std::string> metadata) {
  TensorMap tensors;
  for (std::size_t g = 0; g < matchings.size(); ++g) {
    const Matching& m = matchings[g];
    const std::int64_t widest = m.stack.widest();
    at::Tensor slot = at::full({m.stack.models(), widest}, kNoUnit, at::kInt);
    for (std::int64_t i = 0; i < m.stack.models(); ++i)
      std::copy_n(m.slots_of(i), m.stack.units(i), slot.data_ptr<std::int32_t>() + i * widest);
    tensors["slot/" + groups.groups[g].name] = slot;
    tensors["value/" + groups.groups[g].name] = at::scalar_tensor(m.value, at::kDouble);
  }
  metadata["format"] = kMatchingFormat;
  write_safetensors(path, tensors, metadata);
}

MatchingFile read_matchings(const std::filesystem::path& path, const UnitGroups& groups,
                            std::int64_t models) {
  const auto fail = [&path](const std::string& what) {
    throw Error(ErrorKind::kInput, path.string(), what,
                "give the matching.safetensors of a merge of these models");
  };
  SafetensorsFile file = read_safetensors(path);
  if (file.metadata["format"] != kMatchingFormat) fail("is no matching of this version");
  MatchingFile result;
  result.metadata = std::move(file.metadata);
  for (const UnitGroup& group : groups.groups) {
    const auto slot = file.tensors.find("slot/" + group.name);
    const auto value = file.tensors.find("value/" + group.name);
    if (slot == file.tensors.end() || value == file.tensors.end())
      fail(fmt::format("holds no matching of group {}", group.name));
    const at::Tensor& slots = slot->second;
    const UnitStack stack = stack_of(group, models);
    if (slots.scalar_type() != at::kInt || slots.sizes() != at::IntArrayRef{models, stack.widest()})
      fail(fmt::format("group {}: slots are {} of shape [{}], int32 of [{}, {}] wanted", group.name,
                       c10::toString(slots.scalar_type()), fmt::join(slots.sizes(), ", "), models,
                       stack.widest()));
    if (value->second.scalar_type() != at::kDouble || value->second.numel() != 1)
      fail(fmt::format("group {}: its value is no double", group.name));
    Matching m{stack, 0, {}, {}, value->second.item<double>()};
    for (std::int64_t i = 0; i < models; ++i) {
      const auto* row = slots.data_ptr<std::int32_t>() + i * stack.widest();
      m.slot.insert(m.slot.end(), row, row + stack.units(i));
    }
    // Slots are numbered without gaps, so their number follows; check_matching sees to the rest.
    const std::int32_t last = m.slot.empty() ? -1 : *std::max_element(m.slot.begin(), m.slot.end());
    if (last >= stack.size())
      fail(fmt::format("group {}: slot {} of {} stacked units", group.name, last, stack.size()));
    m.slots = last + 1;
    m.count.assign(m.slots, 0);
    for (const std::int32_t s : m.slot)
      if (s >= 0) ++m.count[s];
    check_matching(m, fmt::format("{}: group {}", path.string(), group.name));
    result.matchings.push_back(std::move(m));
  }
  if (file.tensors.size() != 2 * groups.groups.size())
    fail(fmt::format("describes {} groups, the network has {}", file.tensors.size() / 2,
                     groups.groups.size()));
  return result;
}

}  // namespace weightsmith
