#pragma once

#include <ATen/ATen.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/jit/api/module.h>

#include <cmath>
#include <cstdint>
#include <map>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace weightsmith::testing {

/// Parameters of a small network by qualified name, with their shapes. Running statistics become
/// buffers.
using Shapes = std::vector<std::pair<std::string, std::vector<std::int64_t>>>;
using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

/// A network with these parameters (random), further buffers, and a forward in TorchScript: either
/// whole ("def forward(self, x, y): ...") or the statements of one that takes `x`. A dot in a name
/// makes a submodule.
inline torch::jit::Module make_network(const Shapes& parameters, const std::string& forward,
                                       const NamedTensors& buffers = {}) {
  torch::jit::Module net("Net");
  std::map<std::string, torch::jit::Module> children;
  std::vector<std::string> order;
  const auto owner = [&](std::string& name) -> torch::jit::Module& {
    const std::size_t dot = name.find('.');
    if (dot == std::string::npos) return net;
    const std::string child = name.substr(0, dot);
    name = name.substr(dot + 1);
    const auto [it, is_new] = children.emplace(child, torch::jit::Module("Part_" + child));
    if (is_new) order.push_back(child);
    return it->second;
  };
  for (const auto& [full, shape] : parameters) {
    std::string name = full;
    torch::jit::Module& module = owner(name);
    if (name == "running_var") {
      module.register_buffer(name, at::rand(shape) + 0.5);
    } else if (name == "running_mean") {
      module.register_buffer(name, at::randn(shape));
    } else {
      double fan_in = 1;
      for (std::size_t d = 1; d < shape.size(); ++d) fan_in *= static_cast<double>(shape[d]);
      module.register_parameter(name, at::randn(shape) * (1.5 / std::sqrt(fan_in)), false);
    }
  }
  for (const auto& [full, tensor] : buffers) {
    std::string name = full;
    owner(name).register_buffer(name, tensor);
  }
  for (const std::string& child : order) net.register_module(child, children.at(child));
  std::string source = forward;
  if (!source.starts_with("def ")) {
    std::istringstream lines(forward);
    source = "def forward(self, x):\n";
    for (std::string line; std::getline(lines, line);) source += "    " + line + "\n";
  }
  net.define(source);
  net.eval();
  return net;
}

}  // namespace weightsmith::testing
