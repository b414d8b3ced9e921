#include "weightsmith/merge/networks.h"

#include <ATen/Functions.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "weightsmith/core/error.h"
#include "weightsmith/model/flat_graph.h"
#include "weightsmith/model/graph_difference.h"
#include "weightsmith/tensor/safetensors.h"

namespace weightsmith {
namespace {

/// "w: Half, there Float", one entry a tensor; the names are the same in both.
std::vector<std::string> type_differences(const TensorMap& actual, const TensorMap& wanted) {
  std::vector<std::string> differences;
  for (const auto& [name, tensor] : wanted)
    if (const at::ScalarType type = actual.at(name).scalar_type(); type != tensor.scalar_type())
      differences.push_back(fmt::format("{}: {}, there {}", name, at::toString(type),
                                        at::toString(tensor.scalar_type())));
  return differences;
}

}  // namespace

void check_same_architecture(const std::vector<ScriptModel>& models) {
  WS_CHECK(!models.empty());
  const ScriptModel& first = models.front();
  const TensorMap wanted = first.state_dict();
  const FlatGraph graph(first.module(), first.where());
  for (std::size_t i = 1; i < models.size(); ++i) {
    const TensorMap state = models[i].state_dict();
    if (const auto differences = state_differences(state, wanted); !differences.empty())
      throw Error(ErrorKind::kInput, models[i].where(),
                  fmt::format("not of the architecture of {}: {}", first.where(),
                              join_some(differences, 3)),
                  "only networks of one architecture can be merged");
    if (const auto differences = type_differences(state, wanted); !differences.empty())
      throw Error(
          ErrorKind::kInput, models[i].where(),
          fmt::format("not of the data types of {}: {}", first.where(), join_some(differences, 3)),
          "convert the networks to one data type");
    if (const auto difference =
            graph_difference(FlatGraph(models[i].module(), models[i].where()), graph))
      throw Error(ErrorKind::kInput, models[i].where(),
                  fmt::format("does not compute what {} does: {}", first.where(), *difference),
                  "export both from the same code in the same way and mode; if only the export "
                  "differs, give the first file as \"script\" and this one as \"weights\"");
  }
}

UnitGroups unit_groups_for(const ScriptModel& model, const std::string& groups) {
  UnitGroups found;
  std::string where = groups;
  if (groups == "auto") {
    const nlohmann::json& metadata = model.metadata();
    if (!metadata.contains("builtin"))
      throw Error(ErrorKind::kInput, model.where(),
                  "its unit groups are not known: it was not made as a builtin network",
                  "describe them in a group file (docs/formats.md) and set groups to its path");
    where = model.where();
    // What an archive says of itself is no configuration of the user's.
    try {
      found = builtin_unit_groups(metadata.at("builtin").get<std::string>(),
                                  metadata.value("options", nlohmann::json::object()));
    } catch (const nlohmann::json::exception&) {
      throw Error(ErrorKind::kInput, where, "its weightsmith.json is damaged",
                  "save the model again, or give a group file");
    } catch (const Error& e) {
      throw Error(ErrorKind::kInput, where, e.what(), "save the model again, or give a group file");
    }
  } else {
    found = read_unit_groups(groups);
  }
  return check_unit_groups(found, model.state_dict(), where);
}

NetworkStates states_of(const std::vector<ScriptModel>& models) {
  NetworkStates states;
  for (const ScriptModel& model : models) states.models.push_back(model.state_dict());
  for (const auto& [name, tensor] : models.front().buffers()) states.buffers.insert(name);
  return states;
}

void check_finite(const std::vector<ScriptModel>& models) {
  for (const ScriptModel& model : models)
    for (const auto& [name, tensor] : model.state_dict())
      if (tensor.is_floating_point() && !at::isfinite(tensor).all().item<bool>())
        throw Error(ErrorKind::kNumeric, model.where(),
                    fmt::format("{} holds NaN or infinite values", name),
                    "the model is broken: train it again or use an earlier checkpoint");
}

void write_matchings(const std::filesystem::path& path, const UnitGroups& groups,
                     const std::vector<Matching>& matchings) {
  TensorMap tensors;
  for (std::size_t g = 0; g < matchings.size(); ++g) {
    const Matching& m = matchings[g];
    at::Tensor slot = at::empty({m.models, m.units}, at::kInt);
    std::copy(m.slot.begin(), m.slot.end(), slot.data_ptr<std::int32_t>());
    tensors["slot/" + groups.groups[g].name] = slot;
    tensors["value/" + groups.groups[g].name] = at::scalar_tensor(m.value, at::kDouble);
  }
  write_safetensors(path, tensors, {{"format", "weightsmith matching 1"}});
}

}  // namespace weightsmith
