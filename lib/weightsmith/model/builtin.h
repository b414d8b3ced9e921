#pragma once

#include <torch/csrc/jit/api/module.h>

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace weightsmith {

/// Networks written in C++; the options of each are in model/builtin_options.h:
/// - `mlp`: fully connected layers fc1, fc2, ...;
/// - `convnet`: four 3×3 convolutions conv1 to conv4 with norms bn1 to bn4, and fc;
/// - `resnet20`: the CIFAR ResNet of any depth, parameters named as torchvision's ResNet does
///   (conv1, bn1, layer1.0.conv1, layer2.0.downsample.0, ..., fc);
/// - `vgg11`, `vgg13`, `vgg16`, `vgg19`: torchvision's features.N and one linear layer
///   `classifier`;
/// - `resnet18`, `resnet34`, `resnet50`, `resnet101`, `resnet152`, `resnext50`: torchvision's, with
///   a stem for small or large images;
/// - `vit`: torchvision's VisionTransformer of any size.
///
/// A norm keeps the name bn1, downsample.1, ... whether it is a batch or a group
/// norm.
std::vector<std::string> builtin_names();

/// Every option of a builtin with its default filled in; `options` (an object or null) overrides.
/// Throws Error{kConfig} naming an unknown builtin or option (and the nearest known one) or a value
/// out of range.
nlohmann::json builtin_options(const std::string& name, const nlohmann::json& options);

/// A network as an ordinary TorchScript module in eval mode that Python's torch.jit.load opens and
/// trains once saved; float32 on the CPU, images (B, C, H, W) or, for `mlp`, anything that flattens
/// to (B, inputs), to (B, outputs). Its parameters require gradients.
///
/// Weights are initialised as torchvision does for that architecture, from `seed` alone, whatever
/// the number of threads: convolutions normal by fan-out with bias 0, norms 1 and 0, linear layers
/// by PyTorch's default (VGG: normal with deviation 0.01; ViT: see LinearInit). A ResNet without
/// norms, which torchvision lacks, has the last convolution of each block divided by the square
/// root of the number of blocks.
torch::jit::Module build_builtin(const std::string& name, const nlohmann::json& options,
                                 std::uint64_t seed);

}  // namespace weightsmith
