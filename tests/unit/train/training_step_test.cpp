#include "weightsmith/train/training_step.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>

#include "unit/train/tiny_training.h"
#include "weightsmith/train/methods.h"

namespace weightsmith {
namespace {

constexpr std::int64_t kClasses = 10;

/// A few steps on random images, with or without a loss scale.
class FewSteps {
 public:
  explicit FewSteps(const MethodConfig& method, bool scaled)
      : config_(config_of(method)),
        model_(ScriptModel::load(config_.model, {})),
        objective_(config_.objective, kClasses),
        arena_(model_.parameters(), method.trained_heads(), "net"),
        method_(make_method(config_, arena_, 1)),
        norms_(model_, method.norm_mode(), method.trained_heads()) {
    model_.train(true);
    parts_ = std::make_unique<TrainingParts>(
        TrainingParts{model_, objective_, nullptr, arena_, *method_, norms_, at::kCPU});
    if (scaled) parts_->loss_scale = &scale_;
    step_ = std::make_unique<TrainingStep>(config_, *parts_);
  }

  double run(std::uint64_t seed) {
    at::manual_seed(seed);
    Batch batch;
    batch.views = {at::randn({8, 1, 8, 8})};
    batch.labels = at::randint(kClasses, {8}, at::kLong);
    batch.mixing.resize(1);
    return step_->run(batch, 0, 0.05, [] { return std::string("here"); });
  }

  LossScale& scale() { return scale_; }
  ParameterArena& arena() { return arena_; }
  TrainingMethod& method() { return *method_; }

 private:
  static TrainConfig config_of(const MethodConfig& method) {
    TrainConfig config = testing::tiny_training("unused");
    config.augmentations.resize(static_cast<std::size_t>(method.trained_heads()));
    config.method = method;
    config.optimizer.clip_norm = 1;
    config.optimizer.accumulate = 2;
    return config;
  }

  TrainConfig config_;
  ScriptModel model_;
  Objective objective_;
  ParameterArena arena_;
  std::unique_ptr<TrainingMethod> method_;
  NormStatistics norms_;
  LossScale scale_;
  std::unique_ptr<TrainingParts> parts_;
  std::unique_ptr<TrainingStep> step_;
};

MethodConfig lookaround() {
  MethodConfig method;
  method.heads = 2;
  method.k = 2;
  return method;
}

TEST_CASE("a loss scale, a power of two, changes no bit of what fits", "[train]") {
  FewSteps plain(lookaround(), false), scaled(lookaround(), true);
  for (std::uint64_t seed = 0; seed < 7; ++seed) CHECK(plain.run(seed) == scaled.run(seed));
  CHECK(plain.arena().values().equal(scaled.arena().values()));
  CHECK(scaled.scale().good_steps() == 7);
}

TEST_CASE("a step whose gradients overflow is skipped but counted", "[train]") {
  FewSteps steps(lookaround(), true);
  steps.run(1);
  steps.scale().load_state({{"value", 1e39}, {"good_steps", 5}});
  const TensorMap state = steps.method().state();
  TensorMap before;
  for (const auto& [name, tensor] : state) before.emplace(name, tensor.clone());
  REQUIRE(steps.method().head() == 1);
  steps.run(2);
  for (const auto& [name, tensor] : state) {
    INFO(name);
    CHECK(tensor.equal(before.at(name)));
  }
  CHECK(steps.method().steps() == 2);
  CHECK(steps.method().head() == 0);
  CHECK(steps.scale().value() == 5e38);
  CHECK(steps.arena().parameters()[0].data_ptr() == steps.arena().head(0).data_ptr());
  for (const at::Tensor& parameter : steps.arena().parameters())
    CHECK_FALSE(parameter.grad().defined());
  // The average after k rounds comes in time, whatever was skipped.
  steps.run(3);
  CHECK_FALSE(steps.arena().head(0).equal(steps.arena().head(1)));
  steps.run(4);
  CHECK(steps.arena().head(0).equal(steps.arena().head(1)));
}

}  // namespace
}  // namespace weightsmith
