// The optimiser against numbers from the authors' implementation (PyTorch 1.13): fixed gradients in
// float32, to 1e-6; learning rates; and a small network trained from its own losses (theirs in
// float64, ours in float32).

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <fstream>
#include <nlohmann/json.hpp>
#include <tuple>

#include "weightsmith/eval/objective.h"
#include "weightsmith/model/script_model.h"
#include "weightsmith/tensor/safetensors.h"
#include "weightsmith/train/lookahead.h"
#include "weightsmith/train/lookaround.h"
#include "weightsmith/train/plain_training.h"
#include "weightsmith/train/schedule.h"
#include "weightsmith/train/swa.h"

namespace weightsmith {
namespace {

constexpr double kTolerance = 1e-6;
const SgdOptions kBase{0.9, 0.0, 0.05, false};

std::string path_of(const std::string& name) {
  return std::string(WEIGHTSMITH_TEST_DATA) + "/golden/lookaround/" + name;
}

nlohmann::json read_json(const std::string& name) {
  std::ifstream in(path_of(name));
  REQUIRE(in);
  return nlohmann::json::parse(in);
}

const TensorMap& goldens() {
  static const TensorMap tensors = read_safetensors(path_of("lookaround.safetensors")).tensors;
  return tensors;
}

double distance(const at::Tensor& a, const at::Tensor& b) {
  return (a.detach().to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

struct Fixture {
  TensorMap parameters{{"w", goldens().at("init_w").clone().requires_grad_(true)},
                       {"b", goldens().at("init_b").clone().requires_grad_(true)}};
  std::vector<double> rates = read_json("manifest.json")["lr_per_step"];

  void set_gradients(std::int64_t step) {
    for (auto& [name, parameter] : parameters)
      parameter.mutable_grad() = goldens().at("grad_" + name)[step].clone();
  }
};

/// The stretch of a flat head or momentum that belongs to `parameter`, in its shape.
at::Tensor part_of(const ParameterArena& arena, const at::Tensor& flat,
                   const at::Tensor& parameter) {
  for (std::size_t i = 0; i < arena.segments().size(); ++i)
    if (arena.parameters()[i].is_same(parameter))
      return flat.narrow(0, arena.segments()[i].offset, arena.segments()[i].numel)
          .view(parameter.sizes());
  FAIL("not in the arena");
  return {};
}

TEST_CASE("Lookaround follows the authors' on fixed gradients", "[train][golden]") {
  const nlohmann::json cases = read_json("scalars.json")["lookaround_cases"];
  CHECK(cases.size() == 17);
  for (const auto& c : cases) {
    const std::string name = c["name"];
    INFO(name);
    const std::int64_t d = c["d"];
    const std::int64_t k = c["k"];
    Fixture f;
    ParameterArena arena(f.parameters, d, name);
    Lookaround lookaround(
        arena,
        SgdOptions{c["momentum"], c["dampening"], c["weight_decay"], c["nesterov"].get<bool>()}, k);
    for (std::int64_t step = 0; step < 12; ++step) {
      f.set_gradients(step);
      lookaround.step(f.rates[step]);
      for (const auto& [p, parameter] : f.parameters) {
        CHECK(distance(parameter, goldens().at(name + "/visible_" + p)[step]) < kTolerance);
        for (std::int64_t h = 0; h < d; ++h)
          CHECK(distance(part_of(arena, arena.head(h), parameter),
                         goldens().at(name + "/heads_" + p)[step][h]) < kTolerance);
      }
      if ((step + 1) % (d * k) == 0) {
        const at::Tensor shown = f.parameters.at("w").detach().clone();
        lookaround.show_result();
        CHECK(f.parameters.at("w").detach().equal(shown));
        lookaround.show_training();
      }
    }
    if (c["momentum"] == 0.0) continue;
    const at::Tensor momenta = lookaround.state().at("momenta");
    for (std::int64_t h = 0; h < d; ++h)
      CHECK(distance(part_of(arena, momenta[h], f.parameters.at("w")),
                     goldens().at(name + "/momentum_w_head" + std::to_string(h))) < kTolerance);
  }
}

TEST_CASE("SGD follows PyTorch's on fixed gradients", "[train][golden]") {
  Fixture f;
  ParameterArena arena(f.parameters, 1, "sgd");
  PlainTraining sgd(arena, kBase);
  for (std::int64_t step = 0; step < 12; ++step) {
    f.set_gradients(step);
    sgd.step(f.rates[step]);
    CHECK(distance(f.parameters.at("w"), goldens().at("sgd/w")[step]) < kTolerance);
  }
}

TEST_CASE("Lookahead follows the authors' on fixed gradients", "[train][golden]") {
  for (const auto& [name, k, alpha] : {std::tuple{"lookahead_k5_a0.5", 5, 0.5},
                                       {"lookahead_k2_a0.5", 2, 0.5},
                                       {"lookahead_k3_a0.8", 3, 0.8}}) {
    Fixture f;
    ParameterArena arena(f.parameters, 1, name);
    // Theirs takes the slow weights after the first step and meets them after steps 1 + k, 1 + 2k …
    Lookahead lookahead(arena, kBase, k, alpha, SlowFrom::kFirstStep);
    for (std::int64_t step = 0; step < 12; ++step) {
      INFO(name << ", step " << step);
      f.set_gradients(step);
      lookahead.step(f.rates[step]);
      const at::Tensor wanted = goldens().at(std::string(name) + "/w")[step];
      CHECK(distance(f.parameters.at("w"), wanted) < kTolerance);
      if (step % k != 0) continue;
      lookahead.show_result();
      CHECK(distance(f.parameters.at("w"), wanted) < kTolerance);
      lookahead.show_training();
    }
  }
}

TEST_CASE("SWA follows the authors' average on fixed gradients", "[train][golden]") {
  Fixture f;
  ParameterArena arena(f.parameters, 1, "swa");
  Swa swa(arena, kBase, 4, 1);
  for (std::int64_t step = 0; step < 12; ++step) {
    f.set_gradients(step);
    swa.step(f.rates[step]);
    CHECK(distance(f.parameters.at("w"), goldens().at("sgd/w")[step]) < kTolerance);
    if (step < 4) continue;
    swa.show_result();
    CHECK(distance(f.parameters.at("w"), goldens().at("swa_from_step4/w")[step - 4]) < kTolerance);
    swa.show_training();
  }
}

TEST_CASE("learning rates follow the authors' schedules", "[train][golden]") {
  const nlohmann::json schedules = read_json("scalars.json")["schedules"];
  const std::int64_t batches = schedules["iters"];
  TrainConfig config;
  config.epochs = schedules["epochs"];
  config.optimizer.lr = schedules["base_lr"];
  config.schedule.warmup_epochs = schedules["warm_epochs"];
  config.method.type = MethodConfig::Type::kSgd;
  const auto check = [&](const std::string& name) {
    const nlohmann::json& used = schedules["lr_used_by_iteration"][name];
    REQUIRE(static_cast<std::int64_t>(used.size()) == config.epochs * batches);
    // Theirs divides the warm-up by its length + 1e-8.
    for (std::int64_t i = 0; i < config.epochs * batches; ++i) {
      INFO(name << ", batch " << i);
      CHECK(learning_rate(config, batches, i / batches, i % batches) ==
            Approx(used[i].get<double>()).margin(1e-9));
    }
  };
  config.schedule.min_lr = schedules["cosine"]["eta_min"];
  check("cosine");
  config.schedule.type = ScheduleConfig::Type::kMultiStep;
  config.schedule.milestones =
      schedules["multistep"]["milestones"].get<std::vector<std::int64_t>>();
  config.schedule.gamma = schedules["multistep"]["gamma"];
  check("multistep");
  // Theirs counts the epochs before the first averaged one from 0, and averages after that one.
  config.method.type = MethodConfig::Type::kSwa;
  config.method.start_epoch = schedules["swa"]["swa_start"].get<std::int64_t>() + 1;
  config.method.lr = schedules["swa"]["swa_lr"].get<double>();
  config.method.anneal_epochs = schedules["swa"]["anneal_epochs"];
  check("swa");
}

TEST_CASE("a small network with batch norm follows the authors' training", "[train][golden]") {
  const nlohmann::json scalars = read_json("scalars.json");
  for (const auto& [name, d, k] :
       {std::tuple{"d3k2", 3, 2}, {"d2k1", 2, 1}, {"d3k5_midcycle", 3, 5}}) {
    const std::string prefix = std::string("e2e/") + name + "/after";
    const std::vector<double> losses = scalars[std::string("e2e_") + name + "_losses"];
    ModelRef ref;
    ref.script = path_of("tinynet_train_scripted.pt");
    ScriptModel model = ScriptModel::load(ref, {});
    for (const auto& [key, tensor] : model.state_dict())
      CHECK(distance(tensor.reshape({-1}), goldens().at("e2e/init/" + key).reshape({-1})) == 0);
    model.train(true);
    ParameterArena arena(model.parameters(), d, name);
    Lookaround lookaround(arena, SgdOptions{0.9, 0.0, 5e-4, false}, k);
    const Objective objective(ObjectiveConfig{}, 5);
    for (int step = 0; step < 12; ++step) {
      INFO(name << ", step " << step);
      const at::Tensor loss =
          objective.loss(model.forward(goldens().at("e2e/x")[step]), goldens().at("e2e/y")[step]);
      CHECK(loss.item<double>() == Approx(losses[step]).margin(2e-6));
      loss.backward();
      lookaround.step(0.05);
      if (goldens().count(prefix + std::to_string(step) + "/f.bias") == 0) continue;
      for (const auto& [key, tensor] : model.state_dict())
        CHECK(distance(tensor.reshape({-1}),
                       goldens().at(prefix + std::to_string(step) + "/" + key).reshape({-1})) <
              2e-6);
    }
  }
}

}  // namespace
}  // namespace weightsmith
