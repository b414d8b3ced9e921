// Parameters with a rate or a weight decay of their own.
#include "weightsmith/train/parameter_groups.h"

#include <ATen/ATen.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include <catch2/catch.hpp>
#include <memory>

#include "support/expect_error.h"
#include "support/temporary_folder.h"
#include "unit/train/trainer_runs.h"
#include "weightsmith/train/checkpoint.h"

namespace weightsmith {
namespace {

using namespace testing;

/// One of torch's optimisers, with a group a parameter.
template <class Optimizer, class Options>
std::unique_ptr<torch::optim::Optimizer> optimizer_of_torch(
    const std::vector<at::Tensor>& parameters, const std::vector<double>& lr_factors,
    const std::vector<double>& decays, double lr, const Options& options) {
  std::vector<torch::optim::OptimizerParamGroup> groups;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    auto own = std::make_unique<Options>(options);
    own->lr(lr * lr_factors[i]);
    own->weight_decay(decays[i]);
    groups.emplace_back(std::vector<at::Tensor>{parameters[i]}, std::move(own));
  }
  return std::make_unique<Optimizer>(groups, options);
}

TEST_CASE("groups step as those of torch's optimisers do", "[train]") {
  constexpr double kLr = 0.05;
  constexpr double kDecay = 0.1;
  const std::vector<ParameterSettings> settings{
      {1, std::nullopt}, {0.2, std::nullopt}, {1, 0.0}, {3, 0.4}};
  const std::vector<double> factors{1, 0.2, 1, 3};
  const std::vector<double> decays{kDecay, kDecay, 0, 0.4};
  const std::vector<std::vector<std::int64_t>> shapes{{30, 7}, {5}, {1}, {2, 3, 4}};
  using namespace torch::optim;
  for (const std::string kind : {"sgd", "nesterov", "adam", "adamw"}) {
    INFO(kind);
    at::manual_seed(12);
    TensorMap parameters;
    std::vector<at::Tensor> twins;
    for (std::size_t i = 0; i < shapes.size(); ++i) {
      parameters.emplace("p" + std::to_string(i), at::randn(shapes[i]).requires_grad_(true));
      twins.push_back(parameters.at("p" + std::to_string(i)).detach().clone().requires_grad_(true));
    }
    BaseOptions options;
    std::unique_ptr<Optimizer> expected;
    if (kind == "adam" || kind == "adamw") {
      options = AdamOptions{0.9, 0.999, 1e-8, kDecay, kind == "adamw"};
      if (kind == "adam")
        expected =
            optimizer_of_torch<Adam>(twins, factors, decays, kLr, torch::optim::AdamOptions(kLr));
      else
        expected = optimizer_of_torch<AdamW>(twins, factors, decays, kLr, AdamWOptions(kLr));
    } else {
      options = SgdOptions{0.9, 0, kDecay, kind == "nesterov"};
      expected = optimizer_of_torch<SGD>(
          twins, factors, decays, kLr, SGDOptions(kLr).momentum(0.9).nesterov(kind == "nesterov"));
    }
    ParameterArena arena(parameters, 2, "net");
    BaseOptimizer optimizer(arena, options);
    optimizer.set_parameters(settings);
    arena.show(1);
    for (int step = 0; step < 5; ++step) {
      for (std::size_t i = 0; i < shapes.size(); ++i) {
        const at::Tensor gradient = at::randn(shapes[i]);
        parameters.at("p" + std::to_string(i)).mutable_grad() = gradient;
        twins[i].mutable_grad() = gradient.clone();
      }
      optimizer.step(1, kLr);
      expected->step();
    }
    for (std::size_t i = 0; i < shapes.size(); ++i) {
      INFO("parameter " << i);
      CHECK(at::allclose(parameters.at("p" + std::to_string(i)).detach(), twins[i].detach(), 1e-5,
                         2e-6));
    }
  }
}

TEST_CASE("the first group that fits a name of a parameter counts", "[train]") {
  const TemporaryFolder folder;
  const TrainConfig config = small_config(folder / "unused");
  ScriptModel model = ScriptModel::load(config.model, {});
  ParameterArena arena(model.parameters(), 1, "net");
  CHECK(parameter_settings({}, model, arena).empty());
  const auto settings = parameter_settings(
      {{{"*.bias", "bn[12]*"}, 1, 0.0}, {{"conv1*", "bn*"}, 0.5, std::nullopt}}, model, arena);
  std::size_t i = 0;
  for (const auto& [name, parameter] : model.parameters()) {
    INFO(name);
    const bool first =
        name.ends_with(".bias") || name.starts_with("bn1") || name.starts_with("bn2");
    const bool second = !first && (name.starts_with("conv1") || name.starts_with("bn"));
    CHECK(settings.at(i).weight_decay == (first ? std::make_optional(0.0) : std::nullopt));
    CHECK(settings.at(i).lr_factor == (second ? 0.5 : 1));
    ++i;
  }
  CHECK(i == settings.size());
  expect_error(
      ErrorKind::kConfig,
      {"optimizer.groups[1].parameters", "\"*.biass\"", "fits no parameter", "conv1.weight"}, [&] {
        parameter_settings({{{"*"}}, {{"*.biass"}}}, model, arena);
      });
}

TEST_CASE("groups change their parameters' steps alone, and are no other run's", "[train]") {
  const TemporaryFolder folder;
  TrainConfig config = small_config(folder / "plain");
  config.method.type = MethodConfig::Type::kSgd;  // a mean of heads would be rounded
  config.epochs = 1;
  config.schedule.warmup_epochs = 0;
  train_quietly(config);
  // A group that says what holds anyway changes no bit.
  config.out = folder / "same";
  config.optimizer.groups = {{{"*"}, 1, config.optimizer.weight_decay}};
  train_quietly(config);
  CHECK(same(weights_of(folder / "same"), weights_of(folder / "plain")));

  config.out = folder / "slow";
  config.optimizer.groups = {{{"fc.*"}, 1e-30}};
  train_quietly(config);
  LoadOptions load;
  load.seed = static_cast<std::uint64_t>(config.seed);
  ScriptModel before = ScriptModel::load(config.model, load);
  const TensorMap after = weights_of(config.out);
  for (const auto& [name, parameter] : before.parameters()) {
    INFO(name);
    CHECK(after.at(name).equal(parameter.detach()) == name.starts_with("fc."));
  }

  config.optimizer.groups[0].lr_factor = 0.5;
  NoProgress progress;
  expect_error(ErrorKind::kConfig, {"optimizer.groups", "differs"}, [&] {
    train(config, {at::kCPU, true}, progress);
  });
  config.out = folder / "typo";
  config.optimizer.groups[0].parameters = {"fd.*"};
  expect_error(ErrorKind::kConfig, {"optimizer.groups[0].parameters", "\"fd.*\""},
               [&] { train_quietly(config); });
  CHECK_FALSE(std::filesystem::exists(config.out));
}

}  // namespace
}  // namespace weightsmith
