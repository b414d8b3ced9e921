#include "weightsmith/train/methods.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <functional>
#include <numeric>
#include <optional>

#include "support/expect_error.h"
#include "weightsmith/core/rng.h"
#include "weightsmith/train/ema.h"
#include "weightsmith/train/flat_average.h"
#include "weightsmith/train/lookahead.h"
#include "weightsmith/train/plain_training.h"
#include "weightsmith/train/swa.h"
#include "weightsmith/train/swad.h"

namespace weightsmith {
namespace {

constexpr int kValues = 9;
constexpr double kMargin = 5e-6;
const SgdOptions kSgd{0.9, 0.0, 0.05, false};

/// A network of one parameter, and random gradients for it.
struct OneParameter {
  TensorMap parameters;
  at::Tensor& values;

  OneParameter() : values(parameters["w"]) {
    at::manual_seed(7);
    values = at::randn({kValues}).requires_grad_(true);
  }
  std::vector<double> shown() const {
    std::vector<double> v;
    for (int i = 0; i < kValues; ++i) v.push_back(values[i].item<double>());
    return v;
  }
  std::vector<double> draw_gradient() {
    const at::Tensor gradient = at::randn({kValues});
    values.mutable_grad() = gradient;
    std::vector<double> v;
    for (int i = 0; i < kValues; ++i) v.push_back(gradient[i].item<double>());
    return v;
  }
};

void check_close(const std::vector<double>& actual, const std::vector<double>& wanted) {
  REQUIRE(actual.size() == wanted.size());
  for (std::size_t i = 0; i < actual.size(); ++i)
    CHECK(actual[i] == Approx(wanted[i]).margin(kMargin));
}

/// Slow twin of SGD with momentum and weight decay, in double.
struct SlowMomentum {
  std::vector<double> w, m = std::vector<double>(kValues, 0.0);
  void step(double lr, const std::vector<double>& gradient) {
    for (int i = 0; i < kValues; ++i) {
      m[i] = 0.9 * m[i] + gradient[i] + 0.05 * w[i];
      w[i] -= lr * m[i];
    }
  }
};

std::vector<double> mean_of(const std::vector<std::vector<double>>& weights) {
  std::vector<double> mean(kValues, 0.0);
  for (const auto& w : weights)
    for (int i = 0; i < kValues; ++i) mean[i] += w[i] / static_cast<double>(weights.size());
  return mean;
}

TEST_CASE("Adam and AdamW agree with their slow twins and with tensor operations", "[train]") {
  for (const bool decoupled : {false, true}) {
    for (const double weight_decay : {0.0, 0.1}) {
      at::manual_seed(5);
      const AdamOptions o{0.8, 0.95, 1e-6, weight_decay, decoupled};
      at::Tensor values = at::randn({37});
      at::Tensor m = at::zeros({37});
      at::Tensor v = at::zeros({37});
      at::Tensor other_values = values.clone();
      at::Tensor other_m = m.clone();
      at::Tensor other_v = v.clone();
      std::vector<double> slow(37), slow_m(37), slow_v(37);
      for (int i = 0; i < 37; ++i) slow[i] = values[i].item<double>();
      for (int t = 1; t <= 6; ++t) {
        const double lr = t < 4 ? 0.1 : 0.02;
        const at::Tensor gradient = at::randn({37});
        adam_update(o, lr, t, 37, gradient.data_ptr<float>(), values.data_ptr<float>(),
                    m.data_ptr<float>(), v.data_ptr<float>());
        adam_step_by_operators(o, lr, t, gradient, other_values, other_m, other_v);
        for (int i = 0; i < 37; ++i) {
          double g = gradient[i].item<double>();
          if (decoupled) {
            slow[i] -= lr * weight_decay * slow[i];
          } else {
            g += weight_decay * slow[i];
          }
          slow_m[i] = o.beta1 * slow_m[i] + (1 - o.beta1) * g;
          slow_v[i] = o.beta2 * slow_v[i] + (1 - o.beta2) * g * g;
          const double m_hat = slow_m[i] / (1 - std::pow(o.beta1, t));
          const double v_hat = slow_v[i] / (1 - std::pow(o.beta2, t));
          slow[i] -= lr * m_hat / (std::sqrt(v_hat) + o.epsilon);
        }
      }
      CHECK(at::allclose(values, other_values, 1e-5, 1e-6));
      CHECK(at::allclose(v, other_v, 1e-5, 1e-6));
      for (int i = 0; i < 37; ++i)
        CHECK(values[i].item<double>() == Approx(slow[i]).margin(kMargin));
    }
  }
}

TEST_CASE("Adam counts the steps of each parameter by itself", "[train]") {
  TensorMap parameters{{"a", at::zeros({2}).requires_grad_(true)},
                       {"b", at::zeros({2}).requires_grad_(true)}};
  ParameterArena arena(parameters, 1, "net");
  PlainTraining adam(arena, AdamOptions{});
  for (int step = 0; step < 3; ++step) {
    parameters.at("a").mutable_grad() = at::ones({2});
    if (step == 2) parameters.at("b").mutable_grad() = at::full({2}, 5.F);
    adam.step(0.1);
  }
  // A first step has the length of the learning rate whatever the gradient.
  CHECK(parameters.at("b")[0].item<double>() == Approx(-0.1));
  CHECK(parameters.at("a")[0].item<double>() == Approx(-0.3));
}

TEST_CASE("flat averages are what they say, over several threads' worth of values", "[train]") {
  at::manual_seed(2);
  at::Tensor target = at::randn({100001});
  const at::Tensor source = at::randn({100001});
  const at::Tensor wanted = target + 0.3 * (source - target);
  move_towards(target, source, 0.3);
  CHECK(at::allclose(target, wanted, 1e-6, 1e-6));
  move_towards(target, source, 1.0);
  CHECK(target.equal(source));
  at::Tensor slow = at::randn({100001});
  at::Tensor fast = source.clone();
  const at::Tensor met = slow + 0.25 * (fast - slow);
  pull_together(slow, fast, 0.25);
  CHECK(at::allclose(slow, met, 1e-6, 1e-6));
  CHECK(fast.equal(slow));
}

TEST_CASE("Lookahead agrees with its slow twin", "[train]") {
  for (const SlowFrom from : {SlowFrom::kStart, SlowFrom::kFirstStep}) {
    for (const int k : {1, 3, 5}) {
      OneParameter net;
      SlowMomentum fast{net.shown()};
      std::vector<double> slow = fast.w;
      ParameterArena arena(net.parameters, 1, "net");
      Lookahead lookahead(arena, kSgd, k, 0.4, from);
      for (int t = 1; t <= 17; ++t) {
        fast.step(0.1, net.draw_gradient());
        lookahead.step(0.1);
        if (from == SlowFrom::kFirstStep && t == 1) {
          slow = fast.w;
        } else if ((from == SlowFrom::kStart ? t : t - 1) % k == 0) {
          for (int i = 0; i < kValues; ++i) fast.w[i] = slow[i] += 0.4 * (fast.w[i] - slow[i]);
        }
        check_close(net.shown(), fast.w);
        lookahead.show_result();
        check_close(net.shown(), slow);
        lookahead.show_training();
      }
    }
  }
}

TEST_CASE("SWA is the mean of the weights it is told to average", "[train]") {
  for (const auto& [first, every] : {std::pair{0, 1}, {4, 1}, {3, 3}}) {
    OneParameter net;
    SlowMomentum slow{net.shown()};
    std::vector<std::vector<double>> taken;
    ParameterArena arena(net.parameters, 1, "net");
    Swa swa(arena, kSgd, first, every);
    for (int t = 1; t <= 16; ++t) {
      slow.step(0.1, net.draw_gradient());
      swa.step(0.1);
      if (t > first && (t - first) % every == 0) taken.push_back(slow.w);
      CHECK(swa.averaged() == static_cast<std::int64_t>(taken.size()));
      CHECK(swa.result_is_average() == !taken.empty());
      check_close(net.shown(), slow.w);
      swa.show_result();
      check_close(net.shown(), taken.empty() ? slow.w : mean_of(taken));
      swa.show_training();
    }
  }
}

TEST_CASE("EMA begins as a mean and then forgets", "[train]") {
  OneParameter net;
  SlowMomentum slow{net.shown()};
  std::vector<std::vector<double>> taken;
  ParameterArena arena(net.parameters, 1, "net");
  Ema ema(arena, kSgd, 0.75);
  std::vector<double> average;
  for (int t = 1; t <= 12; ++t) {
    slow.step(0.1, net.draw_gradient());
    ema.step(0.1);
    taken.push_back(slow.w);
    if (t <= 4) {
      average = mean_of(taken);
    } else {
      for (int i = 0; i < kValues; ++i) average[i] = 0.75 * average[i] + 0.25 * slow.w[i];
    }
    ema.show_result();
    check_close(net.shown(), average);
    ema.show_training();
  }
}

/// Algorithm 1 of the paper on whole lists: which segments (from 0) are averaged, after all of
/// `losses` are known. No value: no start was found.
std::optional<std::pair<int, int>> swad_segments(const std::vector<double>& losses,
                                                 const SwadOptions& o) {
  const auto n_s = static_cast<int>(o.n_s);
  const auto n_e = static_cast<int>(o.n_e);
  std::optional<int> start;
  double bound = 0;
  for (int i = 0; i < static_cast<int>(losses.size()); ++i) {
    if (!start) {
      if (i < n_s - 1) continue;
      const auto from = losses.begin() + (i - n_s + 1);
      if (*from == *std::min_element(from, from + n_s)) {
        start = i - n_s + 1;
        bound = o.r * std::accumulate(from, from + n_s, 0.0) / n_s;
      }
    } else if (i >= n_e - 1) {
      const auto from = losses.begin() + (i - n_e + 1);
      if (bound < *std::min_element(from, from + n_e)) return std::pair{*start, i - n_e};
    }
  }
  if (!start) return std::nullopt;
  return std::pair{*start, static_cast<int>(losses.size()) - 1};
}

TEST_CASE("SWAD averages the segments that its algorithm names", "[train]") {
  Rng rng(11);
  int never_started = 0;
  int ended = 0;
  for (int trial = 0; trial < 60; ++trial) {
    const SwadOptions options{
        1 + static_cast<std::int64_t>(rng.below(4)), 1 + static_cast<std::int64_t>(rng.below(5)),
        1.0 + 0.3 * rng.uniform(), 1 + static_cast<std::int64_t>(rng.below(3))};
    OneParameter net;
    SlowMomentum slow{net.shown()};
    ParameterArena arena(net.parameters, 1, "net");
    Swad swad(arena, kSgd, options);
    std::vector<double> losses;
    std::vector<std::vector<double>> weights;
    bool told_to_end = false;
    for (int t = 1; t <= 26; ++t) {
      slow.step(0.1, net.draw_gradient());
      swad.step(0.1);
      weights.push_back(slow.w);
      const auto found = swad_segments(losses, options);
      const bool is_over =
          found && found->second < static_cast<int>(losses.size()) - 1;  // an end was found
      CHECK(swad.wants_validation() == (!is_over && t % options.validate_every == 0));
      if (swad.wants_validation()) {
        // Falls, then rises; a trial in three never stops falling.
        const double x = t / 26.0 - 0.4;
        losses.push_back((trial % 3 == 0 ? 1 - t / 26.0 : 0.2 + x * x) + 0.03 * rng.uniform());
        swad.observe_validation(losses.back());
      }
      CHECK_FALSE(swad.wants_validation());
      const auto segments = swad_segments(losses, options);
      CHECK(swad.started() == segments.has_value());
      told_to_end = segments && segments->second < static_cast<int>(losses.size()) - 1;
      CHECK(swad.ended() == told_to_end);
      std::vector<double> wanted = slow.w;
      if (segments) {
        const auto v = static_cast<int>(options.validate_every);
        wanted = mean_of(
            {weights.begin() + segments->first * v, weights.begin() + (segments->second + 1) * v});
      }
      check_close(net.shown(), slow.w);
      swad.show_result();
      check_close(net.shown(), wanted);
      swad.show_training();
    }
    never_started += swad.started() ? 0 : 1;
    ended += told_to_end ? 1 : 0;
  }
  CHECK(never_started >= 1);
  CHECK(ended >= 10);
  CHECK(ended < 60);
}

/// Any configuration that make_method takes.
TrainConfig config_of(MethodConfig::Type type, OptimizerConfig::Type optimizer) {
  TrainConfig config;
  config.method.type = type;
  config.method.k = 2;
  config.method.decay = 0.8;
  config.method.start_epoch = 1;
  config.method.n_s = 2;
  config.method.n_e = 2;
  config.method.validate_every = 1;
  config.optimizer.type = optimizer;
  config.optimizer.nesterov = true;
  config.epochs = 5;
  return config;
}

TEST_CASE("every restored method goes on with the same bits", "[train]") {
  for (const auto& [type, method_name] : enum_names(MethodConfig::Type{})) {
    for (const auto& [optimizer, optimizer_name] : enum_names(OptimizerConfig::Type{})) {
      for (const int stop : {0, 1, 4, 6, 7, 9}) {
        INFO(method_name << ", " << optimizer_name << ", step " << stop);
        const TrainConfig config = config_of(type, optimizer);
        at::manual_seed(8);
        const auto draw = [] {
          return TensorMap{{"p0", at::randn({5}).requires_grad_(true)},
                           {"p1", at::randn({3, 2}).requires_grad_(true)}};
        };
        TensorMap first = draw();
        TensorMap second = draw();
        ParameterArena first_arena(first, config.method.trained_heads(), "net");
        ParameterArena second_arena(second, config.method.trained_heads(), "net");
        const auto one = make_method(config, first_arena, 3);
        const auto other = make_method(config, second_arena, 3);
        Rng losses(3);
        for (int step = 0; step < 15; ++step) {
          if (step == stop) {
            TensorMap state;
            for (const auto& [name, tensor] : one->state()) state.emplace(name, tensor.clone());
            other->load_state(state, one->steps(), "state");
          }
          if (step >= stop) CHECK(one->wants_validation() == other->wants_validation());
          if (one->wants_validation()) {
            const double loss = losses.uniform();
            one->observe_validation(loss);
            if (step >= stop) other->observe_validation(loss);
          }
          for (auto& [name, parameter] : first) {
            const at::Tensor gradient = at::randn_like(parameter).detach();
            parameter.mutable_grad() = gradient;
            if (step >= stop) second.at(name).mutable_grad() = gradient.clone();
          }
          one->step(0.1);
          if (step >= stop) other->step(0.1);
        }
        for (auto& [name, parameter] : first) CHECK(parameter.equal(second.at(name)));
        one->show_result();
        other->show_result();
        for (auto& [name, parameter] : first) CHECK(parameter.equal(second.at(name)));
        CHECK(one->head() == other->head());

        const TensorMap before = other->state();
        TensorMap wrong;
        for (const auto& [name, tensor] : before) wrong.emplace(name, at::zeros_like(tensor));
        wrong["heads"] = at::zeros({2, 2});
        const at::Tensor counts = before.at("counts").clone();
        const std::string error =
            testing::error_of(ErrorKind::kInput, [&] { other->load_state(wrong, 0, "the file"); });
        CHECK_THAT(error, Catch::Contains("the file") && Catch::Contains("heads"));
        CHECK(before.at("counts").equal(counts));  // nothing was restored by halves
      }
    }
  }
}

}  // namespace
}  // namespace weightsmith
