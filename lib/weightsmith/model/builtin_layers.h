#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/jit/api/module.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "weightsmith/core/rng.h"
#include "weightsmith/model/builtin_options.h"

namespace weightsmith {

/// How the weight of a linear layer starts.
enum class LinearInit {
  kUniform,  ///< PyTorch's default: weight and bias uniform in ±1/√inputs
  kSmall,    ///< torchvision's VGG: weight normal with deviation 0.01, bias 0
  kXavier,   ///< torchvision's ViT: weight uniform in ±√(6 / (inputs + outputs)), bias near 0
  kNoBias,   ///< PyTorch's attention: weight as kUniform, bias 0
  kZero,     ///< torchvision's ViT, the last layer: all 0
};

/// Makes TorchScript modules without Python, all in one compilation unit and in training mode.
/// Every tensor with random values draws from its own stream, named by the seed and the number of
/// such tensors before it, so a network depends on nothing but its options and the seed.
class LayerFactory {
 public:
  using Children = std::vector<std::pair<std::string, torch::jit::Module>>;
  using Parameters = std::vector<std::pair<std::string, at::Tensor>>;

  explicit LayerFactory(std::uint64_t seed);

  /// x (B, in, H, W) → (B, out, ⌈H/stride⌉, ⌈W/stride⌉); `kernel` is odd. Weight (out, in / groups,
  /// kernel, kernel) normal with deviation √(2 / (out · kernel²)) times `gain` (He et al., "Delving
  /// deep into rectifiers", ICCV 2015, with the fan-out of their equation 14); bias 0.
  torch::jit::Module conv2d(std::int64_t in, std::int64_t out, std::int64_t kernel,
                            std::int64_t stride, bool bias, double gain = 1.0,
                            std::int64_t groups = 1);
  /// x (B, in, H, W) → (B, out, ⌊H/side⌋, ⌊W/side⌋): one linear map of every patch of side × side
  /// pixels, with a bias 0 and weights normal with deviation 1 / √(values of a patch).
  torch::jit::Module patches(std::int64_t in, std::int64_t out, std::int64_t side);
  /// x (..., in) → (..., out).
  torch::jit::Module linear(std::int64_t in, std::int64_t out, LinearInit init);
  /// Batch or group norm on `features` channels, eps 1e-5, momentum 0.1; `options.norm` is not
  /// kNone.
  torch::jit::Module norm(const ConvOptions& options, std::int64_t features);
  /// On the last dimension, eps 1e-6.
  torch::jit::Module layer_norm(std::int64_t features);
  /// Multi-head self-attention (B, N, features) → the same, named as torch.nn.MultiheadAttention:
  /// in_proj_weight, in_proj_bias, out_proj. `heads` divides `features`.
  torch::jit::Module self_attention(std::int64_t features, std::int64_t heads);
  torch::jit::Module relu();
  /// 2×2, stride 2, sizes rounded up.
  torch::jit::Module max_pool();
  /// A parameter's values, normal with this deviation.
  at::Tensor normal(const std::vector<std::int64_t>& shape, double deviation);

  /// A module of `children`, called in order when `forward` is empty. `forward` is the body of
  /// `forward(self, x)`, one statement a line, without indentation.
  torch::jit::Module compose(const std::string& class_name, const Children& children,
                             const std::vector<std::string>& forward = {},
                             const Parameters& parameters = {});
  /// compose() with the children named "0", "1", ...
  torch::jit::Module sequential(const std::vector<torch::jit::Module>& children);

 private:
  torch::jit::Module empty(const std::string& class_name);
  void define(torch::jit::Module& module, const std::vector<std::string>& forward);
  Rng next_stream();

  std::shared_ptr<torch::jit::CompilationUnit> unit_;
  std::uint64_t seed_;
  std::uint64_t streams_ = 0;
};

}  // namespace weightsmith
