#include "weightsmith/model/builtin.h"

#include <ATen/Functions.h>
#include <spdlog/fmt/fmt.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

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

/// Without a norm each residual sum would double the variance; shrinking the branches of all
/// `blocks` keeps it within a factor of e at any depth (Zhang, Dauphin, Ma, "Fixup initialization",
/// ICLR 2019, has the same exponent).
double branch_gain(const ConvOptions& o, std::int64_t blocks) {
  return o.norm != Norm::kNone ? 1.0 : 1.0 / std::sqrt(static_cast<double>(blocks));
}

/// A residual block under construction: convolutions conv1, conv2, ... with norms bn1, bn2, ...
struct BlockBuilder {
  LayerFactory& make;
  const ConvOptions& options;
  LayerFactory::Children layers = {};
  std::vector<std::string> forward = {};
  int convolutions = 0;

  void convolve(const char* input, const Module& convolution, std::int64_t out, bool activates) {
    ++convolutions;
    layers.emplace_back(fmt::format("conv{}", convolutions), convolution);
    forward.push_back(fmt::format("y = self.conv{}.forward({})", convolutions, input));
    if (options.norm != Norm::kNone) {
      layers.emplace_back(fmt::format("bn{}", convolutions), make.norm(options, out));
      forward.push_back(fmt::format("y = self.bn{}.forward(y)", convolutions));
    }
    if (activates) forward.emplace_back("y = torch.relu_(y)");
  }

  /// Adds the shortcut, a 1×1 convolution and a norm where the shape changes.
  Module finish(const char* name, std::int64_t in, std::int64_t out, std::int64_t stride) {
    if (in != out || stride != 1) {
      std::vector<Module> shortcut{make.conv2d(in, out, 1, stride, options.has_bias())};
      if (options.norm != Norm::kNone) shortcut.push_back(make.norm(options, out));
      layers.emplace_back("downsample", make.sequential(shortcut));
      forward.emplace_back("x = self.downsample.forward(x)");
    }
    forward.emplace_back("return torch.relu_(y.add_(x))");
    return make.compose(name, layers, forward);
  }
};

Module basic_block(LayerFactory& make, const ConvOptions& o, std::int64_t in, std::int64_t out,
                   std::int64_t stride, double gain) {
  BlockBuilder block{make, o};
  block.convolve("x", make.conv2d(in, out, 3, stride, o.has_bias()), out, true);
  block.convolve("y", make.conv2d(out, out, 3, 1, o.has_bias(), gain), out, false);
  return block.finish("BasicBlock", in, out, stride);
}

Module bottleneck(LayerFactory& make, const ConvOptions& o, std::int64_t in, std::int64_t inner,
                  std::int64_t out, std::int64_t stride, std::int64_t groups, double gain) {
  BlockBuilder block{make, o};
  block.convolve("x", make.conv2d(in, inner, 1, 1, o.has_bias()), inner, true);
  block.convolve("y", make.conv2d(inner, inner, 3, stride, o.has_bias(), 1.0, groups), inner, true);
  block.convolve("y", make.conv2d(inner, out, 1, 1, o.has_bias(), gain), out, false);
  return block.finish("Bottleneck", in, out, stride);
}

/// How every residual network ends: the mean over places, and a linear layer.
Module finish_resnet(LayerFactory& make, LayerFactory::Children layers,
                     std::vector<std::string> forward, std::int64_t in, std::int64_t outputs) {
  layers.emplace_back("fc", make.linear(in, outputs, LinearInit::kUniform));
  forward.emplace_back("x = torch.flatten(torch.adaptive_avg_pool2d(x, [1, 1]), 1)");
  forward.emplace_back("return self.fc.forward(x)");
  return make.compose("ResNet", layers, forward);
}

Module resnet(LayerFactory& make, const ResNetOptions& o) {
  LayerFactory::Children layers;
  std::vector<std::string> forward{"x = self.conv1.forward(x)"};
  std::int64_t in = o.features(0);
  const double gain = branch_gain(o, 3 * o.blocks());
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
      blocks.push_back(basic_block(make, o, in, out, stage > 0 && i == 0 ? 2 : 1, gain));
      in = out;
    }
    layers.emplace_back(fmt::format("layer{}", stage + 1), make.sequential(blocks));
    forward.push_back(fmt::format("x = self.layer{}.forward(x)", stage + 1));
  }
  return finish_resnet(make, std::move(layers), std::move(forward), in, o.outputs);
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

Module deep_resnet(LayerFactory& make, const DeepResNetOptions& o, const DeepResNetPlan& plan) {
  LayerFactory::Children layers;
  std::vector<std::string> forward{"x = self.conv1.forward(x)"};
  std::int64_t in = o.features(0);
  const bool large = o.stem == DeepResNetOptions::Stem::kImageNet;
  layers.emplace_back("conv1",
                      make.conv2d(o.channels, in, large ? 7 : 3, large ? 2 : 1, o.has_bias()));
  if (o.norm != Norm::kNone) {
    layers.emplace_back("bn1", make.norm(o, in));
    forward.emplace_back("x = self.bn1.forward(x)");
  }
  forward.emplace_back("x = torch.relu_(x)");
  if (large) forward.emplace_back("x = torch.max_pool2d(x, [3, 3], [2, 2], [1, 1], [1, 1], False)");
  const double gain =
      branch_gain(o, std::accumulate(plan.blocks.begin(), plan.blocks.end(), std::int64_t{0}));
  for (std::int64_t stage = 0; stage < 4; ++stage) {
    const std::int64_t base = o.features(stage);
    // ResNeXt's 32 groups of 4 channels (times 2 a stage) are twice ResNet's inner channels.
    const std::int64_t inner = plan.cardinality > 1 ? 2 * base : base;
    const std::int64_t out = plan.bottleneck ? 4 * base : base;
    std::vector<Module> blocks;
    for (std::int64_t i = 0; i < plan.blocks[stage]; ++i) {
      const std::int64_t stride = stage > 0 && i == 0 ? 2 : 1;
      blocks.push_back(plan.bottleneck ? bottleneck(make, o, in, inner, out, stride,
                                                    std::gcd(inner, plan.cardinality), gain)
                                       : basic_block(make, o, in, out, stride, gain));
      in = out;
    }
    layers.emplace_back(fmt::format("layer{}", stage + 1), make.sequential(blocks));
    forward.push_back(fmt::format("x = self.layer{}.forward(x)", stage + 1));
  }
  return finish_resnet(make, std::move(layers), std::move(forward), in, o.outputs);
}

Module vit(LayerFactory& make, const VitOptions& o) {
  constexpr double kPositionDeviation = 0.02;
  const std::int64_t tokens = (o.image / o.patch) * (o.image / o.patch) + 1;
  const Module patches = make.patches(o.channels, o.dim, o.patch);
  LayerFactory::Children blocks;
  for (std::int64_t i = 0; i < o.depth; ++i) {
    const Module mlp = make.compose("MLP",
                                    {{"0", make.linear(o.dim, o.mlp, LinearInit::kXavier)},
                                     {"3", make.linear(o.mlp, o.dim, LinearInit::kXavier)}},
                                    {R"(x = torch.gelu(getattr(self, "0").forward(x)))",
                                     R"(return getattr(self, "3").forward(x))"});
    blocks.emplace_back(fmt::format("encoder_layer_{}", i),
                        make.compose("EncoderBlock",
                                     {{"ln_1", make.layer_norm(o.dim)},
                                      {"self_attention", make.self_attention(o.dim, o.heads)},
                                      {"ln_2", make.layer_norm(o.dim)},
                                      {"mlp", mlp}},
                                     {"x = x + self.self_attention.forward(self.ln_1.forward(x))",
                                      "return x + self.mlp.forward(self.ln_2.forward(x))"}));
  }
  const Module encoder = make.compose(
      "Encoder", {{"layers", make.compose("Sequential", blocks)}, {"ln", make.layer_norm(o.dim)}},
      {"x = x + self.pos_embedding", "return self.ln.forward(self.layers.forward(x))"},
      {{"pos_embedding", make.normal({1, tokens, o.dim}, kPositionDeviation)}});
  return make.compose(
      "VisionTransformer",
      {{"conv_proj", patches},
       {"encoder", encoder},
       {"heads",
        make.compose("Sequential", {{"head", make.linear(o.dim, o.outputs, LinearInit::kZero)}})}},
      {"x = torch.flatten(self.conv_proj.forward(x), 2).transpose(1, 2)",  // (B, patches, dim)
       "x = torch.cat([self.class_token.expand(x.size(0), -1, -1), x], 1)",
       "return self.heads.forward(self.encoder.forward(x)[:, 0])"},
      {{"class_token", at::zeros({1, 1, o.dim})}});
}

}  // namespace

Module build_builtin(const std::string& name, const nlohmann::json& options, std::uint64_t seed) {
  LayerFactory make(seed);
  const auto build = [&]() -> Module {
    if (name == "mlp") return mlp(make, mlp_options(options));
    if (name == "convnet") return convnet(make, convnet_options(options));
    if (name == "resnet20") return resnet(make, resnet_options(options));
    if (is_vgg(name)) return vgg(make, vgg_options(options), name);
    if (const DeepResNetPlan plan = deep_resnet_plan(name); !plan.blocks.empty())
      return deep_resnet(make, deep_resnet_options(options), plan);
    if (name == "vit") return vit(make, vit_options(options));
    fail_unknown_builtin(name);
  };
  Module module = build();
  module.eval();
  return module;
}

}  // namespace weightsmith
