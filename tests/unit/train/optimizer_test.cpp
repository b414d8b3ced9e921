#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <catch2/catch.hpp>
#include <limits>
#include <vector>

#include "support/expect_error.h"
#include "weightsmith/train/adam.h"
#include "weightsmith/train/base_optimizer.h"
#include "weightsmith/train/lookaround.h"
#include "weightsmith/train/parameter_arena.h"
#include "weightsmith/train/sgd.h"

namespace weightsmith {
namespace {

std::vector<SgdOptions> all_options() {
  std::vector<SgdOptions> options;
  for (const double momentum : {0.0, 0.9})
    for (const double dampening : {0.0, 0.3})
      for (const double weight_decay : {0.0, 0.05})
        for (const bool nesterov : {false, true})
          options.push_back({momentum, dampening, weight_decay, nesterov});
  return options;
}

/// Slow twin: one parameter value of one head in double.
struct SlowSgd {
  double value;
  double momentum = 0;
  bool started = false;

  void step(const SgdOptions& o, double lr, double g) {
    g += o.weight_decay * value;
    if (o.momentum != 0) {
      momentum = started ? o.momentum * momentum + (1 - o.dampening) * g : g;
      g = o.nesterov ? g + o.momentum * momentum : momentum;
    }
    started = true;
    value -= lr * g;
  }
};

TensorMap parameters_of(const std::vector<std::vector<std::int64_t>>& shapes) {
  TensorMap parameters;
  for (std::size_t i = 0; i < shapes.size(); ++i)
    parameters.emplace("p" + std::to_string(i), at::randn(shapes[i]).requires_grad_(true));
  return parameters;
}

/// The pass over memory, for tensors.
void sgd_step(const SgdOptions& options, double lr, bool first, const at::Tensor& gradient,
              at::Tensor& values, at::Tensor& momenta) {
  const at::Tensor flat = gradient.flatten();
  sgd_update(options, lr, first, values.numel(), flat.data_ptr<float>(), values.data_ptr<float>(),
             momenta.data_ptr<float>());
}

TEST_CASE("an SGD step agrees with its slow twin and with tensor operations", "[train]") {
  at::manual_seed(3);
  for (const SgdOptions& options : all_options()) {
    at::Tensor values = at::randn({37});
    at::Tensor momenta = at::zeros({37});
    at::Tensor other_values = values.clone();
    at::Tensor other_momenta = momenta.clone();
    std::vector<SlowSgd> slow;
    for (int i = 0; i < 37; ++i) slow.push_back({values[i].item<double>()});
    for (int step = 0; step < 6; ++step) {
      const double lr = step < 3 ? 0.1 : 0.02;
      const at::Tensor gradient = at::randn({37});
      sgd_step(options, lr, step == 0, gradient, values, momenta);
      sgd_step_by_operators(options, lr, step == 0, gradient, other_values, other_momenta);
      for (int i = 0; i < 37; ++i) slow[i].step(options, lr, gradient[i].item<double>());
    }
    CHECK(at::allclose(values, other_values, 0, 1e-6));
    CHECK(at::allclose(momenta, other_momenta, 0, 2e-6));
    for (int i = 0; i < 37; ++i)
      CHECK(values[i].item<double>() == Approx(slow[i].value).margin(2e-6));
  }
}

TEST_CASE("a gradient may have any strides", "[train]") {
  const at::Tensor gradient = at::arange(6, at::kFloat).view({3, 2}).t();  // (2, 3)
  const at::Tensor expected = -at::tensor({0.F, 2.F, 4.F, 1.F, 3.F, 5.F});
  at::Tensor values = at::zeros({6});
  at::Tensor momenta;
  sgd_step_by_operators({}, 1.0, true, gradient, values, momenta);
  CHECK(values.equal(expected));

  TensorMap parameters{{"p", at::zeros({2, 3}).requires_grad_(true)}};
  ParameterArena arena(parameters, 1, "net");
  BaseOptimizer optimizer(arena, SgdOptions{});
  parameters.at("p").mutable_grad() = gradient;
  optimizer.step(0, 1.0);
  CHECK(parameters.at("p").detach().flatten().equal(expected));
}

TEST_CASE("an arena shows heads without copying and averages them", "[train]") {
  at::manual_seed(4);
  TensorMap parameters = parameters_of({{3, 5}, {}, {2000}});
  const at::Tensor before = parameters.at("p0").detach().clone();
  {
    ParameterArena arena(parameters, 3, "net");
    CHECK(parameters.at("p0").equal(before));
    CHECK(arena.width() % 16 == 0);
    for (const auto& segment : arena.segments()) CHECK(segment.offset % 16 == 0);
    arena.values().copy_(at::randn_like(arena.values()));
    const at::Tensor heads = arena.values().clone();
    for (int h = 0; h < 3; ++h) {
      arena.show(h);
      CHECK(parameters.at("p0").equal(heads[h].slice(0, 0, 15).view({3, 5})));
      CHECK(parameters.at("p0").data_ptr() == arena.head(h).data_ptr());
      CHECK(parameters.at("p0").requires_grad());
      CHECK(parameters.at("p0").is_leaf());
    }
    arena.show_mean();
    CHECK(at::allclose(parameters.at("p0").detach().flatten(), heads.mean(0).slice(0, 0, 15), 1e-6,
                       1e-6));
    CHECK(arena.values().equal(heads));
    arena.average();
    for (int h = 0; h < 3; ++h) CHECK(at::allclose(arena.head(h), heads.mean(0), 1e-6, 1e-6));
    CHECK(arena.head(0).equal(arena.head(2)));
    arena.show(1);
  }
  CHECK(parameters.at("p0").storage().nbytes() == 15 * sizeof(float));
  CHECK(parameters.at("p0").sizes() == at::IntArrayRef({3, 5}));
}

TEST_CASE("a tied parameter is kept once, a frozen one not at all", "[train]") {
  TensorMap parameters = parameters_of({{4}, {2}});
  parameters.emplace("tied", parameters.at("p0"));
  parameters.emplace("frozen", at::ones({8}));
  ParameterArena arena(parameters, 2, "net");
  CHECK(arena.segments().size() == 2);
  arena.values().fill_(7);
  CHECK(parameters.at("tied").equal(at::full({4}, 7.F)));
  CHECK(parameters.at("frozen").equal(at::ones({8})));

  const auto refused = [](const TensorMap& p) {
    return testing::error_of(ErrorKind::kInput, [&] { ParameterArena(p, 1, "net"); });
  };
  CHECK_THAT(refused({{"w", at::ones({2}, at::kDouble).requires_grad_(true)}}),
             Catch::Contains("w is Double"));
  CHECK_THAT(refused({{"w", at::ones({2})}}), Catch::Contains("no parameter to train"));
}

TEST_CASE("Lookaround with one head is SGD, bit for bit", "[train]") {
  for (const SgdOptions& options : all_options()) {
    for (const std::int64_t k : {1, 3}) {
      at::manual_seed(5);
      TensorMap parameters = parameters_of({{7, 3}, {40}});
      at::Tensor values[2] = {parameters.at("p0").detach().clone().flatten(),
                              parameters.at("p1").detach().clone().flatten()};
      at::Tensor momenta[2] = {at::zeros({21}), at::zeros({40})};
      ParameterArena arena(parameters, 1, "net");
      Lookaround lookaround(arena, options, k);
      for (int step = 0; step < 7; ++step) {
        for (int i = 0; i < 2; ++i) {
          at::Tensor& parameter = parameters.at("p" + std::to_string(i));
          const at::Tensor gradient = at::randn_like(parameter).detach();
          parameter.mutable_grad() = gradient;
          sgd_step(options, 0.1, step == 0, gradient, values[i], momenta[i]);
        }
        lookaround.step(0.1);
        for (int i = 0; i < 2; ++i)
          CHECK(parameters.at("p" + std::to_string(i)).detach().flatten().equal(values[i]));
      }
      lookaround.show_result();
      CHECK(parameters.at("p1").detach().equal(values[1]));
    }
  }
}

TEST_CASE("Lookaround agrees with its slow twin", "[train]") {
  for (const std::int64_t d : {2, 3, 4}) {
    for (const std::int64_t k : {1, 2, 5}) {
      for (const SgdOptions& options : all_options()) {
        at::manual_seed(6);
        TensorMap parameters = parameters_of({{9}});
        at::Tensor& parameter = parameters.at("p0");
        std::vector<std::vector<SlowSgd>> slow(d);
        for (auto& head : slow)
          for (int i = 0; i < 9; ++i) head.push_back({parameter[i].item<double>()});
        ParameterArena arena(parameters, d, "net");
        Lookaround lookaround(arena, options, k);
        for (std::int64_t step = 0; step < 2 * d * k + d + 1; ++step) {
          const auto head = step % d;
          for (int i = 0; i < 9; ++i)
            CHECK(parameter[i].item<double>() == Approx(slow[head][i].value).margin(5e-6));
          const at::Tensor gradient = at::randn({9});
          parameter.mutable_grad() = gradient;
          lookaround.step(0.1);
          for (int i = 0; i < 9; ++i) slow[head][i].step(options, 0.1, gradient[i].item<double>());
          if (head == d - 1 && (step / d + 1) % k == 0) {
            for (int i = 0; i < 9; ++i) {
              double mean = 0;
              for (const auto& h : slow) mean += h[i].value / static_cast<double>(d);
              for (auto& h : slow) h[i].value = mean;
            }
          }
        }
        lookaround.show_result();
        for (int i = 0; i < 9; ++i) {
          double mean = 0;
          for (const auto& h : slow) mean += h[i].value / static_cast<double>(d);
          CHECK(parameter[i].item<double>() == Approx(mean).margin(5e-6));
        }
      }
    }
  }
}

TEST_CASE("a parameter without a gradient stays, and starts its momentum later", "[train]") {
  TensorMap parameters = parameters_of({{3}, {2}});
  const at::Tensor before = parameters.at("p1").detach().clone();
  ParameterArena arena(parameters, 1, "net");
  const SgdOptions options{0.9, 0.5, 0.1, false};
  Lookaround lookaround(arena, options, 1);
  parameters.at("p0").mutable_grad() = at::ones({3});
  lookaround.step(0.1);
  CHECK(parameters.at("p1").detach().equal(before));
  CHECK_FALSE(parameters.at("p0").grad().defined());
  parameters.at("p1").mutable_grad() = at::ones({2});
  lookaround.step(0.1);
  at::Tensor expected = before.clone();
  at::Tensor momenta = at::zeros({2});
  sgd_step(options, 0.1, true, at::ones({2}), expected, momenta);
  CHECK(parameters.at("p1").detach().equal(expected));
}

TEST_CASE("a step is the same on any number of threads and for gradients of any strides",
          "[train]") {
  const int before = at::get_num_threads();
  for (const BaseOptions& options :
       {BaseOptions(SgdOptions{0.9, 0.1, 0.01, false}), BaseOptions(AdamOptions{})}) {
    TensorMap results[2];
    for (const int threads : {1, 3}) {
      at::set_num_threads(threads);
      at::manual_seed(7);
      // Stretches that a thread's part begins and ends inside of, and shorter ones between.
      TensorMap parameters =
          parameters_of({{3 * kArenaGrain / 2 + 5}, {3}, {40, 50}, {1}, {2 * kArenaGrain + 1}});
      ParameterArena arena(parameters, 2, "net");
      BaseOptimizer optimizer(arena, options);
      for (int step = 0; step < 3; ++step) {
        for (auto& [name, parameter] : parameters)
          parameter.mutable_grad() = at::randn(parameter.sizes());
        parameters.at("p2").mutable_grad() = at::randn({50, 40}).t();
        if (step == 1) parameters.at("p1").mutable_grad().reset();
        optimizer.step(1, 0.1);
        for (auto& [name, parameter] : parameters) CHECK_FALSE(parameter.grad().defined());
      }
      TensorMap& result = results[threads == 1 ? 0 : 1];
      for (const auto& [name, tensor] : optimizer.state()) result.emplace(name, tensor);
      result.emplace("values", arena.values());
    }
    for (const auto& [name, tensor] : results[0]) {
      INFO(name);
      CHECK(tensor.equal(results[1].at(name)));
    }
    CHECK_FALSE(results[0].at("values")[0].equal(results[0].at("values")[1]));
  }
  at::set_num_threads(before);
}

TEST_CASE("one pass over all parameters is the step of each by itself", "[train]") {
  at::manual_seed(8);
  TensorMap parameters = parameters_of({{6, 5}, {17}});
  ParameterArena arena(parameters, 1, "net");
  const AdamOptions options{0.8, 0.99, 1e-6, 0.1, true};
  BaseOptimizer optimizer(arena, options);
  TensorMap values, momenta, squares;
  for (const auto& [name, parameter] : parameters) {
    values.emplace(name, parameter.detach().clone().flatten());
    momenta.emplace(name, at::zeros({parameter.numel()}));
    squares.emplace(name, at::zeros({parameter.numel()}));
  }
  for (int step = 1; step <= 4; ++step) {
    for (auto& [name, parameter] : parameters) {
      const at::Tensor gradient =
          name == "p0" ? at::randn({5, 6}).t() : at::randn(parameter.sizes());
      parameter.mutable_grad() = gradient;
      adam_step_by_operators(options, 0.05, step, gradient, values.at(name), momenta.at(name),
                             squares.at(name));
    }
    optimizer.step(0, 0.05);
  }
  for (const auto& [name, parameter] : parameters) {
    INFO(name);
    CHECK(at::allclose(parameter.detach().flatten(), values.at(name), 1e-5, 1e-6));
  }
}

/// Steps each parameter by itself.
class OneByOne {
 public:
  OneByOne(const TensorMap& parameters, std::vector<double> factors, std::vector<BaseOptions> own)
      : factors_(std::move(factors)), own_(std::move(own)) {
    for (const auto& [name, parameter] : parameters) {
      values.push_back(parameter.detach().clone().flatten());
      momenta.push_back(at::zeros_like(values.back()));
      squares.push_back(at::zeros_like(values.back()));
      counts_.push_back(0);
    }
  }

  void step(std::size_t i, const at::Tensor& gradient, double lr) {
    ++counts_[i];
    if (const auto* sgd = std::get_if<SgdOptions>(&own_[i]))
      sgd_step_by_operators(*sgd, lr * factors_[i], counts_[i] == 1, gradient, values[i],
                            momenta[i]);
    else
      adam_step_by_operators(std::get<AdamOptions>(own_[i]), lr * factors_[i], counts_[i], gradient,
                             values[i], momenta[i], squares[i]);
  }

  std::vector<at::Tensor> values, momenta, squares;

 private:
  std::vector<double> factors_;
  std::vector<BaseOptions> own_;
  std::vector<std::int64_t> counts_;
};

TEST_CASE("parameters that are stepped together by operators are stepped as each by itself",
          "[train]") {
  // The first two alike, the third by a rate of its own, the fourth without a gradient once, so
  // that its count is another one from then on; sizes with and without a gap behind them.
  const std::vector<std::vector<std::int64_t>> shapes{{6, 5}, {16}, {3, 3}, {7}, {4, 8}, {2}};
  const std::vector<ParameterSettings> settings{{}, {}, {0.3, {}}, {}, {}, {1, 0.5}};
  const SgdOptions plain{0, 0, 0.02, false};
  const SgdOptions nesterov{0.9, 0, 0.02, true};
  const AdamOptions adam{0.8, 0.99, 1e-6, 0.1, false};
  const AdamOptions adamw{0.8, 0.99, 1e-6, 0.1, true};
  for (const BaseOptions& options :
       {BaseOptions(plain), BaseOptions(nesterov), BaseOptions(adam), BaseOptions(adamw)}) {
    INFO("kind " << options.index());
    at::manual_seed(9);
    TensorMap parameters = parameters_of(shapes);
    ParameterArena arena(parameters, 2, "net");
    TensorMap twins;
    for (const auto& [name, parameter] : parameters)
      twins.emplace(name, parameter.detach().clone().requires_grad_(true));
    ParameterArena fused(twins, 2, "net");
    arena.show(1);
    fused.show(1);
    std::vector<BaseOptions> own(shapes.size(), options);
    std::visit([](auto& last) { last.weight_decay = 0.5; }, own.back());
    OneByOne expected(parameters, {1, 1, 0.3, 1, 1, 1}, own);
    BaseOptimizer together(arena, options);
    BaseOptimizer in_one_pass(fused, options);
    together.set_parameters(settings);
    in_one_pass.set_parameters(settings);
    for (int step = 0; step < 4; ++step) {
      std::size_t i = 0;
      for (auto& [name, parameter] : parameters) {
        const at::Tensor gradient = i == 0 ? at::randn({5, 6}).t() : at::randn(parameter.sizes());
        if (step != 1 || i != 3) {
          parameter.mutable_grad() = gradient.clone();
          twins.at(name).mutable_grad() = gradient.clone();
          expected.step(i, gradient, 0.05);
        }
        ++i;
      }
      together.step_by_operators(1, 0.05);
      in_one_pass.step(1, 0.05);
      for (const auto& [name, parameter] : parameters) CHECK_FALSE(parameter.grad().defined());
    }
    for (std::size_t i = 0; i < shapes.size(); ++i) {
      INFO("parameter " << i);
      CHECK(arena.parameters()[i].detach().flatten().equal(expected.values[i]));
    }
    CHECK(at::allclose(arena.values(), fused.values(), 1e-5, 1e-6));
    const TensorMap state = together.state();
    for (const auto& [name, tensor] : in_one_pass.state()) {
      INFO(name);
      CHECK(at::allclose(tensor, state.at(name), 1e-5, 1e-6));
    }
    CHECK_FALSE(arena.head(0).equal(arena.head(1)));
    // The gaps, behind the first and the fourth, stay zero: else they would grow without end.
    std::vector<at::Tensor> rows{arena.head(1)};
    for (const char* name : {"momenta", "squares"})
      if (state.count(name) > 0) rows.push_back(state.at(name)[1]);
    for (const at::Tensor& row : rows) {
      CHECK(row.narrow(0, 30, 2).equal(at::zeros({2})));
      const auto& fourth = arena.segments()[3];
      CHECK(row.narrow(0, fourth.offset + fourth.numel, 9).equal(at::zeros({9})));
    }
  }
}

}  // namespace
}  // namespace weightsmith
