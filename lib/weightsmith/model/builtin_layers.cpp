#include "weightsmith/model/builtin_layers.h"

#include <ATen/Functions.h>
#include <spdlog/fmt/fmt.h>

#include <cmath>

#include "weightsmith/core/error.h"

namespace weightsmith {
namespace {

constexpr std::uint64_t kInitialisationStream = 0x696e6974;  // "init"

template <class Draw>
at::Tensor filled(at::IntArrayRef shape, Draw draw) {
  at::Tensor tensor = at::empty(shape, at::kFloat);
  float* values = tensor.data_ptr<float>();
  for (std::int64_t i = 0; i < tensor.numel(); ++i) values[i] = static_cast<float>(draw());
  return tensor;
}

void add_parameter(torch::jit::Module& module, const std::string& name, at::Tensor value) {
  module.register_parameter(name, value.set_requires_grad(true), /*is_buffer=*/false);
}

}  // namespace

LayerFactory::LayerFactory(std::uint64_t seed)
    : unit_(std::make_shared<torch::jit::CompilationUnit>()), seed_(seed) {}

Rng LayerFactory::next_stream() { return Rng(seed_, {kInitialisationStream, streams_++}); }

torch::jit::Module LayerFactory::empty(const std::string& class_name) {
  torch::jit::Module module("__torch__.weightsmith." + class_name, unit_, /*shouldMangle=*/true);
  // Without this attribute train() and eval() would skip the module.
  module.register_attribute("training", c10::BoolType::get(), true);
  return module;
}

void LayerFactory::define(torch::jit::Module& module, const std::vector<std::string>& forward) {
  std::string source = "def forward(self, x: Tensor) -> Tensor:\n";
  for (const std::string& line : forward) source += "    " + line + "\n";
  module.define(source);
}

torch::jit::Module LayerFactory::conv2d(std::int64_t in, std::int64_t out, std::int64_t kernel,
                                        std::int64_t stride, bool bias, double gain) {
  WS_CHECK(kernel % 2 == 1);
  torch::jit::Module module = empty("Conv2d");
  const double deviation = gain * std::sqrt(2.0 / static_cast<double>(out * kernel * kernel));
  Rng rng = next_stream();
  add_parameter(module, "weight",
                filled({out, in, kernel, kernel}, [&] { return deviation * rng.normal(); }));
  if (bias) add_parameter(module, "bias", at::zeros({out}));
  define(module, {fmt::format("return torch.conv2d(x, self.weight, {}, [{s}, {s}], [{p}, {p}], "
                              "[1, 1], 1)",
                              bias ? "self.bias" : "None", fmt::arg("s", stride),
                              fmt::arg("p", kernel / 2))});
  return module;
}

torch::jit::Module LayerFactory::linear(std::int64_t in, std::int64_t out, LinearInit init) {
  torch::jit::Module module = empty("Linear");
  const double bound = 1.0 / std::sqrt(static_cast<double>(in));
  Rng weight = next_stream();
  Rng bias = next_stream();
  if (init == LinearInit::kUniform) {
    add_parameter(module, "weight",
                  filled({out, in}, [&] { return weight.uniform(-bound, bound); }));
    add_parameter(module, "bias", filled({out}, [&] { return bias.uniform(-bound, bound); }));
  } else {
    add_parameter(module, "weight", filled({out, in}, [&] { return 0.01 * weight.normal(); }));
    add_parameter(module, "bias", at::zeros({out}));
  }
  define(module, {"return torch.linear(x, self.weight, self.bias)"});
  return module;
}

torch::jit::Module LayerFactory::norm(const ConvOptions& options, std::int64_t features) {
  WS_CHECK(options.norm != Norm::kNone);
  const bool batch = options.norm == Norm::kBatch;
  torch::jit::Module module = empty(batch ? "BatchNorm2d" : "GroupNorm");
  add_parameter(module, "weight", at::ones({features}));
  add_parameter(module, "bias", at::zeros({features}));
  if (batch) {
    module.register_buffer("running_mean", at::zeros({features}));
    module.register_buffer("running_var", at::ones({features}));
    module.register_buffer("num_batches_tracked", at::zeros({}, at::kLong));
    define(module, {"if self.training:", "    self.num_batches_tracked.add_(1)",
                    "return torch.batch_norm(x, self.weight, self.bias, self.running_mean, "
                    "self.running_var, self.training, 0.1, 1e-05, True)"});
  } else {
    define(module,
           {fmt::format("return torch.group_norm(x, {}, self.weight, self.bias, 1e-05, True)",
                        options.norm_groups(features))});
  }
  return module;
}

torch::jit::Module LayerFactory::relu() {
  torch::jit::Module module = empty("ReLU");
  define(module, {"return torch.relu_(x)"});
  return module;
}

torch::jit::Module LayerFactory::max_pool() {
  torch::jit::Module module = empty("MaxPool2d");
  define(module, {"return torch.max_pool2d(x, [2, 2], [2, 2], [0, 0], [1, 1], True)"});
  return module;
}

torch::jit::Module LayerFactory::compose(const std::string& class_name, const Children& children,
                                         const std::vector<std::string>& forward) {
  torch::jit::Module module = empty(class_name);
  std::vector<std::string> lines;
  for (const auto& [name, child] : children) {
    module.register_module(name, child);
    // getattr, because a number is no attribute name in TorchScript.
    lines.push_back(fmt::format("x = getattr(self, \"{}\").forward(x)", name));
  }
  lines.emplace_back("return x");
  define(module, forward.empty() ? lines : forward);
  return module;
}

torch::jit::Module LayerFactory::sequential(const std::vector<torch::jit::Module>& children) {
  Children named;
  for (const torch::jit::Module& child : children)
    named.emplace_back(std::to_string(named.size()), child);
  return compose("Sequential", named);
}

}  // namespace weightsmith
