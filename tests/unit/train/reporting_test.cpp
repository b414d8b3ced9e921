// What a training tells of itself: progress, pictures and the table at its end.
#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <nlohmann/json.hpp>

#include "support/temporary_folder.h"
#include "unit/train/trainer_runs.h"
#include "weightsmith/core/atomic_file.h"
#include "weightsmith/core/error.h"
#include "weightsmith/core/progress.h"
#include "weightsmith/core/stop.h"
#include "weightsmith/train/curves.h"
#include "weightsmith/train/train_result.h"
#include "weightsmith/train/trainer.h"
#include "weightsmith/train/training_events.h"

namespace weightsmith {
namespace {

using namespace testing;

/// What is reported of the phase `train`, whatever is nested in it; asks to stop at its `at`-th
/// report.
class TrainPhase final : public Progress {
 public:
  explicit TrainPhase(std::size_t at = 0) : at_(at) {}
  void begin(std::string_view phase, std::int64_t all, std::string_view unit) override {
    open.emplace_back(phase);
    if (phase != "train") return;
    ++begun;
    total = all;
    CHECK(unit == "images");
  }
  void update(std::int64_t images, std::string_view) override {
    if (open.back() != "train") return;
    done.push_back(images);
    if (done.size() == at_) request_stop(15);
  }
  void end() override { open.pop_back(); }

  std::vector<std::string> open;
  std::int64_t total = 0;
  int begun = 0;
  std::vector<std::int64_t> done;

 private:
  std::size_t at_;
};

TEST_CASE("progress counts the images that heads are shown, of those that are left", "[train]") {
  const TemporaryFolder folder;
  TrainConfig config = small_config(folder / "run");
  // 40 samples in batches of 16, 16 and 8, each through three pipelines, three times.
  config.data.validation = 0.2;
  config.method.type = MethodConfig::Type::kSwad;
  config.method.validate_every = 1;  // in mid-epoch
  TrainPhase whole;
  const TrainResult result = train(config, {}, whole);
  CHECK(whole.begun == 1);
  CHECK(whole.total == 3 * 40 * 3);
  const std::vector<std::int64_t> all{48, 96, 120, 168, 216, 240, 288, 336, 360};
  CHECK(whole.done == all);
  CHECK(result.images_per_s > 0);

  // A process that goes on counts its own, so that its rate is that of its own clock.
  config.out = folder / "stopped";
  TrainPhase stopped(5);
  CHECK_THROWS_AS(train(config, {}, stopped), Interrupted);
  request_stop(0);
  CHECK(stopped.done == std::vector<std::int64_t>(all.begin(), all.begin() + 5));
  TrainPhase resumed;
  train(config, {at::kCPU, true}, resumed);
  CHECK(resumed.total == 360 - 216);
  CHECK(resumed.done == std::vector<std::int64_t>{24, 72, 120, 144});

  // Nothing is left of a finished one.
  TrainPhase finished;
  CHECK(train(config, {at::kCPU, true}, finished).images_per_s == 0);
  CHECK(finished.begun == 0);
}

TEST_CASE("an image that makes no batch of its own is not counted", "[train]") {
  const TemporaryFolder folder;
  TrainConfig config = small_config(folder / "run");
  config.data.train.limit = 33;
  config.epochs = 1;
  TrainPhase progress;
  train(config, {}, progress);
  CHECK(progress.total == 32 * 3);
  CHECK(progress.done == std::vector<std::int64_t>{48, 96});
}

TEST_CASE("a stopped and resumed run has the picture of one that never was", "[train]") {
  const TemporaryFolder folder;
  TrainConfig config = small_config(folder / "whole");
  NoProgress progress;
  const TrainResult result = train(config, {}, progress);
  CHECK(result.curves == config.out / "curves.svg");
  const std::string expected = read_text(result.curves);
  for (const char* text : {"Loss", "Accuracy", "Learning rate", ">training<", ">test<"})
    CHECK_THAT(expected, Catch::Contains(text));
  CHECK_THAT(expected, !Catch::Contains("validation"));

  config.out = folder / "stopped";
  TrainPhase stopping(5);
  CHECK_THROWS_AS(train(config, {}, stopping), Interrupted);
  request_stop(0);
  CHECK_FALSE(std::filesystem::exists(config.out / "curves.svg"));
  train(config, {at::kCPU, true}, progress);
  CHECK(read_text(config.out / "curves.svg") == expected);
}

nlohmann::json metrics_row(int epoch, double loss, double accuracy, double seconds = 1) {
  return {{"epoch", epoch},
          {"lr", 0.1},
          {"train_loss", loss},
          {"test", {{"accuracy", accuracy}, {"loss", 2 * loss}}},
          {"seconds", seconds}};
}

std::int64_t count(const std::string& text, const std::string& part) {
  std::int64_t found = 0;
  for (auto at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

TEST_CASE("curves show what was scored, whatever the time it took", "[train]") {
  const std::vector<nlohmann::json> rows{metrics_row(1, 2, 0.3), metrics_row(2, 1, 0.6)};
  const std::string svg = training_curves_svg(rows);
  CHECK(count(svg, "<polyline") == 4);  // two losses, an accuracy and the rate
  CHECK(training_curves_svg({metrics_row(1, 2, 0.3, 7), metrics_row(2, 1, 0.6, 9)}) == svg);
  CHECK(training_curves_svg({metrics_row(1, 2, 0.3), metrics_row(2, 1, 0.5)}) != svg);
  // Loss alone: a regression, or nothing scored. What is not finite is left out.
  std::vector<nlohmann::json> unscored = rows;
  for (auto& row : unscored) row.erase("test");
  CHECK(count(training_curves_svg(unscored), "<polyline") == 2);
  CHECK_THAT(training_curves_svg(unscored), !Catch::Contains("Accuracy"));
  unscored[1]["train_loss"] = nullptr;
  CHECK(count(training_curves_svg(unscored), "<polyline") == 1);
}

TEST_CASE("the curves of a comparison are means over its seeds", "[train]") {
  const std::vector<nlohmann::json> low{metrics_row(1, 2, 0.3), metrics_row(2, 1, 0.5)};
  const std::vector<nlohmann::json> high{metrics_row(1, 3, 0.5), metrics_row(2, 2, 0.7)};
  const std::vector<nlohmann::json> mean{metrics_row(1, 2.5, 0.4), metrics_row(2, 1.5, 0.6)};
  const std::string svg = comparison_curves_svg({{"a", {low, high}}, {"b", {mean}}}, "test");
  CHECK(count(svg, "<polyline") == 4);
  CHECK(count(svg, "<polygon") == 2);  // b has one seed and no band
  // The mean of a lies where b does.
  std::vector<std::string> lines;
  for (auto at = svg.find("points=\"", svg.find("<polyline")); at != std::string::npos;
       at = svg.find("<polyline", at) == std::string::npos
                ? std::string::npos
                : svg.find("points=\"", svg.find("<polyline", at)))
    lines.push_back(svg.substr(at, svg.find('"', at + 8) - at));
  REQUIRE(lines.size() == 4);
  CHECK(lines[0] == lines[1]);
  CHECK(lines[2] == lines[3]);
  CHECK(lines[0] != lines[2]);
}

TEST_CASE("events have a row's scores, those of batch-norm modes by their names", "[train]") {
  nlohmann::json row = metrics_row(2, 1, 0.6);
  row["steps"] = 40;
  row["test"]["ece"] = nullptr;  // not finite
  row["test_by_batch_norm"] = {{"per_head", {{"accuracy", 0.5}}}};
  const ScalarEvent event = event_of_row(row, 7);
  CHECK(event.step == 40);
  CHECK(event.wall_time == 7);
  CHECK(event.values ==
        std::vector<std::pair<std::string, double>>{{"epoch", 2},
                                                    {"lr", 0.1},
                                                    {"train/loss", 1},
                                                    {"test/accuracy", 0.6},
                                                    {"test/loss", 2},
                                                    {"test/per_head/accuracy", 0.5}});
  const auto past = past_events({row, row, row}, 10);
  REQUIRE(past.size() == 3);
  CHECK(past[0].wall_time == 8);
  CHECK(past[2].wall_time == 10);
}

TEST_CASE("the table of a run holds its scores and its speed", "[train]") {
  TrainResult result;
  result.epochs = 12;
  result.steps = 480;
  result.train_loss = 0.25;
  result.seconds = 3725;
  result.images_per_s = 1234.4;
  CHECK(train_result_table(result) ==
        "12 epochs, 480 steps in 1 h 02 min, 1234 images/s; training loss of the last epoch "
        "0.2500\n");
  result.test = make_evaluation(200, 190, 0.125, 0.03);
  const std::string table = train_result_table(result);
  for (const char* text : {"| test", "95.00", "0.1250", "0.0300", " 200 |"})
    CHECK_THAT(table, Catch::Contains(text));
  CHECK_THAT(table, !Catch::Contains("validation"));
  result.validation = make_evaluation(100, 50, 0.5, 0.1);
  CHECK_THAT(train_result_table(result),
             Catch::Contains("| validation") && Catch::Contains("50.00"));

  result.images_per_s = 0;
  result.seconds = 3.44;
  result.validation.reset();
  result.test->errors = RegressionErrors{{0.5, 0.4, 0.6}, {0.7, 0.6, 0.8}, 0.9};
  const std::string regression = train_result_table(result);
  for (const char* text : {"squared error", "0.5", "0.4 to 0.6", "0.7", "0.900", "in 3.4 s;"})
    CHECK_THAT(regression, Catch::Contains(text));
  CHECK_THAT(regression, !Catch::Contains("accuracy") && !Catch::Contains("images/s"));
}

}  // namespace
}  // namespace weightsmith
