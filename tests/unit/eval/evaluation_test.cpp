#include "weightsmith/eval/evaluation.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "support/expect_error.h"
#include "weightsmith/core/progress.h"
#include "weightsmith/core/stop.h"
#include "weightsmith/data/dataset.h"
#include "weightsmith/eval/objective.h"
#include "weightsmith/model/script_model.h"

namespace weightsmith {
namespace {

/// Returns its input times `weight` (classes, classes), with a dropout that only training feels.
ScriptModel linear_model(const at::Tensor& weight) {
  torch::jit::Module module("__torch__.weightsmith.test.Linear",
                            std::make_shared<torch::jit::CompilationUnit>(), true);
  module.register_attribute("training", c10::BoolType::get(), true);
  module.register_parameter("weight", weight.clone(), false);
  module.define(R"(
    def forward(self, x):
        return torch.dropout(torch.matmul(x, self.weight), 0.9, self.training)
  )");
  return ScriptModel(module, "linear");
}

Dataset random_set(std::int64_t n, std::int64_t classes) {
  at::manual_seed(7);
  Dataset set;
  set.images = at::randn({n, classes});
  set.labels = at::randint(classes, {n}, at::kLong);
  set.classes = classes;
  set.where = "random";
  return set;
}

TEST_CASE("accuracy and loss agree with sums by hand, whatever the batch", "[eval]") {
  const Dataset set = random_set(50, 4);
  ScriptModel model = linear_model(at::eye(4));
  const Objective objective(ObjectiveConfig{}, 4);
  double loss = 0;
  int correct = 0;
  for (int i = 0; i < 50; ++i) {
    double sum = 0;
    int best = 0;
    for (int c = 0; c < 4; ++c) {
      sum += std::exp(set.images[i][c].item<double>());
      if (set.images[i][c].item<double>() > set.images[i][best].item<double>()) best = c;
    }
    const int label = set.labels[i].item<int>();
    loss += std::log(sum) - set.images[i][label].item<double>();
    correct += best == label;
  }
  NoProgress progress;
  for (const std::int64_t batch_size : {1, 7, 50, 100}) {
    const Evaluation e = evaluate(model, set, objective, {batch_size}, progress);
    CHECK(e.samples == 50);
    CHECK(e.correct == correct);
    CHECK(e.accuracy == Approx(correct / 50.0));
    CHECK(e.loss == Approx(loss / 50).epsilon(1e-5));
    CHECK(e.accuracy_low < e.accuracy);
    CHECK(e.accuracy_high > e.accuracy);
    CHECK(evaluation_json(e)["samples"] == 50);
  }
}

TEST_CASE("an ensemble averages probabilities", "[eval]") {
  const Dataset set = random_set(30, 3);
  at::manual_seed(8);
  const at::Tensor a = at::randn({3, 3});
  const at::Tensor b = at::randn({3, 3});
  ScriptModel first = linear_model(a);
  ScriptModel second = linear_model(b);
  const Objective objective(ObjectiveConfig{}, 3);
  NoProgress progress;
  const Evaluation e = evaluate_ensemble({&first, &second}, set, objective, {8}, progress);
  const at::Tensor p = (set.images.matmul(a).softmax(1) + set.images.matmul(b).softmax(1)) / 2;
  CHECK(e.loss ==
        Approx(-p.gather(1, set.labels.unsqueeze(1)).log().mean().item<double>()).epsilon(1e-5));
  CHECK(e.correct == p.argmax(1).eq(set.labels).sum().item<std::int64_t>());
  const Evaluation alone = evaluate(first, set, objective, {8}, progress);
  const Evaluation twice = evaluate_ensemble({&first, &first}, set, objective, {8}, progress);
  CHECK(twice.loss == Approx(alone.loss).epsilon(1e-5));
  CHECK(twice.correct == alone.correct);
}

TEST_CASE("an output that is not finite names the model and the samples", "[eval]") {
  Dataset set = random_set(10, 3);
  set.images[6][1] = std::numeric_limits<float>::quiet_NaN();
  ScriptModel model = linear_model(at::eye(3));
  const std::string error = testing::error_of(ErrorKind::kNumeric, [&] {
    NoProgress progress;
    evaluate(model, set, Objective(ObjectiveConfig{}, 3), {4}, progress);
  });
  CHECK_THAT(error, Catch::Contains("linear") && Catch::Contains("4 to 7"));
}

TEST_CASE("an evaluation can be stopped", "[eval]") {
  const Dataset set = random_set(10, 3);
  ScriptModel model = linear_model(at::eye(3));
  NoProgress progress;
  request_stop(15);
  CHECK_THROWS_AS(evaluate(model, set, Objective(ObjectiveConfig{}, 3), {4}, progress),
                  Interrupted);
  request_stop(0);
}

TEST_CASE("the Wilson interval solves its equation", "[eval]") {
  for (const auto& [k, n] :
       {std::pair{3, 10}, std::pair{0, 20}, std::pair{20, 20}, std::pair{513, 540}}) {
    const auto [low, high] = wilson_interval(k, n);
    const double p = static_cast<double>(k) / n;
    for (const double bound : {low, high})  // |p − b| = z √(b(1 − b)/n) at both ends
      CHECK(std::abs(p - bound) ==
            Approx(1.959963984540054 * std::sqrt(bound * (1 - bound) / n)).margin(1e-9));
    CHECK(low >= 0);
    CHECK(high <= 1);
  }
}

TEST_CASE("calibration error is the weighted distance of accuracy and confidence", "[eval]") {
  CalibrationBins bins;
  CHECK(bins.error() == 0);
  // Ten samples at 0.95, eight right; ten at 0.55, nine right: |8 - 9.5| + |9 - 5.5| over 20.
  bins.add(at::full({10}, 0.95), at::arange(10) < 8);
  bins.add(at::full({10}, 0.55), at::arange(10) < 9);
  CHECK(bins.error() == Approx((1.5 + 3.5) / 20));
  // Inside one bin errors of both signs cancel: 0.55 and 0.58 share the ninth of fifteen bins.
  CalibrationBins one;
  one.add(at::tensor({0.55, 0.58}), at::tensor({1, 0}).to(at::kBool));
  CHECK(one.error() == Approx(std::abs(1 - 1.13) / 2));
  // Bins hold their upper edge, the first also 0, and 1 has its place.
  CalibrationBins edges;
  edges.add(at::tensor({1.0, 0.0}), at::tensor({1, 0}).to(at::kBool));
  CHECK(edges.error() == 0);
}

TEST_CASE("evaluating measures calibration as the definition does, whatever the batches",
          "[eval]") {
  const Dataset set = random_set(60, 4);
  at::manual_seed(3);
  const at::Tensor weight = at::randn({4, 4}) * 3;
  ScriptModel model = linear_model(weight);
  const at::Tensor p = set.images.matmul(weight).softmax(1);
  const auto [confidence, predicted] = p.max(1);
  double wanted = 0;
  for (int b = 0; b < 15; ++b) {
    const at::Tensor inside = (confidence > b / 15.0).logical_and(confidence <= (b + 1) / 15.0);
    const auto n = inside.sum().item<double>();
    if (n == 0) continue;
    const at::Tensor right = predicted.eq(set.labels).logical_and(inside);
    const double gap =
        right.sum().item<double>() / n - confidence.masked_select(inside).mean().item<double>();
    wanted += std::abs(gap) * n / 60;
  }
  NoProgress progress;
  for (const std::int64_t batch_size : {7, 60}) {
    const Evaluation e =
        evaluate(model, set, Objective(ObjectiveConfig{}, 4), {batch_size}, progress);
    CHECK(e.ece == Approx(wanted).epsilon(1e-4));
    CHECK(evaluation_json(e)["ece"] == e.ece);
  }
}

TEST_CASE("a task average has the mean accuracy and a narrower interval", "[eval]") {
  const Evaluation a = make_evaluation(100, 90, 0.5, 0.1);
  const Evaluation b = make_evaluation(400, 280, 1.5, 0.3);
  const Evaluation mean = average_of({a, b});
  CHECK(mean.accuracy == Approx(0.8));
  CHECK(mean.loss == Approx(1.0));
  CHECK(mean.ece == Approx(0.2));
  CHECK(mean.samples == 500);
  CHECK(mean.accuracy - mean.accuracy_low ==
        Approx(std::hypot(a.accuracy - a.accuracy_low, b.accuracy - b.accuracy_low) / 2));
  CHECK(mean.accuracy_high - mean.accuracy ==
        Approx(std::hypot(a.accuracy_high - a.accuracy, b.accuracy_high - b.accuracy) / 2));
  const Evaluation alone = average_of({a});
  CHECK(alone.accuracy_low == Approx(a.accuracy_low));
  CHECK(alone.accuracy_high == Approx(a.accuracy_high));
}

Objective regression() {
  ObjectiveConfig config;
  config.type = ObjectiveConfig::Type::kRegression;
  return {config, 10};
}

TEST_CASE("errors of a regression agree with sums by hand, whatever the batch", "[eval]") {
  const Dataset set = random_set(50, 4);
  at::manual_seed(3);
  const at::Tensor weight = at::randn({4, 4});
  ScriptModel model = linear_model(weight);
  const at::Tensor residuals = (set.images.matmul(weight) - set.images).to(at::kDouble);
  NoProgress progress;
  for (const std::int64_t batch_size : {1, 7, 50}) {
    const Evaluation e = evaluate(model, set, regression(), {batch_size}, progress);
    REQUIRE(e.errors);
    CHECK(e.samples == 50);
    CHECK(e.correct == 0);
    for (const bool is_squared : {false, true}) {
      double sum = 0;
      std::vector<double> own;
      for (int i = 0; i < 50; ++i) {
        double error = 0;
        for (int d = 0; d < 4; ++d) {
          const double r = residuals[i][d].item<double>();
          error += (is_squared ? r * r : std::abs(r)) / 4;
        }
        own.push_back(error);
        sum += error;
      }
      const double mean = sum / 50;
      double squares = 0;
      for (const double error : own) squares += (error - mean) * (error - mean);
      const double half = 1.959964 * std::sqrt(squares / 49 / 50);
      const MeanError& found = is_squared ? e.errors->squared : e.errors->absolute;
      CHECK(found.mean == Approx(mean).epsilon(1e-5));
      CHECK(found.low == Approx(std::max(0.0, mean - half)).epsilon(1e-4));
      CHECK(found.high == Approx(mean + half).epsilon(1e-5));
    }
    CHECK(e.loss == e.errors->squared.mean);
    const at::Tensor about_mean = set.images - set.images.mean(0, /*keepdim=*/true);
    CHECK(e.errors->explained ==
          Approx(1 - (residuals.square().sum() / about_mean.square().sum()).item<double>())
              .epsilon(1e-5));
    // There and back again.
    const nlohmann::json json = evaluation_json(e);
    CHECK(json["squared_error"] == e.loss);
    CHECK_FALSE(json.contains("accuracy"));
    CHECK(evaluation_json(evaluation_from_json(json)) == json);
  }
  ScriptModel perfect = linear_model(at::eye(4));
  const Evaluation e = evaluate(perfect, set, regression(), {}, progress);
  CHECK(e.errors->explained == 1);
  CHECK(e.errors->absolute.high == 0);
  Dataset constant = set;
  constant.images = at::ones({50, 4});
  const nlohmann::json json =
      evaluation_json(evaluate(model, constant, regression(), {}, progress));
  CHECK(nlohmann::json::parse(json.dump())["explained"].is_null());
  CHECK(std::isnan(evaluation_from_json(nlohmann::json::parse(json.dump())).errors->explained));
  CHECK(evaluation_json(evaluation_from_json(evaluation_json(make_evaluation(40, 17, 0.5, 0.1)))) ==
        evaluation_json(make_evaluation(40, 17, 0.5, 0.1)));
}

TEST_CASE("members of an ensemble count by their shares", "[eval]") {
  const Dataset set = random_set(30, 3);
  at::manual_seed(8);
  const at::Tensor a = at::randn({3, 3});
  const at::Tensor b = at::randn({3, 3});
  ScriptModel first = linear_model(a);
  ScriptModel second = linear_model(b);
  EvaluationOptions options;
  options.shares = {0.75, 0.25};
  NoProgress progress;
  const Evaluation classes =
      evaluate_ensemble({&first, &second}, set, Objective({}, 3), options, progress);
  const at::Tensor mixed =
      0.75 * set.images.matmul(a).softmax(1) + 0.25 * set.images.matmul(b).softmax(1);
  CHECK(
      classes.loss ==
      Approx(-mixed.gather(1, set.labels.unsqueeze(1)).log().mean().item<double>()).epsilon(1e-5));
  const Evaluation values =
      evaluate_ensemble({&first, &second}, set, regression(), options, progress);
  CHECK(values.loss ==
        Approx((set.images.matmul(0.75 * a + 0.25 * b) - set.images).square().mean().item<double>())
            .epsilon(1e-5));

  // One network with both outputs says the same.
  torch::jit::Module module("__torch__.weightsmith.test.Heads",
                            std::make_shared<torch::jit::CompilationUnit>(), true);
  module.register_attribute("training", c10::BoolType::get(), true);
  module.register_parameter("a", a.clone(), false);
  module.register_parameter("b", b.clone(), false);
  module.define(R"(
    def forward(self, x):
        return torch.matmul(x, self.a), torch.matmul(x, self.b)
  )");
  ScriptModel heads(module, "heads");
  CHECK(evaluation_json(evaluate_heads(heads, set, Objective({}, 3), options, progress)) ==
        evaluation_json(classes));
  CHECK(evaluate_heads(heads, set, Objective({}, 3), {}, progress).loss != classes.loss);
  CHECK_THAT(
      testing::error_of(ErrorKind::kInput,
                        [&] { evaluate_heads(first, set, Objective({}, 3), options, progress); }),
      Catch::Contains("linear") && Catch::Contains("tuple"));
}

}  // namespace
}  // namespace weightsmith
