// Whole networks merged by the authors' implementation of MuDSC (tests/data/golden/README.md).

#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "support/golden.h"
#include "weightsmith/merge/mudsc.h"
#include "weightsmith/merge/transform.h"
#include "weightsmith/tensor/safetensors.h"

namespace weightsmith {
namespace {

using testing::golden;

struct Case {
  const char* name;
  MergeMethod method;
  MergeSpace space;
};

const std::vector<Case> kCases{
    {"avg", MergeMethod::kAverage, MergeSpace::kWeight},
    {"act_align", MergeMethod::kAlign, MergeSpace::kActivation},
    {"weight_align", MergeMethod::kAlign, MergeSpace::kWeight},
    {"mudsc_align", MergeMethod::kAlign, MergeSpace::kDual},
    {"act_zip", MergeMethod::kZip, MergeSpace::kActivation},
    {"weight_zip", MergeMethod::kZip, MergeSpace::kWeight},
    {"mudsc_zip", MergeMethod::kZip, MergeSpace::kDual},
};

bool is_statistic(const std::string& name) {
  return name.ends_with("running_mean") || name.ends_with("running_var") ||
         name.ends_with("num_batches_tracked");
}

/// Tensors under `prefix`, without it.
TensorMap part(const SafetensorsFile& file, const std::string& prefix) {
  TensorMap tensors;
  for (const auto& [name, tensor] : file.tensors)
    if (name.starts_with(prefix)) tensors[name.substr(prefix.size())] = tensor;
  return tensors;
}

void check_case(const SafetensorsFile& file, const UnitGroups& groups, const Case& test) {
  CAPTURE(test.name);
  const std::string name = test.name;
  NetworkStates states{{part(file, "in0/"), part(file, "in1/")}, {}};
  for (const auto& [parameter, tensor] : states.models.front())
    if (is_statistic(parameter)) states.buffers.insert(parameter);
  std::vector<PackedSimilarity> activation;
  for (const UnitGroup& group : groups.groups)
    activation.push_back(
        packed(all_pairs_similarity(file.tensors.at("act_sims/" + group.name), 2, group.name)));

  MatchOptions options;
  options.variant.method = test.method;
  options.variant.space = test.space;
  NoProgress progress;
  const MatchResult result = match_units(states, groups, activation, options, progress);

  for (std::size_t g = 0; g < groups.groups.size(); ++g) {
    CAPTURE(groups.groups[g].name);
    const at::Tensor wanted = file.tensors.at(name + ".unmerge_assign/" + groups.groups[g].name);
    const at::Tensor slots =
        at::tensor(at::ArrayRef<std::int32_t>(result.matchings[g].slot), at::kInt);
    CHECK(at::equal(slots, wanted));
  }
  // The average has no sweeps here; the authors' loop runs over it as over any other method.
  if (test.method != MergeMethod::kAverage) {
    const at::Tensor history =
        at::tensor(at::ArrayRef<double>(result.objective_history), at::kDouble);
    const at::Tensor wanted = file.tensors.at(name + ".newL");
    CAPTURE(
        result.objective_history,
        std::vector<double>(wanted.data_ptr<double>(), wanted.data_ptr<double>() + wanted.numel()));
    REQUIRE(history.sizes() == wanted.sizes());
    CHECK(at::allclose(history, wanted, 0, 1e-5));
  }
  const TensorMap merged = merge_states(states.models, groups, result.matchings);
  for (const auto& [parameter, wanted] : part(file, name + "/")) {
    CAPTURE(parameter);
    CHECK(at::allclose(merged.at(parameter), wanted, 1e-5, 1e-5));
  }
}

GroupMember out(const std::string& parameter, std::int64_t units) {
  return {parameter, 0, 0, units, MemberRole::kOut, {}, 1};
}

GroupMember in(const std::string& parameter, std::int64_t units) {
  return {parameter, 1, 0, units, MemberRole::kIn, {}, 1};
}

/// A convolution's output axis and all of the batch norm behind it.
void add_conv(UnitGroup& group, const std::string& conv, const std::string& norm) {
  group.members.push_back(out(conv + ".weight", group.units));
  for (const char* part : {".weight", ".bias", ".running_mean", ".running_var"})
    group.members.push_back(out(norm + part, group.units));
}

UnitGroups mlp_groups() {
  UnitGroups groups;
  groups.groups.push_back(
      {"0", 16, 1, {out("fc1.weight", 16), out("fc1.bias", 16), in("fc2.weight", 16)}, {}, {}, {}});
  groups.groups.push_back(
      {"1", 14, 1, {out("fc2.weight", 14), out("fc2.bias", 14), in("fc3.weight", 14)}, {}, {}, {}});
  return groups;
}

/// Three stages of one block: a residual group and an inner group each, in the order in which the
/// authors' specification first names them (sweeps visit groups by it).
UnitGroups resnet_groups() {
  UnitGroups groups;
  for (int stage = 1; stage <= 3; ++stage) {
    const std::int64_t units = std::int64_t{2} << stage;
    const std::string block = "layer" + std::to_string(stage) + ".0.";
    const int first = 2 * stage - 2;
    UnitGroup residual{std::to_string(stage == 1 ? first : first + 1), units, 1, {}, {}, {}, {}};
    if (stage == 1)
      add_conv(residual, "conv1", "bn1");
    else
      add_conv(residual, block + "shortcut.0", block + "shortcut.1");
    add_conv(residual, block + "conv2", block + "bn2");
    if (stage == 1) residual.members.push_back(in(block + "conv1.weight", units));
    if (stage < 3) {
      const std::string next = "layer" + std::to_string(stage + 1) + ".0.";
      residual.members.push_back(in(next + "conv1.weight", units));
      residual.members.push_back(in(next + "shortcut.0.weight", units));
    } else {
      residual.members.push_back(in("linear.weight", units));
    }
    UnitGroup inner{std::to_string(stage == 1 ? first + 1 : first), units, 1, {}, {}, {}, {}};
    add_conv(inner, block + "conv1", block + "bn1");
    inner.members.push_back(in(block + "conv2.weight", units));
    groups.groups.push_back(stage == 1 ? residual : inner);
    groups.groups.push_back(stage == 1 ? inner : residual);
  }
  return groups;
}

TEST_CASE("an MLP is merged as the authors merge it", "[golden]") {
  const SafetensorsFile file = read_safetensors(golden("mudsc/net_mlp_N2.safetensors"));
  for (const Case& test : kCases) check_case(file, mlp_groups(), test);
}

TEST_CASE("a ResNet is merged as the authors merge it", "[golden]") {
  const SafetensorsFile file = read_safetensors(golden("mudsc/net_resnet8_w025.safetensors"));
  for (const Case& test : kCases) check_case(file, resnet_groups(), test);
}

}  // namespace
}  // namespace weightsmith
