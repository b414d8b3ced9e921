// One training, scored with the batch-norm statistics of every mode.
#include <ATen/ATen.h>
#include <torch/csrc/jit/api/module.h>

#include <catch2/catch.hpp>
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
  CHECK(alone.at(NormMode::kShared).test->loss != alone.at(NormMode::kPerHead).test->loss);
  CHECK(alone.at(NormMode::kShared).test->loss != alone.at(NormMode::kRecompute).test->loss);

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

TEST_CASE("momenta are found where they are, or their lack is told of", "[train]") {
  ScriptModel model = two_norms("0.1");
  CHECK(batch_norm_momenta(model, at::rand({2, 1, 8, 8})) ==
        std::map<std::string, double>{{"mean", 0.1}, {"var", 0.1}, {"mean2", 0.3}, {"var2", 0.3}});
  ScriptModel without = two_norms("0.0");
  expect_error(ErrorKind::kConfig, {"method.batch_norm_scores", "net", "batch_norm", "momentum"},
               [&] {
                 batch_norm_momenta(without, at::rand({2, 1, 8, 8}));
               });
}

}  // namespace
}  // namespace weightsmith
