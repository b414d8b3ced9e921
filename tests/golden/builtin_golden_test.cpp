// The networks that torchvision has as well (scripts/network_goldens.py): names, shapes, outputs.

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <nlohmann/json.hpp>

#include "support/builtin_cases.h"
#include "support/golden.h"
#include "weightsmith/core/atomic_file.h"
#include "weightsmith/model/builtin.h"

namespace weightsmith {
namespace {

at::Tensor wave(at::IntArrayRef shape, double phase) {
  const std::int64_t count = c10::multiply_integers(shape);
  return (at::arange(count, at::kDouble) * 0.37 + 1.3 * phase).sin().view(shape);
}

/// The weights of scripts/network_goldens.py; a TensorMap is in the order of names.
void fill(const TensorMap& state) {
  int phase = 0;
  for (const auto& [name, tensor] : state) {
    at::Tensor values = wave(tensor.sizes(), phase++);
    if (name.ends_with("num_batches_tracked")) continue;
    if (tensor.dim() > 1) {
      values = values * (1.5 / std::sqrt(static_cast<double>(tensor.numel() / tensor.size(0))));
    } else if (name.ends_with("weight") || name.ends_with("running_var")) {
      values = values * 0.5 + 1;
    } else {
      values = values * 0.1;
    }
    tensor.copy_(values);
  }
}

TEST_CASE("networks that torchvision has compute the same under the same names", "[golden]") {
  const at::NoGradGuard no_grad;
  const auto golden =
      nlohmann::json::parse(read_text(testing::golden("networks/forward.json")))["networks"];
  CHECK(golden.size() == 4);
  for (const auto& expected : golden) {
    const std::string name = expected["builtin"];
    INFO(name);
    torch::jit::Module module = build_builtin(name, expected["options"], 0);
    const TensorMap state = testing::state_of(module);
    CHECK(state.size() == expected["state"].size());
    for (const auto& [key, shape] : expected["state"].items()) {
      INFO(key);
      REQUIRE(state.count(key) == 1);
      CHECK(state.at(key).sizes().vec() == shape.get<std::vector<std::int64_t>>());
    }
    std::int64_t parameters = 0;
    for (const auto& p : module.parameters()) parameters += p.numel();
    CHECK(parameters == expected["parameters"].get<std::int64_t>());

    fill(state);
    const auto shape = expected["input"].get<std::vector<std::int64_t>>();
    const at::Tensor outputs = module.forward({wave(shape, 0.5).to(at::kFloat)}).toTensor();
    for (std::int64_t row = 0; row < 2; ++row) {
      const auto values = expected["outputs"][row].get<std::vector<double>>();
      const at::Tensor theirs = at::tensor(values, at::kFloat);
      const at::Tensor ours = outputs[row].slice(0, 0, theirs.size(0));
      CHECK(at::allclose(ours, theirs, 1e-3, 1e-3 * theirs.abs().max().item<double>()));
    }
  }
}

TEST_CASE("the deep networks have as many tensors as torchvision's", "[golden]") {
  for (const auto& [name, tensors] : {std::pair<const char*, std::size_t>{"resnet18", 122},
                                      {"resnet34", 218},
                                      {"resnet50", 320},
                                      {"resnet101", 626},
                                      {"resnet152", 932},
                                      {"resnext50", 320}}) {
    INFO(name);
    CHECK(testing::state_of(build_builtin(name, {{"width", 0.0625}}, 0)).size() == tensors);
  }
}

}  // namespace
}  // namespace weightsmith
