// The same work on a GPU and on the CPU. WEIGHTSMITH_TEST_DEVICE=cpu compares the CPU with itself,
// which tries out the tests.
#include <ATen/ATen.h>
#include <torch/cuda.h>

#include <catch2/catch.hpp>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "support/images.h"
#include "support/temporary_folder.h"
#include "unit/train/trainer_runs.h"
#include "weightsmith/core/stop.h"
#include "weightsmith/data/loader.h"
#include "weightsmith/distance/gradient_field.h"
#include "weightsmith/eval/evaluation.h"
#include "weightsmith/merge/networks.h"
#include "weightsmith/merge/statistics.h"
#include "weightsmith/train/base_optimizer.h"

namespace weightsmith {
namespace {

using namespace testing;

/// None: no GPU, and the test is skipped.
std::optional<at::Device> device() {
  const char* const wanted = std::getenv("WEIGHTSMITH_TEST_DEVICE");
  if (wanted != nullptr) return at::Device(wanted);
  if (torch::cuda::is_available()) return at::Device(at::kCUDA, 0);
  WARN("no GPU: nothing was compared");
  return std::nullopt;
}

double difference(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor expected = b.to(at::kCPU, at::kDouble);
  return ((a.to(at::kCPU, at::kDouble) - expected).norm() / expected.norm()).item<double>();
}

ScriptModel resnet(at::Device on, std::uint64_t seed = 1) {
  ModelRef ref;
  ref.builtin = "resnet20";
  ref.options = {{"depth", 8}, {"width", 1}, {"channels", 3}, {"outputs", 10}};
  LoadOptions options;
  options.device = on;
  options.seed = seed;
  return ScriptModel::load(ref, options);
}

Dataset images(std::int64_t count) {
  Dataset set;
  at::manual_seed(4);
  // Images in which an operation that goes astray by a pixel shows.
  set.images = at::upsample_bilinear2d(at::rand({count, 3, 7, 9}) * 256, {32, 32}, true)
                   .clamp(0, 255)
                   .to(at::kByte);
  set.labels = at::arange(count).remainder(10);
  set.classes = 10;
  set.mean = {0.5, 0.5, 0.5};
  set.std = {0.25, 0.25, 0.25};
  set.where = "smooth images";
  return set;
}

TEST_CASE("a GPU augments as the CPU does", "[gpu]") {
  const auto on = device();
  if (!on) return;
  const Dataset set = images(64);
  LoaderOptions options;
  options.batch_size = 32;
  using Name = Augmentation::Name;
  for (const Name name : {Name::kRandomCrop, Name::kHorizontalFlip, Name::kAffine, Name::kRotation,
                          Name::kColorJitter, Name::kAutoAugment, Name::kRandAugment,
                          Name::kTrivialAugment, Name::kRandomErasing, Name::kMixup, Name::kCutmix})
    options.pipelines.push_back({augmentation(name)});
  Loader here(set, options);
  options.device = on;
  Loader there(set, options);
  for (int i = 0; i < 4; ++i) {
    const Batch expected = here.next();
    const Batch batch = there.next();
    for (std::size_t v = 0; v < batch.views.size(); ++v) {
      INFO("batch " << i << ", pipeline " << v);
      CHECK(batch.views[v].device() == *on);
      // One level of a byte, at few of the pixels where rounding may go either way.
      const at::Tensor apart = (batch.views[v].cpu() - expected.views[v]).abs() * (0.25 * 255);
      CHECK(apart.max().item<double>() < 1.01);
      CHECK(apart.mean().item<double>() < 0.01);
      CHECK(batch.labels[v].cpu().equal(expected.labels[v]));
    }
  }
}

TEST_CASE("base optimisers and averages step a GPU's heads as they step the CPU's", "[gpu]") {
  const auto on = device();
  if (!on) return;
  for (const BaseOptions& options : {BaseOptions(SgdOptions{0.9, 0, 1e-2, true}),
                                     BaseOptions(AdamOptions{0.9, 0.99, 1e-8, 1e-2, true})}) {
    INFO("kind " << options.index());
    at::manual_seed(6);
    TensorMap here, there;
    for (const auto& [name, shape] :
         {std::pair<std::string, std::vector<std::int64_t>>{"a", {40, 30}},
          {"b", {7}},
          {"c", {16}},
          {"d", {2, 3, 3, 3}}}) {
      here.emplace(name, at::randn(shape).requires_grad_(true));
      there.emplace(name, here.at(name).detach().to(*on, at::kFloat, false, true));
      there.at(name).requires_grad_(true);
    }
    ParameterArena cpu(here, 3, "net"), gpu(there, 3, "net");
    BaseOptimizer cpu_steps(cpu, options), gpu_steps(gpu, options);
    for (int step = 0; step < 12; ++step) {
      for (auto& [name, parameter] : here) {
        parameter.mutable_grad() = at::randn(parameter.sizes());
        there.at(name).mutable_grad() = parameter.grad().to(*on);
      }
      cpu_steps.step(step % 3, 0.01);
      gpu_steps.step(step % 3, 0.01);
      if (step % 6 == 5) {
        cpu.average();
        gpu.average();
      }
    }
    CHECK(difference(gpu.values(), cpu.values()) < 1e-6);
  }
}

TEST_CASE("networks are scored and compared on a GPU as on the CPU", "[gpu]") {
  const auto on = device();
  if (!on) return;
  const Dataset set = images(60);
  NoProgress progress;
  const Objective objective({}, 10);
  std::vector<ScriptModel> here, there;
  for (const std::uint64_t seed : {1, 2}) {
    here.push_back(resnet(at::kCPU, seed));
    there.push_back(resnet(*on, seed));
  }
  EvaluationOptions options;
  const Evaluation expected = evaluate(here[0], set, objective, options, progress);
  options.device = *on;
  Objective moved = objective;
  moved.to(*on);
  const Evaluation found = evaluate(there[0], set, moved, options, progress);
  CHECK(found.loss == Approx(expected.loss).epsilon(1e-3));

  const UnitGroups groups = unit_groups_for(here.front(), "auto", {at::rand({2, 3, 32, 32})});
  REQUIRE(groups.groups.size() > 3);
  const auto wanted =
      activation_similarity(here, groups, set, {.batch_size = 25}, at::kCPU, progress);
  const auto similar = activation_similarity(there, groups, set, {.batch_size = 25}, *on, progress);
  for (std::size_t g = 0; g < groups.groups.size(); ++g) {
    INFO(groups.groups[g].name);
    CHECK((similar[g].values - wanted[g].values).abs().max().item<double>() < 0.01);
  }
}

TEST_CASE("fields are the same on a GPU as on the CPU", "[gpu]") {
  const auto on = device();
  if (!on) return;
  ScriptModel here = resnet(at::kCPU), there = resnet(*on);
  here.train(false);
  there.train(false);
  at::manual_seed(2);
  const at::Tensor x = at::randn({3, 3, 32, 32});
  FieldOptions options;
  options.steps = 8;
  const FieldInputs inputs{x, at::zeros_like(x), {}};
  const at::Tensor wanted = GradientField(here, options).compute(inputs).field;
  const at::Tensor field =
      GradientField(there, options).compute({x.to(*on), at::zeros_like(x).to(*on), {}}).field;
  CHECK(difference(field, wanted) < 1e-2);
}

TEST_CASE("trainings on a GPU end near those on the CPU", "[gpu]") {
  const auto on = device();
  if (!on) return;
  TemporaryFolder folder;
  for (auto& [name, config] : all_kinds_of_runs(folder.path())) {
    INFO(name);
    NoProgress progress;
    const TrainResult expected = train(config, {}, progress);
    config.out = folder / (name + " there");
    TrainOptions options;
    options.device = *on;
    options.losses_together = 4;
    const TrainResult found = train(config, options, progress);
    CHECK(found.steps == expected.steps);
    CHECK(found.train_loss == Approx(expected.train_loss).epsilon(0.03));
  }
}

/// Of products of matrices alone: convolutions may add up in another order every time.
TEST_CASE("a run on a GPU that is stopped and resumed ends with the same bits", "[gpu]") {
  const auto on = device();
  if (!on) return;
  TemporaryFolder folder;
  for (const Precision precision :
       {Precision::kFloat32, Precision::kBFloat16, Precision::kFloat16}) {
    if (precision == Precision::kFloat16 && on->is_cpu()) continue;
    INFO(enum_name(precision));
    TrainConfig config = small_config(folder / "whole");
    config.model.builtin = "mlp";
    config.model.options = {{"inputs", 64}, {"hidden", {32, 32}}, {"outputs", 10}};
    config.augmentations = {{}, {}, {}};
    config.precision = precision;
    TrainOptions options;
    options.device = *on;
    options.overwrite = true;
    options.losses_together = 1;
    NoProgress progress;
    train(config, options, progress);
    const TensorMap expected = weights_of(config.out);
    const auto rows = metrics_of(config.out);
    config.out = folder / "stopped";
    options.losses_together = 4;  // fewer than an epoch has
    StopAt soon(2);               // in the middle of the first epoch
    CHECK_THROWS_AS(train(config, options, soon), Interrupted);
    request_stop(0);
    options.overwrite = false;
    options.resume = true;
    train(config, options, progress);
    CHECK(same(weights_of(config.out), expected));
    CHECK(metrics_of(config.out) == rows);
  }
}

}  // namespace
}  // namespace weightsmith
