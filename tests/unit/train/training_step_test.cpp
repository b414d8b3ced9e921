#include "weightsmith/train/training_step.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <tuple>

#include "support/expect_error.h"
#include "support/temporary_folder.h"
#include "unit/train/tiny_training.h"
#include "weightsmith/train/checkpoint.h"
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
    batch.labels = {at::randint(kClasses, {8}, at::kLong)};
    batch.mixing.resize(1);
    return step_->run(batch, 0, 0.05, "here").at(0);
  }

  TrainingStep& step() { return *step_; }
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

/// A run whose loss scale starts where floats end: gradients overflow above some 2^128.
struct ScaleAtFirst {
  double value;
  std::int64_t good_steps;
};

class ScaledRun {
 public:
  static constexpr std::int64_t kSteps = 20;

  ScaledRun(NormMode norms, const ScaleAtFirst& scale) : steps_(method_of(norms), true) {
    steps_.scale().load_state({{"value", scale.value}, {"good_steps", scale.good_steps}});
  }

  void run_to(std::int64_t end) {
    for (std::int64_t s = steps_.method().steps(); s < end; ++s) {
      const double before = steps_.scale().value();
      losses.push_back(steps_.run(static_cast<std::uint64_t>(s)));
      if (steps_.scale().value() < before) ++backoffs;
      if (steps_.scale().value() > before) ++growths;
    }
  }
  void save(Checkpoint& checkpoint) { steps_.step().save_state(checkpoint); }
  void load(const Checkpoint& checkpoint) { steps_.step().load_state(checkpoint, "checkpoint"); }
  Checkpoint state() {
    Checkpoint checkpoint;
    save(checkpoint);
    return checkpoint;
  }

  std::vector<double> losses;
  int backoffs = 0;
  int growths = 0;

 private:
  static MethodConfig method_of(NormMode norms) {
    MethodConfig method = lookaround();
    method.batch_norm = norms;
    return method;
  }

  FewSteps steps_;
};

bool same(const TensorMap& a, const TensorMap& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& x, const auto& y) {
    return x.first == y.first && x.second.equal(y.second);
  });
}

TEST_CASE("a loss scale that backs off goes on from a checkpoint to the same bits", "[train]") {
  const testing::TemporaryFolder folder;
  // One backs off again and again, the other grows too far and comes back.
  const ScaleAtFirst high{0x1p134, 0};
  const ScaleAtFirst growing{0x1p128, LossScale::kGrowthInterval - 9};
  for (const auto& [norms, scale, backoffs, growths] : {std::tuple{NormMode::kShared, high, 4, 0},
                                                        {NormMode::kShared, growing, 1, 1},
                                                        {NormMode::kPerHead, growing, 1, 1}}) {
    ScaledRun whole(norms, scale);
    whole.run_to(ScaledRun::kSteps);
    REQUIRE(whole.backoffs >= backoffs);
    REQUIRE(whole.growths == growths);
    const Checkpoint expected = whole.state();
    for (std::int64_t at = 1; at < ScaledRun::kSteps; ++at) {
      INFO("stopped after step " << at);
      ScaledRun first(norms, scale);
      first.run_to(at);
      Checkpoint checkpoint;
      checkpoint.position = {0, at};
      first.save(checkpoint);
      const auto path = write_checkpoint(folder.path(), checkpoint, 1);
      ScaledRun second(norms, {LossScale::kFirst, 0});
      second.load(read_checkpoint(path));
      second.run_to(ScaledRun::kSteps);
      first.losses.insert(first.losses.end(), second.losses.begin(), second.losses.end());
      CHECK(first.losses == whole.losses);
      CHECK(first.backoffs + second.backoffs == whole.backoffs);
      CHECK(first.growths + second.growths == whole.growths);
      const Checkpoint ended = second.state();
      CHECK(ended.steps == expected.steps);
      CHECK(ended.loss_scale == expected.loss_scale);
      CHECK(same(ended.optimizer, expected.optimizer));
      CHECK(same(ended.buffers, expected.buffers));
      remove_checkpoints(folder.path());
    }
    Checkpoint without = expected;
    without.loss_scale = nullptr;
    testing::expect_error(ErrorKind::kInput, {"checkpoint", "loss scale"},
                          [&] { whole.load(without); });
  }
}

}  // namespace
}  // namespace weightsmith
