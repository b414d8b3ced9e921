// The network of the epoch that scored best on the validation share.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <nlohmann/json.hpp>

#include "support/temporary_folder.h"
#include "unit/train/trainer_runs.h"
#include "weightsmith/core/error.h"
#include "weightsmith/core/progress.h"
#include "weightsmith/core/stop.h"
#include "weightsmith/train/checkpoint.h"
#include "weightsmith/train/train_data.h"

namespace weightsmith {
namespace {

using namespace testing;

/// Four epochs, of which the last two, at a rate far too high, spoil what was learnt.
TrainConfig spoilt_training(const std::filesystem::path& out) {
  TrainConfig config = small_config(out);
  config.data.train.limit = 150;
  config.data.validation = 0.4;
  config.augmentations.clear();
  config.method.type = MethodConfig::Type::kSwa;
  config.method.batch_norm = NormMode::kShared;
  config.method.start_epoch = 2;
  config.method.lr = 50;
  config.method.anneal_epochs = 0;
  config.schedule.type = ScheduleConfig::Type::kConstant;
  config.schedule.warmup_epochs = 0;
  config.epochs = 4;
  return config;
}

Evaluation score_of(const std::filesystem::path& archive, const Dataset& data) {
  ModelRef ref;
  ref.script = archive;
  ScriptModel model = ScriptModel::load(ref, {});
  NoProgress progress;
  return evaluate(model, data, Objective({}, 10), {}, progress);
}

/// Stops when epoch `epoch` (from 0) has made one batch of its own.
class StopInEpoch final : public Progress {
 public:
  explicit StopInEpoch(int epoch) : left_(epoch * 6 + 1) {}
  void begin(std::string_view phase, std::int64_t, std::string_view) override {
    phases_.emplace_back(phase);
  }
  void update(std::int64_t, std::string_view) override {
    if (phases_.back() == "train" && --left_ == 0) request_stop(15);
  }
  void end() override { phases_.pop_back(); }

 private:
  int left_;
  std::vector<std::string> phases_;
};

TEST_CASE("the best epoch on the validation share is kept", "[train]") {
  const TemporaryFolder folder;
  const TrainConfig config = spoilt_training(folder / "run");
  NoProgress progress;
  const TrainResult result = train(config, {}, progress);
  const auto rows = metrics_of(config.out);
  std::size_t best = 0;
  for (std::size_t e = 1; e < rows.size(); ++e)
    if (rows[e]["validation"]["accuracy"] > rows[best]["validation"]["accuracy"]) best = e;
  REQUIRE(best < 2);
  REQUIRE(result.best.has_value());
  CHECK(result.best->epoch == static_cast<std::int64_t>(best) + 1);
  CHECK(result.best->validation.accuracy == rows[best]["validation"]["accuracy"]);
  CHECK(result.best->validation.loss == rows[best]["validation"]["loss"]);
  CHECK(result.best->validation.accuracy > result.validation->accuracy);

  // The archive is the network that had these scores, the last one is not.
  const TrainData data = load_train_data(config.data, config.seed);
  const auto archive = config.out / "model-best.pt";
  CHECK(result.best->model == archive);
  CHECK(score_of(archive, *data.validation).accuracy == result.best->validation.accuracy);
  CHECK(score_of(archive, *data.test).correct == result.best->test->correct);
  CHECK(score_of(result.model, *data.test).correct == result.test->correct);

  const nlohmann::json json = train_result_json(result, config)["best"];
  CHECK(json["epoch"] == result.best->epoch);
  CHECK(json["test"]["accuracy"] == result.best->test->accuracy);
  CHECK(json["model"] == archive.string());
  CHECK_THAT(train_result_table(result),
             Catch::Contains("| test, epoch " + std::to_string(best + 1)));

  // It is the network of a run that ended there.
  TrainConfig brief = config;
  brief.out = folder / "brief";
  brief.epochs = result.best->epoch;
  brief.method.type = MethodConfig::Type::kSgd;
  train(brief, {}, progress);
  CHECK(same(network_of(archive), weights_of(brief.out)));
}

TEST_CASE("a run that is stopped after its best epoch ends with the same best network", "[train]") {
  const TemporaryFolder folder;
  TrainConfig config = spoilt_training(folder / "whole");
  NoProgress progress;
  const TrainResult whole = train(config, {}, progress);
  const TensorMap expected = network_of(config.out / "model-best.pt");
  config.out = folder / "stopped";
  StopInEpoch stop(3);
  CHECK_THROWS_AS(train(config, {}, stop), Interrupted);
  request_stop(0);
  const auto newest = checkpoints_in(config.out).front();
  CHECK(read_checkpoint(newest).best["epoch"] == whole.best->epoch);
  CHECK_FALSE(std::filesystem::exists(config.out / "model-best.pt"));
  const TrainResult resumed = train(config, {at::kCPU, true}, progress);
  CHECK(resumed.best->epoch == whole.best->epoch);
  CHECK(same(network_of(config.out / "model-best.pt"), expected));

  // A checkpoint of a version that kept none: the best of what follows.
  config.out = folder / "older";
  StopInEpoch again(3);
  CHECK_THROWS_AS(train(config, {}, again), Interrupted);
  request_stop(0);
  for (const auto& path : checkpoints_in(config.out)) {
    Checkpoint older = read_checkpoint(path);
    older.best = nullptr;
    older.best_weights.clear();
    write_checkpoint(config.out, older, 2);
  }
  CHECK(train(config, {at::kCPU, true}, progress).best->epoch == 4);
}

TEST_CASE("nothing is selected without a validation share", "[train]") {
  const TemporaryFolder folder;
  TrainConfig config = small_config(folder / "run");
  config.epochs = 1;
  NoProgress progress;
  const TrainResult result = train(config, {}, progress);
  CHECK_FALSE(result.best.has_value());
  CHECK_FALSE(train_result_json(result, config).contains("best"));
  CHECK_FALSE(std::filesystem::exists(config.out / "model-best.pt"));
  CHECK(read_checkpoint(checkpoints_in(config.out).front()).best.is_null());
}

TEST_CASE("of epochs that are equally good the first is kept", "[train]") {
  const TemporaryFolder folder;
  TrainConfig config = spoilt_training(folder / "run");
  config.method.type = MethodConfig::Type::kSgd;
  config.model.options["norm"] = "none";
  config.optimizer.lr = 1e-12;  // the weights stay as they are
  config.schedule.min_lr = 0;
  NoProgress progress;
  const TrainResult result = train(config, {}, progress);
  REQUIRE(result.validation->accuracy == result.best->validation.accuracy);
  CHECK(result.best->epoch == 1);
}

TEST_CASE("the best epoch of a regression has the lowest loss", "[train]") {
  const TemporaryFolder folder;
  TrainConfig config = spoilt_training(folder / "run");
  config.objective.type = ObjectiveConfig::Type::kRegression;
  config.model.builtin = "mlp";
  config.model.options = {{"inputs", 64}, {"hidden", {16}}, {"outputs", 64}};
  config.optimizer.lr = 0.01;
  config.method.lr = 1;
  NoProgress progress;
  const TrainResult result = train(config, {}, progress);
  double lowest = INFINITY;
  for (const auto& row : metrics_of(config.out))
    lowest = std::min(lowest, row["validation"]["loss"].get<double>());
  CHECK(result.best->epoch > 1);
  CHECK(result.best->validation.loss == lowest);
  CHECK(result.best->test->errors.has_value());
}

}  // namespace
}  // namespace weightsmith
