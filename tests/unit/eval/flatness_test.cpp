#include "weightsmith/eval/flatness.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <nlohmann/json.hpp>

#include "support/expect_error.h"
#include "support/networks.h"
#include "weightsmith/core/progress.h"
#include "weightsmith/data/dataset.h"
#include "weightsmith/eval/objective.h"
#include "weightsmith/model/script_model.h"

namespace weightsmith {
namespace {

constexpr std::int64_t kClasses = 3;
constexpr std::int64_t kWidth = 5;

ScriptModel trainable(const torch::jit::Module& network, const std::string& name) {
  ScriptModel model(network, name);
  for (const auto& [key, parameter] : model.parameters()) parameter.set_requires_grad(true);
  return model;
}

ScriptModel linear_network() {
  at::manual_seed(11);
  return trainable(testing::make_network({{"fc.weight", {kClasses, kWidth}}},
                                         "return torch.matmul(x, self.fc.weight.t())"),
                   "linear");
}

Dataset random_set(std::int64_t n) {
  at::manual_seed(5);
  Dataset set;
  set.images = at::randn({n, kWidth}) * at::arange(1, kWidth + 1);
  set.labels = at::randint(kClasses, {n}, at::kLong);
  set.classes = kClasses;
  set.where = "random";
  return set;
}

/// Every image once under each label: with equal scores for all classes the gradient is zero.
Dataset balanced_set() {
  Dataset set = random_set(20);
  set.images = set.images.repeat({kClasses, 1});
  set.labels = at::arange(kClasses).repeat_interleave(20);
  return set;
}

/// The Hessian of softmax regression, mean of (diag(p) − p pᵀ) ⊗ x xᵀ, in float64.
at::Tensor hessian(const at::Tensor& weight, const at::Tensor& images) {
  const at::Tensor x = images.to(at::kDouble);
  const at::Tensor p = at::softmax(x.matmul(weight.detach().to(at::kDouble).t()), 1);
  at::Tensor sum = at::zeros({kClasses * kWidth, kClasses * kWidth}, at::kDouble);
  for (std::int64_t i = 0; i < x.size(0); ++i)
    sum += at::kron(at::diag(p[i]) - at::outer(p[i], p[i]), at::outer(x[i], x[i]));
  return sum / x.size(0);
}

double largest(const at::Tensor& symmetric) {
  return at::linalg_eigvalsh(symmetric).max().item<double>();
}

Flatness measure(ScriptModel& model, const Dataset& set, const FlatnessConfig& config,
                 std::int64_t batch_size = 256, std::uint64_t seed = 0) {
  NoProgress progress;
  return measure_flatness(model, set, Objective(ObjectiveConfig{}, set.classes), config, seed,
                          {batch_size}, progress);
}

TEST_CASE("the largest eigenvalue is that of the whole Hessian", "[eval]") {
  ScriptModel model = linear_network();
  const at::Tensor weight = model.parameters().at("fc.weight");
  const at::Tensor before = weight.detach().clone();
  const Dataset set = random_set(40);
  FlatnessConfig config;
  config.power_iterations = 500;
  config.tolerance = 1e-6;
  const double expected = largest(hessian(weight, set.images));
  for (const std::int64_t batch_size : {7, 256}) {
    const Flatness flatness = measure(model, set, config, batch_size);
    CHECK(flatness.converged);
    CHECK(flatness.iterations < 500);
    CHECK(flatness.top_eigenvalue == Approx(expected).epsilon(1e-4));
  }
  CHECK(weight.equal(before));
  CHECK_FALSE(weight.grad().defined());
  config.power_iterations = 2;
  CHECK_FALSE(measure(model, set, config).converged);
}

TEST_CASE("a negative eigenvalue of larger magnitude is not taken for the largest", "[eval]") {
  // Scores (−100 w² / 2, 2 v², 0) at w = v = 0, where every class has probability 1/3: with label 2
  // the Hessian is diagonal, −100/3 for w and 4/3 for v.
  torch::jit::Module net = testing::make_network(
      {{"a.w", {1}}, {"a.v", {1}}},
      "w = self.a.w * self.a.w * -50.0\nv = self.a.v * self.a.v * 2.0\n"
      "return torch.cat([w, v, torch.zeros_like(w)]).unsqueeze(0) + 0.0 * x[:, :3]");
  ScriptModel model = trainable(net, "saddle");
  {
    const at::NoGradGuard no_grad;
    for (const auto& [name, parameter] : model.parameters()) parameter.zero_();
  }
  Dataset set = random_set(4);
  set.labels = at::full({4}, 2, at::kLong);
  FlatnessConfig config;
  config.scale = PerturbationScale::kAbsolute;
  config.tolerance = 1e-6;
  config.power_iterations = 200;
  const Flatness flatness = measure(model, set, config);
  CHECK(flatness.converged);
  CHECK(flatness.top_eigenvalue == Approx(4.0 / 3).epsilon(1e-4));
}

TEST_CASE("losses around a stationary point follow the Hessian", "[eval]") {
  ScriptModel model = linear_network();
  const at::Tensor weight = model.parameters().at("fc.weight");
  {
    const at::NoGradGuard no_grad;
    weight.zero_();
  }
  const Dataset set = balanced_set();
  const at::Tensor h = hessian(weight, set.images);
  FlatnessConfig config;
  config.scale = PerturbationScale::kAbsolute;
  config.random_radius = 0.02;
  config.worst_radius = 0.02;
  config.directions = 400;
  config.ascent_steps = 60;
  const Flatness flatness = measure(model, set, config);
  CHECK(flatness.samples == 60);
  CHECK(flatness.loss == Approx(std::log(3.0)));
  // To second order: the mean over the sphere is ρ² tr(H) / 2n, the maximum ρ² λ / 2.
  const double r2 = config.worst_radius * config.worst_radius;
  CHECK(flatness.random_loss - flatness.loss ==
        Approx(r2 * h.trace().item<double>() / (2.0 * kClasses * kWidth)).epsilon(0.1));
  CHECK(flatness.random_deviation > 0);
  CHECK(flatness.worst_loss - flatness.loss == Approx(r2 * largest(h) / 2).epsilon(0.02));
}

TEST_CASE("the worst direction is uphill, in the scale that was asked for", "[eval]") {
  ScriptModel model = linear_network();
  const at::Tensor weight = model.parameters().at("fc.weight");
  const Dataset set = random_set(40);
  const at::Tensor x = set.images.to(at::kDouble);
  at::Tensor p = at::softmax(x.matmul(weight.detach().to(at::kDouble).t()), 1);
  p = p - at::one_hot(set.labels, kClasses);
  const double slope = p.t().matmul(x).div(40).norm().item<double>();
  FlatnessConfig config;
  config.random_radius = 1e-3;
  config.worst_radius = 1e-3;
  config.scale = PerturbationScale::kAbsolute;
  const Flatness absolute = measure(model, set, config);
  CHECK(absolute.worst_loss - absolute.loss == Approx(config.worst_radius * slope).epsilon(0.02));
  CHECK(absolute.worst_loss > absolute.random_loss + 2 * absolute.random_deviation);
  config.scale = PerturbationScale::kRelative;
  const Flatness relative = measure(model, set, config);
  CHECK(relative.worst_loss - relative.loss ==
        Approx(config.worst_radius * slope * weight.detach().norm().item<double>()).epsilon(0.03));

  // The draws are the seed's.
  CHECK(measure(model, set, config).random_loss == relative.random_loss);
  CHECK(measure(model, set, config, 256, 1).random_loss != relative.random_loss);
}

TEST_CASE("only what is asked for is measured and written", "[eval]") {
  ScriptModel model = linear_network();
  FlatnessConfig config;
  config.directions = 0;
  config.ascent_steps = 0;
  config.power_iterations = 0;
  const nlohmann::json json = flatness_json(measure(model, random_set(10), config), config);
  CHECK(json.size() == 2);
  CHECK(json["samples"] == 10);
  config.directions = 1;
  config.random_radius = 1e38;
  CHECK(flatness_json(measure(model, random_set(10), config), config)["random_loss"].is_null());
}

TEST_CASE("what cannot be measured is an error, and the weights are as before", "[eval]") {
  SECTION("no gradients") {
    ScriptModel model = linear_network();
    for (const auto& [name, parameter] : model.parameters()) parameter.set_requires_grad(false);
    testing::expect_error(ErrorKind::kInput, {"no parameter requires gradients"},
                          [&] { measure(model, random_set(5), {}); });
  }
  SECTION("weights that are not finite") {
    ScriptModel model = linear_network();
    {
      const at::NoGradGuard no_grad;
      model.parameters().at("fc.weight").fill_(NAN);
    }
    testing::expect_error(ErrorKind::kNumeric, {"not finite"},
                          [&] { measure(model, random_set(5), {}); });
  }
  SECTION("outputs that do not fit") {
    ScriptModel model = linear_network();
    const at::Tensor before = model.parameters().at("fc.weight").detach().clone();
    Dataset set = random_set(5);
    set.classes = 7;
    testing::expect_error(ErrorKind::kInput, {"objective", "(B, 7)"},
                          [&] { measure(model, set, {}); });
    CHECK(model.parameters().at("fc.weight").equal(before));
  }
  SECTION("configuration") {
    FlatnessConfig config;
    config.worst_radius = 0;
    testing::expect_error(ErrorKind::kConfig, {"flatness.worst_radius"},
                          [&] { config.validate(); });
  }
}

}  // namespace
}  // namespace weightsmith
