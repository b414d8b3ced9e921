#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <utility>
#include <vector>

namespace weightsmith {

enum class Norm { kBatch, kGroup, kNone };
std::vector<std::pair<Norm, const char*>> enum_names(Norm);

/// Fully connected layers `fc1`, `fc2`, ... with ReLU between them; the input is flattened.
struct MlpOptions {
  std::int64_t inputs = 64;                    ///< values of one flattened input
  std::vector<std::int64_t> hidden{256, 256};  ///< units of the hidden layers; may be empty
  std::int64_t outputs = 10;
};

/// What the convolutional networks share. Without normalisation the convolutions have a bias.
struct ConvOptions {
  std::int64_t channels = 3;  ///< of the input image
  std::int64_t outputs = 10;
  Norm norm = Norm::kBatch;
  std::int64_t groups = 8;  ///< of a group norm, lowered to a divisor of the channels it acts on

  bool has_bias() const { return norm == Norm::kNone; }
  /// The groups of a group norm on `features` channels: the largest divisor not above `groups`.
  std::int64_t norm_groups(std::int64_t features) const;
  /// The blocks (graph/unit_groups.h) that the norm imposes on the units of its input.
  std::int64_t unit_blocks(std::int64_t features) const;
};

/// Four 3×3 convolutions of W, 2W (stride 2), 2W, 4W (stride 2) channels, `conv1` to `conv4`, each
/// with its norm (`bn1` to `bn4`) and ReLU; then global average pooling and `fc`.
struct ConvNetOptions : ConvOptions {
  ConvNetOptions() { channels = 1; }
  std::int64_t width = 32;

  std::vector<std::int64_t> features() const { return {width, 2 * width, 2 * width, 4 * width}; }
};

/// ResNet for small images (He, Zhang, Ren, Sun, "Deep residual learning for image recognition",
/// CVPR 2016, section 4.2): three stages of (depth − 2) / 6 basic blocks on 16, 32 and 64 channels
/// times `width`. Where the shape changes the shortcut is a 1×1 convolution and a norm (the paper's
/// option B), as in torchvision.
struct ResNetOptions : ConvOptions {
  std::int64_t depth = 20;  ///< 8, 14, 20, 26, 32, 44 or 56
  double width = 1.0;       ///< factor of every stage's channels

  std::int64_t blocks() const { return (depth - 2) / 6; }
  /// Channels of stage 0, 1 or 2.
  std::int64_t features(std::int64_t stage) const;
};

/// ResNet-18, -34, -50, -101, -152 (He et al., CVPR 2016, table 1) and ResNeXt-50 32×4d (Xie et
/// al., CVPR 2017, table 1), as in torchvision: four stages on 64, 128, 256 and 512 channels times
/// `width`, a block's stride in its 3×3 convolution.
struct DeepResNetOptions : ConvOptions {
  enum class Stem {
    kCifar,     ///< a 3×3 convolution, for images of about 32 × 32
    kImageNet,  ///< a 7×7 convolution and a pooling, of stride 2 each
  };
  Stem stem = Stem::kCifar;
  double width = 1.0;

  /// Channels of stage 0 to 3 inside a basic block.
  std::int64_t features(std::int64_t stage) const;
};
std::vector<std::pair<DeepResNetOptions::Stem, const char*>> enum_names(DeepResNetOptions::Stem);

/// What the name of a deep ResNet stands for.
struct DeepResNetPlan {
  std::vector<std::int64_t> blocks;  ///< of the four stages
  bool bottleneck = false;           ///< three convolutions a block and four times the channels
  std::int64_t cardinality = 1;      ///< groups of a bottleneck's 3×3 convolution
};
/// Empty for a name that is none of theirs.
DeepResNetPlan deep_resnet_plan(const std::string& name);

/// Vision transformer (Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021), as in
/// torchvision: patches, a class token, learnt positions, `depth` blocks with norms first, and a
/// linear head on the class token.
struct VitOptions {
  std::int64_t image = 32;  ///< side; a multiple of `patch`
  std::int64_t patch = 4;
  std::int64_t dim = 192;
  std::int64_t depth = 6;
  std::int64_t heads = 3;  ///< a divisor of `dim`
  std::int64_t mlp = 768;  ///< hidden units of a block's perceptron
  std::int64_t channels = 3;
  std::int64_t outputs = 10;
};

/// VGG for small images (Simonyan and Zisserman, "Very deep convolutional networks for large-scale
/// image recognition", ICLR 2015): torchvision's `features`, global average pooling and one linear
/// `classifier`. Pooling rounds sizes up, so that images smaller than 32×32 pass.
struct VggOptions : ConvOptions {
  double width = 1.0;

  /// Channels of the convolutions in order; 0 is a pooling.
  std::vector<std::int64_t> layers(const std::string& name) const;
};

/// True for "vgg11", "vgg13", "vgg16" and "vgg19".
bool is_vgg(const std::string& name);

/// The options of each kind read from JSON, checked. Throw Error{kConfig} naming the key.
MlpOptions mlp_options(const nlohmann::json& json);
ConvNetOptions convnet_options(const nlohmann::json& json);
ResNetOptions resnet_options(const nlohmann::json& json);
VggOptions vgg_options(const nlohmann::json& json);
DeepResNetOptions deep_resnet_options(const nlohmann::json& json);
VitOptions vit_options(const nlohmann::json& json);

/// Throws Error{kConfig} naming an unknown builtin and the nearest known one.
[[noreturn]] void fail_unknown_builtin(const std::string& name);

}  // namespace weightsmith
