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
                                        std::int64_t stride, bool bias, double gain,
                                        std::int64_t groups) {
  WS_CHECK(kernel % 2 == 1 && in % groups == 0 && out % groups == 0);
  torch::jit::Module module = empty("Conv2d");
  const double deviation = gain * std::sqrt(2.0 / static_cast<double>(out * kernel * kernel));
  add_parameter(module, "weight", normal({out, in / groups, kernel, kernel}, deviation));
  if (bias) add_parameter(module, "bias", at::zeros({out}));
  define(module, {fmt::format("return torch.conv2d(x, self.weight, {}, [{s}, {s}], [{p}, {p}], "
                              "[1, 1], {g})",
                              bias ? "self.bias" : "None", fmt::arg("s", stride),
                              fmt::arg("p", kernel / 2), fmt::arg("g", groups))});
  return module;
}

torch::jit::Module LayerFactory::patches(std::int64_t in, std::int64_t out, std::int64_t side) {
  torch::jit::Module module = empty("Conv2d");
  add_parameter(
      module, "weight",
      normal({out, in, side, side}, 1 / std::sqrt(static_cast<double>(in * side * side))));
  add_parameter(module, "bias", at::zeros({out}));
  define(module, {fmt::format("return torch.conv2d(x, self.weight, self.bias, [{0}, {0}], [0, 0], "
                              "[1, 1], 1)",
                              side)});
  return module;
}

at::Tensor LayerFactory::normal(const std::vector<std::int64_t>& shape, double deviation) {
  Rng rng = next_stream();
  return filled(shape, [&] { return deviation * rng.normal(); });
}

torch::jit::Module LayerFactory::linear(std::int64_t in, std::int64_t out, LinearInit init) {
  torch::jit::Module module = empty("Linear");
  const double bound = 1.0 / std::sqrt(static_cast<double>(in));
  Rng weight = next_stream();
  Rng bias = next_stream();
  const auto uniform = [&](double limit) {
    add_parameter(module, "weight",
                  filled({out, in}, [&] { return weight.uniform(-limit, limit); }));
  };
  switch (init) {
    case LinearInit::kUniform:
      uniform(bound);
      add_parameter(module, "bias", filled({out}, [&] { return bias.uniform(-bound, bound); }));
      break;
    case LinearInit::kSmall:
      add_parameter(module, "weight", filled({out, in}, [&] { return 0.01 * weight.normal(); }));
      add_parameter(module, "bias", at::zeros({out}));
      break;
    case LinearInit::kXavier:
      uniform(std::sqrt(6.0 / static_cast<double>(in + out)));
      add_parameter(module, "bias", filled({out}, [&] { return 1e-6 * bias.normal(); }));
      break;
    case LinearInit::kNoBias:
      uniform(bound);
      add_parameter(module, "bias", at::zeros({out}));
      break;
    case LinearInit::kZero:
      add_parameter(module, "weight", at::zeros({out, in}));
      add_parameter(module, "bias", at::zeros({out}));
      break;
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

torch::jit::Module LayerFactory::layer_norm(std::int64_t features) {
  torch::jit::Module module = empty("LayerNorm");
  add_parameter(module, "weight", at::ones({features}));
  add_parameter(module, "bias", at::zeros({features}));
  define(module,
         {fmt::format("return torch.layer_norm(x, [{}], self.weight, self.bias, 1e-06, True)",
                      features)});
  return module;
}

torch::jit::Module LayerFactory::self_attention(std::int64_t features, std::int64_t heads) {
  WS_CHECK(features % heads == 0);
  const std::int64_t size = features / heads;
  Rng rng = next_stream();
  const double bound = std::sqrt(6.0 / static_cast<double>(4 * features));  // Xavier, of 3 in one
  const std::string to_heads = fmt::format(".view(b, n, {}, {}).transpose(1, 2)", heads, size);
  return compose(
      "MultiheadAttention", {{"out_proj", linear(features, features, LinearInit::kNoBias)}},
      {"b = x.size(0)", "n = x.size(1)",
       "q, k, v = torch.chunk(torch.linear(x, self.in_proj_weight, self.in_proj_bias), 3, 2)",
       "q = q" + to_heads, "k = k" + to_heads, "v = v" + to_heads,  // (B, heads, N, size)
       fmt::format("w = torch.softmax(torch.matmul(q, k.transpose(2, 3)) * {}, 3)",
                   1 / std::sqrt(static_cast<double>(size))),
       fmt::format("y = torch.matmul(w, v).transpose(1, 2).reshape(b, n, {})", features),
       "return self.out_proj.forward(y)"},
      {{"in_proj_weight",
        filled({3 * features, features}, [&] { return rng.uniform(-bound, bound); })},
       {"in_proj_bias", at::zeros({3 * features})}});
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
                                         const std::vector<std::string>& forward,
                                         const Parameters& parameters) {
  torch::jit::Module module = empty(class_name);
  for (const auto& [name, value] : parameters) add_parameter(module, name, value);
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
