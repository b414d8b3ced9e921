#include "weightsmith/merge/repair.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "support/expect_error.h"
#include "weightsmith/eval/normalization.h"
#include "weightsmith/merge/networks.h"
#include "weightsmith/model/builtin.h"

namespace weightsmith {
namespace {

using nlohmann::json;
using testing::expect_error;

Dataset standard_images(std::int64_t n) {
  Dataset data;
  data.images = at::randn({n, 1, 8, 8});
  data.labels = at::zeros({n}, at::kLong);
  data.classes = 1;
  data.where = "random images";
  return data;
}

ScriptModel build(const std::string& name, const json& given, std::uint64_t seed) {
  const json options = builtin_options(name, given);
  ScriptModel model(build_builtin(name, options, seed), name,
                    {{"builtin", name}, {"options", options}});
  at::manual_seed(seed);
  const at::NoGradGuard no_grad;
  for (auto& [key, tensor] : model.parameters())
    if (tensor.dim() == 1) tensor.copy_(at::randn_like(tensor) * 0.3 + 1);
  return model;
}

struct Merge {
  Merge(const std::string& name, const json& options, std::vector<Matching> given = {})
      : models{build(name, options, 1), build(name, options, 2)},
        groups(unit_groups_for(models.front(), "auto")),
        matchings(std::move(given)),
        layers(affine_layers(groups, models.front().parameters())),
        merged(models.front().clone()) {
    at::manual_seed(5);
    data = standard_images(64);
    if (matchings.empty())
      for (const UnitGroup& group : groups.groups)
        matchings.push_back(identity_matching(2, group.units));
    for (ScriptModel& model : models) {
      reset_batch_norm(model, data, 64, at::kCPU, progress);
      originals.push_back(output_moments(model, layers, data, 64, at::kCPU, progress));
    }
    merged.load_state(merge_states(states_of(models).models, groups, matchings, shares), "merged");
  }
  std::int64_t repair_now(std::int64_t batch_size = 64) {
    return repair(merged, layers, originals, groups, matchings, shares, data, batch_size, at::kCPU,
                  progress);
  }
  OutputMoments now() { return output_moments(merged, layers, data, 64, at::kCPU, progress); }

  NoProgress progress;
  ModelShares shares{0.25, 0.75};
  std::vector<ScriptModel> models;
  UnitGroups groups;
  std::vector<Matching> matchings;
  std::vector<AffineLayer> layers;
  std::vector<OutputMoments> originals;
  Dataset data;
  ScriptModel merged;
};

TEST_CASE("after repair every unit has the interpolated mean and deviation", "[merge]") {
  for (const auto& [name, options, layers] :
       {std::tuple{"mlp", json{{"hidden", {24, 16}}}, 2},
        {"convnet", json{{"width", 4}, {"norm", "none"}}, 4},
        {"convnet", json{{"width", 4}, {"norm", "group"}, {"groups", 2}}, 4},
        {"convnet", json{{"width", 4}}, 4},
        {"resnet20", json{{"depth", 8}, {"width", 0.25}, {"channels", 1}}, 9}}) {
    CAPTURE(name, options.dump());
    Merge merge(name, options);
    const auto far_off = [&] {
      double worst = 0;
      const OutputMoments now = merge.now();
      for (const AffineLayer& layer : merge.layers) {
        const auto& a = merge.originals[0].at(layer.bias);
        const auto& b = merge.originals[1].at(layer.bias);
        const auto distance = [&](const at::Tensor& x, const at::Tensor& y) {
          return ((x - y).abs() / (0.25 * a.deviation + 0.75 * b.deviation + 1e-3))
              .max()
              .item<double>();
        };
        const auto& m = now.at(layer.bias);
        worst = std::max(worst, distance(m.mean, 0.25 * a.mean + 0.75 * b.mean));
        worst = std::max(worst, distance(m.deviation, 0.25 * a.deviation + 0.75 * b.deviation));
      }
      return worst;
    };
    CHECK(far_off() > 0.05);  // it was needed
    CHECK(merge.repair_now() == layers);
    CHECK(far_off() < 1e-2);  // batch norm keeps unbiased variances
  }
}

TEST_CASE("repairing in batches comes close to repairing at once", "[merge]") {
  Merge whole("mlp", {{"hidden", {24, 16}}});
  Merge pieces("mlp", {{"hidden", {24, 16}}});
  whole.repair_now(64);
  pieces.repair_now(32);
  const at::Tensor x = standard_images(16).images;
  const at::NoGradGuard no_grad;
  const at::Tensor wanted = whole.merged.forward(x);
  CHECK((pieces.merged.forward(x) - wanted).norm().item<double>() <
        0.2 * wanted.norm().item<double>());
}

TEST_CASE("a slot of several units gets the weighted mean of their statistics", "[merge]") {
  // Two units of model 0 and one of model 1 in slot 0, one of model 1 alone in slot 1.
  std::vector<Matching> matchings{make_matching({2, 2}, 2, {0, 0, 0, 1}, 0)};
  Merge merge("mlp", {{"hidden", {2}}}, matchings);
  merge.repair_now();
  const auto& a = merge.originals[0].at("fc1.bias");
  const auto& b = merge.originals[1].at("fc1.bias");
  const auto m = merge.now().at("fc1.bias");
  for (const auto& [found, first, second] :
       {std::tuple{m.mean, a.mean, b.mean}, {m.deviation, a.deviation, b.deviation}}) {
    const double wanted = (0.25 * (first[0] + first[1]) + 0.75 * second[0]).item<double>() / 1.25;
    CHECK(found[0].item<double>() == Approx(wanted).margin(1e-4));
    CHECK(found[1].item<double>() == Approx(second[1].item<double>()).margin(1e-4));
  }
}

TEST_CASE("repairing the merge of a network with itself changes nothing", "[merge]") {
  Merge merge("convnet", {{"width", 4}, {"norm", "none"}});
  merge.merged.load_state(merge.models[0].state_dict(), "copy");
  merge.originals[1] = merge.originals[0];
  const at::Tensor x = standard_images(8).images;
  const at::NoGradGuard no_grad;
  const at::Tensor wanted = merge.merged.forward(x);
  merge.repair_now();
  CHECK((merge.merged.forward(x) - wanted).abs().max().item<double>() < 1e-4);
}

TEST_CASE("a unit that is dead in the merged network is shifted, not blown up", "[merge]") {
  Merge merge("mlp", {{"hidden", {6}}});
  {
    const at::NoGradGuard no_grad;
    merge.merged.parameters().at("fc1.weight")[3].zero_();
  }
  merge.repair_now();
  const TensorMap state = merge.merged.state_dict();
  CHECK(state.at("fc1.weight")[3].abs().max().item<double>() == 0);
  const double wanted = (0.25 * merge.originals[0].at("fc1.bias").mean[3] +
                         0.75 * merge.originals[1].at("fc1.bias").mean[3])
                            .item<double>();
  CHECK(state.at("fc1.bias")[3].item<double>() == Approx(wanted).margin(1e-5));
}

TEST_CASE("a group whose units nothing can shift is named", "[merge]") {
  const ScriptModel model = build("convnet", {{"width", 4}}, 1);
  UnitGroups groups = unit_groups_for(model, "auto");
  CHECK(affine_layers(groups, model.parameters()).size() == 4);
  auto& members = groups.groups[1].members;
  std::erase_if(members, [](const GroupMember& m) { return m.parameter.starts_with("bn2"); });
  expect_error(ErrorKind::kInput, {"group conv2", "conv2.weight", "no bias", "normalization.mode"},
               [&] { affine_layers(groups, model.parameters()); });
  std::erase_if(members, [](const GroupMember& m) { return m.role == MemberRole::kOut; });
  expect_error(ErrorKind::kInput, {"group conv2", "a weight and a bias"},
               [&] { affine_layers(groups, model.parameters()); });
}

}  // namespace
}  // namespace weightsmith
