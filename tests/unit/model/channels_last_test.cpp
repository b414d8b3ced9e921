#include "weightsmith/model/channels_last.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "support/networks.h"
#include "weightsmith/model/builtin.h"

namespace weightsmith {
namespace {

const testing::Shapes kKernel{{"weight", {6, 3, 3, 3}}};

ScriptModel convolutional(const std::string& forward) {
  ScriptModel model(testing::make_network(kKernel, forward), "net");
  for (const auto& [name, parameter] : model.parameters()) parameter.set_requires_grad(true);
  return model;
}

TEST_CASE("a convolutional network takes images with channels innermost, and is left alone",
          "[channels_last]") {
  at::manual_seed(1);
  ScriptModel model(build_builtin("convnet", {{"channels", 3}, {"width", 4}}, 1), "convnet");
  TensorMap before;
  for (const auto& [name, tensor] : model.state_dict()) before.emplace(name, tensor.clone());
  CHECK(takes_channels_last(model, at::randn({4, 3, 8, 8})));
  for (const auto& [name, tensor] : model.state_dict()) {
    INFO(name);
    CHECK(tensor.equal(before.at(name)));
    CHECK_FALSE(tensor.grad().defined());
  }
  CHECK(model.module().is_training());
}

TEST_CASE("networks that look at how activations lie in memory keep channels outermost",
          "[channels_last]") {
  at::manual_seed(2);
  const at::Tensor x = at::randn({2, 3, 4, 4});
  const std::string convolve =
      "y = torch.conv2d(x, self.weight, None, [1, 1], [1, 1], [1, 1], 1)\n";
  ScriptModel reshaping = convolutional(convolve + "return y.reshape([x.size(0), -1])");
  CHECK(takes_channels_last(reshaping, x));
  // A view of all values of a sample in a row is refused.
  ScriptModel viewing = convolutional(convolve + "return y.view([x.size(0), -1])");
  CHECK_FALSE(takes_channels_last(viewing, x));
  // This one computes something else without a word.
  ScriptModel striding = convolutional(convolve + "return torch.as_strided(y, [2, 96], [96, 1])");
  CHECK_FALSE(takes_channels_last(striding, x));
  // In training alone.
  torch::jit::Module module = testing::make_network(kKernel, "return x");
  module.register_attribute("training", c10::BoolType::get(), false);
  module.define("def apply(self, x):\n    " + convolve +
                "    if self.training:\n        return y.view([x.size(0), -1])\n"
                "    return y.reshape([x.size(0), -1])\n");
  torch::jit::Module outer("Outer");
  outer.register_module("net", module);
  outer.register_attribute("training", c10::BoolType::get(), false);
  outer.define("def forward(self, x):\n    return self.net.apply(x)\n");
  ScriptModel training(outer, "net");
  CHECK_FALSE(takes_channels_last(training, x));
}

TEST_CASE("what has no channels to move is left as it is", "[channels_last]") {
  ScriptModel grey(build_builtin("convnet", {{"width", 4}}, 1), "convnet");
  CHECK_FALSE(takes_channels_last(grey, at::randn({4, 1, 8, 8})));
  ScriptModel mlp(build_builtin("mlp", {{"inputs", 12}}, 1), "mlp");
  CHECK_FALSE(takes_channels_last(mlp, at::randn({4, 12})));
  // A network that refuses the images altogether says so when it is run.
  ScriptModel coloured(build_builtin("convnet", {{"channels", 3}}, 1), "convnet");
  CHECK_FALSE(takes_channels_last(coloured, at::randn({4, 2, 8, 8})));
}

}  // namespace
}  // namespace weightsmith
