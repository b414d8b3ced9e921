// One training, scored with the batch-norm statistics of every mode.
#include <ATen/ATen.h>
#include <torch/csrc/jit/api/module.h>

#include <catch2/catch.hpp>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "support/expect_error.h"
#include "support/temporary_folder.h"
#include "unit/train/trainer_runs.h"
#include "weightsmith/core/atomic_file.h"
#include "weightsmith/core/progress.h"
#include "weightsmith/train/comparison.h"
#include "weightsmith/train/norm_statistics.h"

namespace weightsmith {
namespace {

using namespace testing;

const std::vector<NormMode> kModes{NormMode::kShared, NormMode::kPerHead, NormMode::kRecompute};

/// Ends between two averages, after parts of batches that batch norms see one by one.
TrainConfig scored_config(const std::filesystem::path& out, NormMode mode) {
  TrainConfig config = small_config(out);
  config.method.k = 5;
  config.method.batch_norm = mode;
  config.optimizer.accumulate = 2;
  config.data.validation = 0.2;
  return config;
}

void check_near(const Evaluation& a, const Evaluation& b) {
  CHECK(a.loss == Approx(b.loss).epsilon(1e-4));
  CHECK(std::abs(a.correct - b.correct) <= 1);
}

TEST_CASE("one training is scored as one of each batch-norm mode would be", "[train]") {
  const TemporaryFolder folder;
  NoProgress progress;
  std::map<NormMode, TrainResult> alone;
  std::map<NormMode, nlohmann::json> rows;
  for (const NormMode mode : kModes) {
    const TrainConfig config = scored_config(folder / ("alone " + enum_name(mode)), mode);
    alone.emplace(mode, train(config, {}, progress));
    rows[mode] = metrics_of(config.out);
    CHECK_FALSE(rows[mode][0].contains("validation_by_batch_norm"));
    CHECK(alone.at(mode).by_batch_norm.empty());
  }
  // They differ, or all of this would say nothing.
  for (const NormMode other : {NormMode::kPerHead, NormMode::kRecompute})
    CHECK(alone.at(NormMode::kShared).test->loss !=
          Approx(alone.at(other).test->loss).epsilon(1e-3));

  for (const NormMode own : kModes) {
    INFO("trained with " << enum_name(own));
    TrainConfig config = scored_config(folder / ("all " + enum_name(own)), own);
    config.method.batch_norm_scores = kModes;
    const TrainResult all = train(config, {}, progress);
    // Training and its result do not notice.
    CHECK(same(weights_of(config.out), weights_of(alone.at(own).model.parent_path())));
    CHECK(all.test->loss == alone.at(own).test->loss);
    const auto own_rows = metrics_of(config.out);
    for (std::size_t e = 0; e < own_rows.size(); ++e) {
      CHECK(own_rows[e]["train_loss"] == rows[own][e]["train_loss"]);
      CHECK(own_rows[e]["validation"] == rows[own][e]["validation"]);
    }

    REQUIRE(all.by_batch_norm.size() == 3);
    const nlohmann::json summary = train_result_json(all, config);
    for (const NormScores& scores : all.by_batch_norm) {
      INFO("scored with " << enum_name(scores.mode));
      const TrainResult& expected = alone.at(scores.mode);
      check_near(*scores.test, *expected.test);
      check_near(*scores.validation, *expected.validation);
      if (scores.mode == own || scores.mode == NormMode::kRecompute)
        CHECK(scores.test->loss == expected.test->loss);
      CHECK(summary["test_by_batch_norm"][enum_name(scores.mode)]["loss"] == scores.test->loss);
      CHECK_THAT(train_result_table(all),
                 Catch::Contains("| test, batch norm " + enum_name(scores.mode)));
      for (std::size_t e = 0; e < own_rows.size(); ++e)
        CHECK(
            own_rows[e]["validation_by_batch_norm"][enum_name(scores.mode)]["loss"].get<double>() ==
            Approx(rows[scores.mode][e]["validation"]["loss"].get<double>()).epsilon(1e-4));
    }
  }
}

TEST_CASE("a single network has one set of statistics, whoever asks", "[train]") {
  const TemporaryFolder folder;
  TrainConfig config = scored_config(folder / "run", NormMode::kAuto);
  config.method.type = MethodConfig::Type::kEma;
  config.method.batch_norm_scores = {NormMode::kShared, NormMode::kPerHead};
  config.epochs = 1;
  NoProgress progress;
  const TrainResult result = train(config, {}, progress);
  REQUIRE(result.by_batch_norm.size() == 2);
  CHECK(result.by_batch_norm[0].test->loss == result.by_batch_norm[1].test->loss);
  CHECK(result.by_batch_norm[0].test->loss != result.test->loss);  // recomputed
  config.out = folder / "plain";
  config.method.type = MethodConfig::Type::kSgd;
  CHECK(train(config, {}, progress).by_batch_norm.empty());
}

TEST_CASE("a comparison has the means with each mode's statistics", "[train]") {
  const TemporaryFolder folder;
  TrainConfig config = small_config(folder / "out");
  config.epochs = 1;
  config.compare = {{"sgd", {{"type", "sgd"}}}, {"lookaround", {{"type", "lookaround"}}}};
  config.seeds = {3, 4};
  config.method.batch_norm_scores = kModes;
  NoProgress progress;
  const nlohmann::json result = compare_methods(config, {}, progress, [](const auto&) {});
  CHECK_FALSE(result["methods"][0].contains("by_batch_norm"));
  const nlohmann::json& by_mode = result["methods"][1]["by_batch_norm"];
  REQUIRE(by_mode.size() == 3);
  CHECK(by_mode["shared"] == result["methods"][1]["accuracy"]);
  CHECK_THAT(read_text(config.out / "comparison.md"), Catch::Contains("batch norm per_head, %"));
}

/// Two batch norms, one a function with the momentum `momentum`.
ScriptModel two_norms(const std::string& momentum) {
  torch::jit::Module net("Net");
  net.register_parameter("weight", at::rand({10, 64}).set_requires_grad(true), false);
  net.register_attribute("training", c10::BoolType::get(), true);
  for (const char* name : {"mean", "mean2"}) net.register_buffer(name, at::zeros({64}));
  for (const char* name : {"var", "var2"}) net.register_buffer(name, at::ones({64}));
  net.register_buffer("other", at::ones({64}));
  net.define(
      "def forward(self, x):\n"
      "    x = torch.batch_norm(x.flatten(1), None, None, self.mean, self.var, self.training, " +
      momentum +
      ", 1e-5, False)\n"
      "    x = torch.batch_norm(x, None, None, self.mean2, self.var2, self.training, 0.3, 1e-5, "
      "False)\n"
      "    return (x + self.other).mm(self.weight.t())\n");
  return {net, "net"};
}

TEST_CASE("what a pass leaves of statistics is found, or a lack of momentum told of", "[train]") {
  ScriptModel model = two_norms("0.1");
  const auto decays = batch_norm_decays(model, at::rand({2, 1, 8, 8}));
  REQUIRE(decays.size() == 4);
  for (const auto& [name, decay] :
       std::map<std::string, double>{{"mean", 0.9}, {"var", 0.9}, {"mean2", 0.7}, {"var2", 0.7}})
    CHECK(decays.at(name) == Approx(decay));
  ScriptModel without = two_norms("0.0");
  expect_error(ErrorKind::kConfig, {"method.batch_norm_scores", "net", "batch_norm", "momentum"},
               [&] {
                 batch_norm_decays(without, at::rand({2, 1, 8, 8}));
               });
}

/// One batch norm that is used twice, beside buffers that are none of its.
ScriptModel shared_norm() {
  torch::jit::Module net("Net");
  net.register_parameter("weight", at::ones({10, 64}).set_requires_grad(true), false);
  net.register_attribute("training", c10::BoolType::get(), true);
  net.register_buffer("mean", at::zeros({64}));
  net.register_buffer("var", at::ones({64}));
  net.register_buffer("mask", at::ones({64}, at::kBool));
  net.register_buffer("bias", at::full({64}, -std::numeric_limits<float>::infinity()));
  net.define(
      "def forward(self, x):\n"
      "    x = torch.batch_norm(x.flatten(1), None, None, self.mean, self.var, self.training, 0.1, "
      "1e-5, False)\n"
      "    x = torch.batch_norm(x * 3 + 2, None, None, self.mean, self.var, self.training, 0.1, "
      "1e-5, False)\n"
      "    return torch.where(self.mask, x, self.bias).mm(self.weight.t())\n");
  return {net, "net"};
}

TEST_CASE("sets beside become what the other mode's are, used twice a pass and beside masks",
          "[train]") {
  at::manual_seed(7);
  NoProgress progress;
  const Dataset none;
  for (const NormMode own : {NormMode::kShared, NormMode::kPerHead}) {
    const NormMode other = own == NormMode::kShared ? NormMode::kPerHead : NormMode::kShared;
    INFO(enum_name(own));
    ScriptModel both = shared_norm();
    ScriptModel alone = shared_norm();
    NormStatistics kept(both, own, 3, batch_norm_decays(both, at::rand({2, 1, 8, 8})));
    NormStatistics expected(alone, other, 3);
    for (int pass = 0; pass < 7; ++pass) {
      const at::Tensor x = at::rand({4, 1, 8, 8}) * (pass % 3 + 1);
      for (auto [model, norms] : {std::pair{&both, &kept}, std::pair{&alone, &expected}}) {
        model->train(true);
        norms->show(pass % 3);
        norms->begin_pass();
        model->forward(x);
        norms->end_pass();
      }
    }
    kept.show_result(other, true, none, 1, at::kCPU, progress);
    expected.show_result(other, true, none, 1, at::kCPU, progress);
    for (const char* name : {"mean", "var"})
      CHECK(at::allclose(both.buffers().at(name), alone.buffers().at(name), 1e-5, 1e-6));
    for (const char* name : {"mask", "bias"})
      CHECK(at::equal(both.buffers().at(name), alone.buffers().at(name)));
  }
}

}  // namespace
}  // namespace weightsmith
