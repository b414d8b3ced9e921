#pragma once

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/jit/api/module.h>

#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "weightsmith/tensor/tensor_map.h"

namespace weightsmith::testing {

/// A builtin with options that keep it small, and the shape of an input.
struct BuiltinCase {
  std::string name;
  nlohmann::json options;
  std::vector<std::int64_t> input;

  std::string describe() const { return name + " " + options.dump(); }
};

/// Every builtin whose groups are written down, with every norm.
inline std::vector<BuiltinCase> builtin_cases() {
  std::vector<BuiltinCase> cases{
      {"mlp", {{"inputs", 12}, {"hidden", {9, 7}}, {"outputs", 5}}, {3, 3, 4}},
      {"mlp", {{"inputs", 6}, {"hidden", nlohmann::json::array()}, {"outputs", 4}}, {3, 6}}};
  for (const char* norm : {"batch", "group", "none"}) {
    cases.push_back({"convnet", {{"width", 6}, {"norm", norm}, {"groups", 3}}, {3, 1, 8, 8}});
    cases.push_back(
        {"resnet20", {{"depth", 14}, {"width", 0.5}, {"norm", norm}, {"groups", 4}}, {3, 3, 8, 8}});
    cases.push_back({"vgg11", {{"width", 0.125}, {"norm", norm}, {"groups", 4}}, {3, 3, 8, 8}});
  }
  cases.push_back({"resnet20", {{"width", 0.25}}, {3, 3, 16, 16}});
  for (const char* name : {"vgg13", "vgg16", "vgg19"})
    cases.push_back({name, {{"width", 0.0625}}, {3, 3, 8, 8}});
  return cases;
}

/// The builtins whose groups are derived from their graph.
inline std::vector<BuiltinCase> derived_builtin_cases() {
  std::vector<BuiltinCase> cases;
  for (const char* norm : {"batch", "group", "none"})
    for (const char* name : {"resnet18", "resnet50", "resnext50"})
      cases.push_back(
          {name, {{"width", 0.125}, {"norm", norm}, {"groups", 4}, {"outputs", 6}}, {3, 3, 8, 8}});
  cases.push_back({"resnet34", {{"width", 0.0625}, {"stem", "imagenet"}}, {3, 3, 32, 32}});
  cases.push_back(
      {"vit",
       {{"image", 8}, {"patch", 2}, {"dim", 12}, {"depth", 2}, {"heads", 3}, {"mlp", 20}},
       {3, 3, 8, 8}});
  return cases;
}

inline std::vector<BuiltinCase> all_builtin_cases() {
  std::vector<BuiltinCase> cases = builtin_cases();
  for (BuiltinCase& c : derived_builtin_cases()) cases.push_back(std::move(c));
  return cases;
}

/// Parameters and buffers by qualified name, sharing storage with the module.
inline TensorMap state_of(const torch::jit::Module& module) {
  TensorMap state;
  for (const auto& item : module.named_parameters()) state[item.name] = item.value;
  for (const auto& item : module.named_buffers()) state[item.name] = item.value;
  return state;
}

/// Random values in every parameter and running statistic, so that no two units are alike; floating
/// tensors become double.
inline void randomise_in_double(const torch::jit::Module& module) {
  at::NoGradGuard no_grad;
  for (auto& [name, tensor] : state_of(module)) {
    if (!tensor.is_floating_point()) continue;
    const bool requires_grad = tensor.requires_grad();
    const double scale = tensor.dim() > 1 ? 2.0 / std::sqrt(tensor.numel() / tensor.size(0)) : 1.0;
    at::Tensor value = at::randn(tensor.sizes(), at::kDouble) * scale;
    if (name.ends_with("running_var")) value = at::rand(tensor.sizes(), at::kDouble) + 0.5;
    at::Tensor target = tensor;
    target.set_data(value);
    target.set_requires_grad(requires_grad);
  }
}

}  // namespace weightsmith::testing
