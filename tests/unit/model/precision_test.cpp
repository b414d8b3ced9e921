#include "weightsmith/model/precision.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "support/networks.h"
#include "weightsmith/model/builtin.h"
#include "weightsmith/model/script_model.h"

namespace weightsmith {
namespace {

TEST_CASE("a scope of bfloat16 computes a network in it and ends", "[precision]") {
  at::manual_seed(1);
  ScriptModel model(build_builtin("convnet", {{"width", 4}}, 1), "convnet");
  const at::Tensor x = at::randn({4, 1, 8, 8});
  const at::Tensor exact = model.forward(x);
  for (int run = 0; run < 3; ++run) {  // executors that were made in one mode are kept
    at::Tensor half;
    {
      const AutocastScope autocast(Precision::kBFloat16, at::kCPU);
      half = model.forward(x);
    }
    CHECK(half.scalar_type() == at::kBFloat16);
    CHECK(at::allclose(half.to(at::kFloat), exact, 0.05, 0.02));
    half.sum().backward();
    CHECK(model.forward(x).equal(exact));
  }
  for (const auto& [name, parameter] : model.parameters()) {
    INFO(name);
    CHECK(parameter.grad().scalar_type() == at::kFloat);
  }
  const AutocastScope none(Precision::kFloat32, at::kCPU);
  CHECK(model.forward(x).equal(exact));
}

TEST_CASE("every kind of layer is trained in bfloat16", "[precision]") {
  const auto trains = [](ScriptModel model, const at::Tensor& x) {
    model.train(true);
    const at::Tensor exact = model.forward(x).detach();
    at::Tensor half;
    {
      const AutocastScope autocast(Precision::kBFloat16, at::kCPU);
      half = model.forward(x);
    }
    CHECK(half.scalar_type() == at::kBFloat16);
    CHECK(((half - exact).norm() <= 0.1 * exact.norm() + 1e-6).item<bool>());
    half.sum().backward();
    for (const auto& [name, parameter] : model.parameters()) {
      INFO(name);
      CHECK(parameter.grad().defined());
    }
  };
  at::manual_seed(3);
  const at::Tensor images = at::randn({8, 3, 16, 16});
  for (const char* norm : {"batch", "group", "none"}) {
    INFO(norm);
    trains(ScriptModel(build_builtin("resnet20", {{"depth", 8}, {"norm", norm}}, 1), "net"),
           images);
  }
  trains(ScriptModel(build_builtin("vit", {{"image", 16}, {"depth", 2}}, 1), "vit"), images);
  trains(ScriptModel(build_builtin("mlp", {{"inputs", 768}}, 1), "mlp"), images);
  // As tracing writes a convolution.
  ScriptModel traced(
      testing::make_network({{"weight", {4, 3, 3, 3}}},
                            "return torch._convolution(x, self.weight, None, [1, 1], [1, 1], "
                            "[1, 1], False, [0, 0], 1, False, False, True, True)"),
      "traced");
  for (const auto& [name, parameter] : traced.parameters()) parameter.set_requires_grad(true);
  traced.module().register_attribute("training", c10::BoolType::get(), false);
  trains(traced, images);
}

TEST_CASE("weights that change in place between scopes are seen", "[precision]") {
  at::manual_seed(2);
  at::Tensor weight = at::randn({3, 3}).requires_grad_(true);
  const at::Tensor x = at::eye(3);
  const auto product = [&] {
    const AutocastScope autocast(Precision::kBFloat16, at::kCPU);
    return at::mm(x, weight).to(at::kFloat).detach();
  };
  const at::Tensor before = product();
  {
    const at::NoGradGuard no_grad;
    weight.mul_(2);
  }
  CHECK(product().equal(2 * before));
  weight.set_data(4 * weight.detach());
  CHECK(product().equal(8 * before));
}

TEST_CASE("scopes of precision nest", "[precision]") {
  const at::Tensor x = at::randn({2, 2});
  const auto type = [&] { return at::mm(x, x).scalar_type(); };
  {
    const AutocastScope outer(Precision::kBFloat16, at::kCPU);
    {
      const AutocastScope inner(Precision::kBFloat16, at::kCPU);
      CHECK(type() == at::kBFloat16);
    }
    CHECK(type() == at::kBFloat16);
  }
  CHECK(type() == at::kFloat);
}

}  // namespace
}  // namespace weightsmith
