#include "weightsmith/model/builtin.h"

#include <spdlog/fmt/fmt.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "weightsmith/model/builtin_layers.h"
#include "weightsmith/model/builtin_options.h"

namespace weightsmith {
namespace {

using torch::jit::Module;

Module mlp(LayerFactory& make, const MlpOptions& o) {
  LayerFactory::Children layers;
  std::vector<std::string> forward{"x = torch.flatten(x, 1)"};
  std::int64_t in = o.inputs;
  for (std::size_t i = 0; i <= o.hidden.size(); ++i) {
    const bool last = i == o.hidden.size();
    const std::int64_t out = last ? o.outputs : o.hidden[i];
    const std::string name = fmt::format("fc{}", i + 1);
    layers.emplace_back(name, make.linear(in, out, LinearInit::kUniform));
    forward.push_back(last ? fmt::format("return self.{}.forward(x)", name)
                           : fmt::format("x = torch.relu_(self.{}.forward(x))", name));
    in = out;
  }
  return make.compose("MLP", layers, forward);
}

Module convnet(LayerFactory& make, const ConvNetOptions& o) {
  LayerFactory::Children layers;
  std::vector<std::string> forward;
  std::int64_t in = o.channels;
  for (std::size_t i = 0; i < 4; ++i) {
    const std::int64_t out = o.features()[i];
    layers.emplace_back(fmt::format("conv{}", i + 1),
                        make.conv2d(in, out, 3, i % 2 == 0 ? 1 : 2, o.has_bias()));
    forward.push_back(fmt::format("x = self.conv{}.forward(x)", i + 1));
    if (o.norm != Norm::kNone) {
      layers.emplace_back(fmt::format("bn{}", i + 1), make.norm(o, out));
      forward.push_back(fmt::format("x = self.bn{}.forward(x)", i + 1));
    }
    forward.emplace_back("x = torch.relu_(x)");
    in = out;
  }
  layers.emplace_back("fc", make.linear(in, o.outputs, LinearInit::kUniform));
  forward.emplace_back("x = torch.flatten(torch.adaptive_avg_pool2d(x, [1, 1]), 1)");
  forward.emplace_back("return self.fc.forward(x)");
  return make.compose("ConvNet", layers, forward);
}

Module basic_block(LayerFactory& make, const ResNetOptions& o, std::int64_t in, std::int64_t out,
                   std::int64_t stride) {
  const bool norm = o.norm != Norm::kNone;
  // Without a norm each residual sum would double the variance; shrinking the branches keeps it
  // within a factor of e at any depth (Zhang, Dauphin, Ma, "Fixup initialization", ICLR 2019,
  // has the same exponent).
  const double gain = norm ? 1.0 : 1.0 / std::sqrt(3.0 * static_cast<double>(o.blocks()));
  LayerFactory::Children layers;
  std::vector<std::string> forward;
  layers.emplace_back("conv1", make.conv2d(in, out, 3, stride, o.has_bias()));
  forward.emplace_back("y = self.conv1.forward(x)");
  if (norm) {
    layers.emplace_back("bn1", make.norm(o, out));
    forward.emplace_back("y = self.bn1.forward(y)");
  }
  forward.emplace_back("y = torch.relu_(y)");
  layers.emplace_back("conv2", make.conv2d(out, out, 3, 1, o.has_bias(), gain));
  forward.emplace_back("y = self.conv2.forward(y)");
  if (norm) {
    layers.emplace_back("bn2", make.norm(o, out));
    forward.emplace_back("y = self.bn2.forward(y)");
  }
  if (in != out || stride != 1) {
    std::vector<Module> shortcut{make.conv2d(in, out, 1, stride, o.has_bias())};
    if (norm) shortcut.push_back(make.norm(o, out));
    layers.emplace_back("downsample", make.sequential(shortcut));
    forward.emplace_back("x = self.downsample.forward(x)");
  }
  forward.emplace_back("return torch.relu_(y.add_(x))");
  return make.compose("BasicBlock", layers, forward);
}

Module resnet(LayerFactory& make, const ResNetOptions& o) {
  LayerFactory::Children layers;
  std::vector<std::string> forward{"x = self.conv1.forward(x)"};
  std::int64_t in = o.features(0);
  layers.emplace_back("conv1", make.conv2d(o.channels, in, 3, 1, o.has_bias()));
  if (o.norm != Norm::kNone) {
    layers.emplace_back("bn1", make.norm(o, in));
    forward.emplace_back("x = self.bn1.forward(x)");
  }
  forward.emplace_back("x = torch.relu_(x)");
  for (std::int64_t stage = 0; stage < 3; ++stage) {
    const std::int64_t out = o.features(stage);
    std::vector<Module> blocks;
    for (std::int64_t i = 0; i < o.blocks(); ++i) {
      blocks.push_back(basic_block(make, o, in, out, stage > 0 && i == 0 ? 2 : 1));
      in = out;
    }
    layers.emplace_back(fmt::format("layer{}", stage + 1), make.sequential(blocks));
    forward.push_back(fmt::format("x = self.layer{}.forward(x)", stage + 1));
  }
  layers.emplace_back("fc", make.linear(in, o.outputs, LinearInit::kUniform));
  forward.emplace_back("x = torch.flatten(torch.adaptive_avg_pool2d(x, [1, 1]), 1)");
  forward.emplace_back("return self.fc.forward(x)");
  return make.compose("ResNet", layers, forward);
}

Module vgg(LayerFactory& make, const VggOptions& o, const std::string& name) {
  std::vector<Module> features;
  std::int64_t in = o.channels;
  for (const std::int64_t out : o.layers(name)) {
    if (out == 0) {
      features.push_back(make.max_pool());
      continue;
    }
    features.push_back(make.conv2d(in, out, 3, 1, o.has_bias()));
    if (o.norm != Norm::kNone) features.push_back(make.norm(o, out));
    features.push_back(make.relu());
    in = out;
  }
  LayerFactory::Children layers;
  layers.emplace_back("features", make.sequential(features));
  layers.emplace_back("classifier", make.linear(in, o.outputs, LinearInit::kSmall));
  return make.compose(
      "VGG", layers,
      {"x = self.features.forward(x)", "x = torch.flatten(torch.adaptive_avg_pool2d(x, [1, 1]), 1)",
       "return self.classifier.forward(x)"});
}

}  // namespace

Module build_builtin(const std::string& name, const nlohmann::json& options, std::uint64_t seed) {
  LayerFactory make(seed);
  const auto build = [&]() -> Module {
    if (name == "mlp") return mlp(make, mlp_options(options));
    if (name == "convnet") return convnet(make, convnet_options(options));
    if (name == "resnet20") return resnet(make, resnet_options(options));
    if (is_vgg(name)) return vgg(make, vgg_options(options), name);
    fail_unknown_builtin(name);
  };
  Module module = build();
  module.eval();
  return module;
}

}  // namespace weightsmith
