#include "weightsmith/train/distillation.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <cmath>

#include "support/expect_error.h"
#include "weightsmith/train/freeze.h"

namespace weightsmith {
namespace {

constexpr int kRows = 4;
constexpr int kClasses = 5;

DistillationConfig teacher_config() {
  DistillationConfig config;
  config.teacher.builtin = "mlp";
  config.teacher.options = {{"inputs", 3}, {"hidden", {7}}, {"outputs", kClasses}};
  return config;
}

/// One distribution, in double.
std::vector<double> slow_softmax(const at::Tensor& scores, int row, double temperature,
                                 const std::vector<int>& classes) {
  std::vector<double> p;
  double sum = 0;
  for (const int c : classes)
    sum += p.emplace_back(std::exp(scores[row][c].item<double>() / temperature));
  for (double& value : p) value /= sum;
  return p;
}

TEST_CASE("soft distillation agrees with its slow twin", "[train]") {
  at::manual_seed(6);
  DistillationConfig config = teacher_config();
  const at::Tensor inputs = at::randn({kRows, 3}) * 3;
  const at::Tensor outputs = at::randn({kRows, kClasses});
  const at::Tensor labels = at::tensor({0, 3, 3, 0}, at::kLong);
  for (const bool restricted : {false, true}) {
    const std::vector<int> classes = restricted ? std::vector{0, 1, 3} : std::vector{0, 1, 2, 3, 4};
    Objective objective(ObjectiveConfig{}, kClasses);
    if (restricted) objective = objective.restricted_to({0, 1, 3});
    for (const double temperature : {1.0, 4.0}) {
      for (const double weight : {1.0, 0.3}) {
        config.temperature = temperature;
        config.weight = weight;
        Distillation distillation(config, at::kCPU, false);
        ScriptModel teacher = distillation.teacher().clone();
        const at::Tensor scores = teacher.forward(inputs);
        double divergence = 0;
        double cross_entropy = 0;
        for (int row = 0; row < kRows; ++row) {
          const auto p = slow_softmax(scores, row, temperature, classes);
          const auto q = slow_softmax(outputs, row, temperature, classes);
          const auto plain = slow_softmax(outputs, row, 1, classes);
          for (std::size_t c = 0; c < classes.size(); ++c) {
            divergence += p[c] * std::log(p[c] / q[c]) / kRows;
            if (classes[c] == labels[row].item<int>()) cross_entropy -= std::log(plain[c]) / kRows;
          }
        }
        const double wanted =
            weight * temperature * temperature * divergence + (1 - weight) * cross_entropy;
        const at::Tensor student = outputs.clone().requires_grad_(true);
        const at::Tensor loss =
            distillation.loss(objective, student, inputs, objective.loss(student, labels));
        CHECK(loss.item<double>() == Approx(wanted).epsilon(1e-5));
        const at::AutoGradMode with_grad(true);
        loss.backward();
        CHECK(at::isfinite(student.grad()).all().item<bool>());
        if (restricted) CHECK(student.grad().select(1, 2).eq(0).all().item<bool>());
      }
    }
  }
}

TEST_CASE("a student that agrees with its teacher has nothing to learn", "[train]") {
  DistillationConfig config = teacher_config();
  Distillation distillation(config, at::kCPU, false);
  ScriptModel teacher = distillation.teacher().clone();
  const at::Tensor inputs = at::randn({kRows, 3});
  const at::Tensor student = teacher.forward(inputs).detach().requires_grad_(true);
  const at::Tensor loss =
      distillation.loss(Objective(ObjectiveConfig{}, kClasses), student, inputs, {});
  CHECK(loss.item<double>() == Approx(0).margin(1e-6));
  loss.backward();
  CHECK(at::allclose(student.grad(), at::zeros_like(student), 0, 1e-6));
  for (const auto& [name, parameter] : distillation.teacher().parameters())
    CHECK_FALSE(parameter.grad().defined());
}

TEST_CASE("hard distillation takes the teacher's decisions as labels", "[train]") {
  DistillationConfig config = teacher_config();
  config.type = DistillationConfig::Type::kHard;
  Distillation distillation(config, at::kCPU, false);
  ScriptModel teacher = distillation.teacher().clone();
  const Objective objective(ObjectiveConfig{}, kClasses);
  const at::Tensor inputs = at::randn({kRows, 3});
  const at::Tensor outputs = at::randn({kRows, kClasses});
  const at::Tensor decisions = teacher.forward(inputs).argmax(1);
  CHECK(distillation.loss(objective, outputs, inputs, {}).item<double>() ==
        Approx(objective.loss(outputs, decisions).item<double>()));
}

TEST_CASE("parameters are frozen by name, and a pattern must fit", "[train]") {
  ModelRef ref;
  ref.builtin = "convnet";
  ScriptModel model = ScriptModel::load(ref, {});
  const auto fixed = freeze_parameters(model, {"conv[12].*", "fc.bias", "conv1.weight"});
  CHECK(fixed.size() == 3);  // convolutions before norms have no bias
  for (const auto& [name, parameter] : model.parameters()) {
    INFO(name);
    const bool frozen =
        name.starts_with("conv1.") || name.starts_with("conv2.") || name == "fc.bias";
    CHECK(parameter.requires_grad() == !frozen);
  }
  testing::expect_error(ErrorKind::kConfig, {"freeze", "\"bnn*\"", "bn1.bias"}, [&] {
    freeze_parameters(model, {"conv1.*", "bnn*"});
  });
}

}  // namespace
}  // namespace weightsmith
