// A faster network beside the plain one: outputs and fields.
#include "weightsmith/model/fast_network.h"

#include <ATen/ATen.h>
#include <torch/csrc/jit/ir/ir.h>

#include <catch2/catch.hpp>

#include "support/expect_error.h"
#include "support/networks.h"
#include "weightsmith/distance/gradient_field.h"

namespace weightsmith {
namespace {

at::Tensor ref_input(const std::string& builtin) {
  if (builtin == "resnet20") return at::randn({3, 3, 16, 16});
  return at::randn({3, 1, 8, 8});
}

ScriptModel lively(const std::string& builtin) {
  ModelRef ref;
  ref.builtin = builtin;
  ref.preprocess = Preprocess{};
  ref.preprocess->mean = {0.3};
  ref.preprocess->std = {0.5};
  ScriptModel model = ScriptModel::load(ref, {});
  // Statistics as training leaves them, not 0 and 1.
  at::manual_seed(4);
  const at::NoGradGuard no_grad;
  for (auto& [name, tensor] : model.state_dict()) {
    if (name.ends_with("running_mean")) tensor.copy_(at::randn_like(tensor) * 0.3);
    if (name.ends_with("running_var")) tensor.copy_(at::rand_like(tensor) + 0.5);
    if (name.starts_with("bn") && name.ends_with("weight"))
      tensor.copy_(at::rand_like(tensor) + 0.5);
  }
  return model;
}

TEST_CASE("a faster network computes the same fields", "[distance]") {
  for (const char* name : {"resnet20", "convnet", "mlp"}) {
    ScriptModel plain = lively(name);
    at::manual_seed(6);
    const at::Tensor x = ref_input(name);
    const TensorMap before = plain.clone().state_dict();
    FieldOptions options;
    options.steps = 4;
    for (const bool channels_last : {false, true}) {
      ScriptModel fast = fast_network(plain, {channels_last, false});
      CHECK(at::allclose(fast.forward(x), plain.forward(x), 1e-4, 1e-5));
      const FieldInputs inputs{x, at::zeros_like(x), {}};
      const at::Tensor exact = GradientField(plain, options).compute(inputs).field;
      const at::Tensor found = GradientField(fast, options, 3).compute(inputs).field;
      CHECK(((found - exact).norm() / exact.norm()).item<double>() < 1e-4);
    }
    // The plain network is as it was.
    for (const auto& [key, value] : plain.state_dict()) {
      CHECK(at::equal(value, before.at(key)));
      CHECK(value.is_contiguous());
    }
    // bfloat16 has 8 bits: near, not equal, and float32 again at the end.
    ScriptModel half = fast_network(plain, {true, true});
    const at::Tensor exact = plain.forward(x), found = half.forward(x);
    CHECK(found.scalar_type() == at::kFloat);
    const double error = ((found - exact).norm() / exact.norm()).item<double>();
    CHECK(error > 1e-5);
    CHECK(error < 0.1);
  }
}

TEST_CASE("folding happens, and only in eval mode's sense", "[distance]") {
  ScriptModel plain = lively("convnet");
  ScriptModel fast = fast_network(plain);
  CHECK(fast.parameters().empty());
  const std::string graph =
      fast.module().attr("network").toModule().get_method("forward").graph()->toString();
  CHECK(graph.find("aten::conv2d") != std::string::npos);
  CHECK(graph.find("aten::batch_norm") == std::string::npos);
}

TEST_CASE("gradients of GELU are those of the plain network", "[distance]") {
  at::manual_seed(2);
  ScriptModel plain(
      testing::make_network({{"a", {8, 1, 3, 3}}, {"b", {8, 8, 3, 3}}, {"w", {10, 128}}},
                            "y = torch.gelu(torch.conv2d(x, self.a, padding=1))\n"
                            "y = torch.gelu(torch.conv2d(y, self.b, stride=2, padding=1))\n"
                            "return torch.matmul(y.flatten(1), self.w.t())"),
      "gelu.pt");
  const at::Tensor x = at::rand({8, 1, 8, 8});
  const FieldInputs inputs{x, at::zeros_like(x), {}};
  FieldOptions options;
  options.steps = 4;
  ScriptModel fast = fast_network(plain);  // whose batches are of 25 and of 7 points
  const at::Tensor exact = GradientField(plain, options).compute(inputs).field;
  const at::Tensor found = GradientField(fast, options).compute(inputs).field;
  CHECK(((found - exact).norm() / exact.norm()).item<double>() < 1e-5);
}

TEST_CASE("a network that keeps gradients from passing is not frozen", "[distance]") {
  // Freezing drops the detach, and half of the classes would get a gradient.
  const std::string half =
      "y = torch.matmul(x.flatten(1), self.w.t())\n"
      "return torch.cat([y[:, :2].detach(), y[:, 2:]], 1)";
  const ScriptModel plain(testing::make_network({{"w", {4, 9}}}, half), "half.pt");
  testing::expect_error(ErrorKind::kInput, {"half.pt", "detach"}, [&] { fast_network(plain); });
}

}  // namespace
}  // namespace weightsmith
