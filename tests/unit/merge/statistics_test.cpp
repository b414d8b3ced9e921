#include "weightsmith/merge/statistics.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "support/expect_error.h"
#include "support/golden.h"
#include "weightsmith/merge/networks.h"
#include "weightsmith/model/builtin.h"
#include "weightsmith/tensor/safetensors.h"

namespace weightsmith {
namespace {

using nlohmann::json;
using testing::expect_error;
using testing::golden;

std::vector<ScriptModel> two_mlps() {
  std::vector<ScriptModel> models;
  const json options = {{"inputs", 12}, {"hidden", {16, 14}}, {"outputs", 5}};
  for (std::uint64_t seed : {1, 2})
    models.emplace_back(build_builtin("mlp", options, seed), "mlp",
                        json{{"builtin", "mlp"}, {"options", builtin_options("mlp", options)}});
  return models;
}

Dataset samples(const at::Tensor& images) {
  Dataset data;
  data.images = images;
  data.labels = at::zeros({images.size(0)}, at::kLong);
  data.classes = 1;
  data.where = "samples";
  return data;
}

at::Tensor all_values(const PackedSimilarity& similarity) {
  return unpacked(similarity, Similarity::Scope::kAllPairs).values;
}

TEST_CASE("activation similarity of the golden MLP is the authors'", "[merge]") {
  const SafetensorsFile file = read_safetensors(golden("mudsc/net_mlp_N2.safetensors"));
  std::vector<ScriptModel> models = two_mlps();
  for (int i = 0; i < 2; ++i) {
    TensorMap state;
    const std::string prefix = "in" + std::to_string(i) + "/";
    for (const auto& [name, tensor] : file.tensors)
      if (name.starts_with(prefix)) state[name.substr(prefix.size())] = tensor;
    models[i].load_state(state, "golden");
  }
  const UnitGroups groups = unit_groups_for(models.front(), "auto");
  REQUIRE(groups.groups.size() == 2);
  const Dataset data =
      samples(at::cat({file.tensors.at("act_batch0"), file.tensors.at("act_batch1"),
                       file.tensors.at("act_batch2")}));
  NoProgress progress;
  // 24, 24 and 16 samples, as the authors' batches were; the result depends on no batch size.
  for (const std::int64_t batch_size : {24, 64, 10}) {
    const auto similarity =
        activation_similarity(models, groups, data, {.batch_size = batch_size}, at::kCPU, progress);
    for (int g = 0; g < 2; ++g) {
      const at::Tensor wanted = file.tensors.at("act_sims/" + std::to_string(g));
      CAPTURE(batch_size, g);
      CHECK((all_values(similarity[g]) - wanted).abs().max().item<double>() < 1e-5);
    }
  }
}

TEST_CASE("taps can be tried out on a small batch", "[merge]") {
  std::vector<ScriptModel> models = two_mlps();
  const UnitGroups groups = unit_groups_for(models.front(), "auto");
  CHECK_NOTHROW(try_taps(models, groups, at::rand({2, 12})));
  expect_error(ErrorKind::kInput, {"mlp", "fc1"}, [&] {
    try_taps(models, groups, at::rand({2, 13}));
  });
  UnitGroups wrong = groups;
  const auto refused = [&](std::vector<UnitTap> taps, const std::vector<std::string>& parts) {
    wrong.groups[0].taps = std::move(taps);
    expect_error(ErrorKind::kInput, parts, [&] { try_taps(models, wrong, at::rand({2, 12})); });
  };
  for (const std::string file : {"", "g.json"}) {
    wrong.where = file;
    const std::string group = file.empty() ? "group \"fc1\"" : "g.json: group \"fc1\"";
    refused({"fc7.weight/input"}, {group + ": mlp: ", "no tap \"fc7.weight/input\""});
    refused({"#9999/input"}, {group + ": mlp: ", "no tap \"#9999/input\"", "nodes"});
    refused({"fc1.weight/input"}, {group + ", tap \"fc1.weight/input\"", "no axis of 16 units"});
    refused({}, {group, "no tap"});
  }
}

TEST_CASE("the cross-model scope is a part of all pairs", "[merge]") {
  std::vector<ScriptModel> models = two_mlps();
  const UnitGroups groups = unit_groups_for(models.front(), "auto");
  at::manual_seed(0);
  const Dataset data = samples(at::randn({40, 12}));
  NoProgress progress;
  for (const auto measure : {SimilarityMeasure::kCorrelation, SimilarityMeasure::kCosine}) {
    StatisticsOptions options{.batch_size = 16, .measure = measure};
    const auto all = activation_similarity(models, groups, data, options, at::kCPU, progress);
    options.scope = Similarity::Scope::kCrossModel;
    const auto cross = activation_similarity(models, groups, data, options, at::kCPU, progress);
    for (std::size_t g = 0; g < groups.groups.size(); ++g) {
      const at::Tensor part = unpacked(all[g], options.scope).values;
      CHECK(at::allclose(cross[g].values, part, 1e-5, 1e-6));
      const std::int64_t n = groups.groups[g].units;
      CHECK(at::equal(part[0], all_values(all[g]).narrow(0, 0, n).narrow(1, n, n)));
    }
  }
}

TEST_CASE("little memory takes more passes over the data, for the same result", "[merge]") {
  std::vector<ScriptModel> models = two_mlps();
  const UnitGroups groups = unit_groups_for(models.front(), "auto");
  at::manual_seed(0);
  const Dataset data = samples(at::randn({40, 12}));
  struct Images : Progress {
    void begin(std::string_view, std::int64_t total, std::string_view) override { images = total; }
    void update(std::int64_t, std::string_view) override {}
    void end() override {}
    std::int64_t images = 0;
  } progress;
  for (const auto scope : {Similarity::Scope::kAllPairs, Similarity::Scope::kCrossModel}) {
    StatisticsOptions options{.batch_size = 16, .scope = scope};
    const auto wanted = activation_similarity(models, groups, data, options, at::kCPU, progress);
    CHECK(progress.images == 40);
    const std::int64_t results =
        packed_size(wanted[0].stack, scope) * 4 + packed_size(wanted[1].stack, scope) * 4;
    const std::int64_t at_once = statistics_bytes(groups, 2, options) - results;
    options.memory = 0;  // a group at a time
    const std::int64_t one_by_one = statistics_bytes(groups, 2, options) - results;
    CHECK(one_by_one >= 8 * packed_size(wanted[0].stack, scope));
    CHECK(one_by_one < 0.6 * at_once);
    const auto found = activation_similarity(models, groups, data, options, at::kCPU, progress);
    CHECK(progress.images == 80);
    for (std::size_t g = 0; g < groups.groups.size(); ++g)
      CHECK(at::equal(found[g].values, wanted[g].values));
  }
}

TEST_CASE("a group without a tap, or with one that does not hold its units, is named", "[merge]") {
  std::vector<ScriptModel> models = two_mlps();
  UnitGroups groups = unit_groups_for(models.front(), "auto");
  const Dataset data = samples(at::randn({4, 12}));
  NoProgress progress;
  const auto collect = [&] {
    activation_similarity(models, groups, data, {.batch_size = 4}, at::kCPU, progress);
  };
  groups.groups[1].taps = {UnitTap("fc1.weight/input")};  // 12 values, no multiple of 14
  expect_error(ErrorKind::kInput, {"group \"fc2\"", "fc1.weight/input", "14 units"}, collect);
  groups.groups[1].taps.clear();
  expect_error(ErrorKind::kInput, {"group \"fc2\"", "no tap"}, collect);
}

TEST_CASE("activations that are not finite stop with the tap's name", "[merge]") {
  std::vector<ScriptModel> models = two_mlps();
  const UnitGroups groups = unit_groups_for(models.front(), "auto");
  at::Tensor images = at::randn({4, 12});
  images[2][3] = std::numeric_limits<float>::infinity();
  NoProgress progress;
  expect_error(ErrorKind::kNumeric, {"fc2.weight/input"}, [&] {
    activation_similarity(models, groups, samples(images), {.batch_size = 4}, at::kCPU, progress);
  });
}

TEST_CASE("nearly constant activations far from zero, and dead units, keep their similarities",
          "[merge]") {
  std::vector<ScriptModel> models = two_mlps();
  const UnitGroups groups = unit_groups_for(models.front(), "auto");
  const at::NoGradGuard no_grad;
  at::manual_seed(7);
  const Dataset data = samples(at::randn({200, 12}));
  for (ScriptModel& model : models) {
    TensorMap state = model.state_dict();
    // Mean 50, deviation about 0.01.
    const at::Tensor weight = at::randn({16, 12}) * 0.003;
    state.at("fc1.weight").copy_(weight);
    state.at("fc1.bias").fill_(50);
    state.at("fc1.bias")[5] = -50;  // never above zero
  }
  NoProgress progress;
  const auto found =
      activation_similarity(models, groups, data, {.batch_size = 32}, at::kCPU, progress);
  // The slow twin: everything at once, in double, from the rounded activations that were seen.
  std::vector<at::Tensor> rows;
  for (ScriptModel& model : models) {
    const TensorMap state = model.state_dict();
    rows.push_back(at::relu(at::linear(data.images, state.at("fc1.weight"), state.at("fc1.bias")))
                       .to(at::kDouble)
                       .t());
  }
  const at::Tensor stacked = at::cat(rows);
  const at::Tensor centred = stacked - stacked.mean(1, true);
  const at::Tensor covariance = centred.mm(centred.t()) / 200;
  const at::Tensor deviation = covariance.diag().sqrt();
  CHECK(deviation[0].item<double>() < 0.02);
  const at::Tensor wanted = covariance / at::outer(deviation, deviation).clamp_min(1e-7);
  const at::Tensor values = all_values(found[0]);
  CHECK((values.to(at::kDouble) - wanted).abs().max().item<double>() < 1e-3);
  CHECK(values[5].abs().max().item<double>() == 0);
}

}  // namespace
}  // namespace weightsmith
