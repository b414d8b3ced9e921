#include <spdlog/fmt/fmt.h>

#include <nlohmann/json.hpp>

#include "weightsmith/graph/unit_groups.h"
#include "weightsmith/model/builtin_options.h"

namespace weightsmith {
namespace {

/// Collects groups and their members in the order of the forward pass.
class GroupBuilder {
 public:
  /// `conv` may be null for networks without convolutions.
  explicit GroupBuilder(const ConvOptions* conv = nullptr) : conv_(conv) {}

  /// A new group named after the layer that first produces its units.
  std::size_t open(const std::string& name, std::int64_t units) {
    UnitGroup& group = groups_.groups.emplace_back();
    group.name = name;
    group.units = units;
    group.blocks = conv_ == nullptr ? 1 : conv_->unit_blocks(units);
    return groups_.groups.size() - 1;
  }

  void linear_out(std::size_t group, const std::string& layer) {
    add(group, layer + ".weight", 0, MemberRole::kOut);
    add(group, layer + ".bias", 0, MemberRole::kOut);
  }

  /// A convolution and the norm behind it (not there when the network has none).
  void conv_out(std::size_t group, const std::string& conv, const std::string& norm) {
    add(group, conv + ".weight", 0, MemberRole::kOut);
    if (conv_->has_bias()) add(group, conv + ".bias", 0, MemberRole::kOut);
    if (conv_->norm == Norm::kNone) return;
    add(group, norm + ".weight", 0, MemberRole::kOut);
    add(group, norm + ".bias", 0, MemberRole::kOut);
    if (conv_->norm != Norm::kBatch) return;
    add(group, norm + ".running_mean", 0, MemberRole::kOut);
    add(group, norm + ".running_var", 0, MemberRole::kOut);
  }

  void consumed_by(std::size_t group, const std::string& layer) {
    add(group, layer + ".weight", 1, MemberRole::kIn);
    groups_.groups[group].taps = {layer + ".weight/input"};
  }

  UnitGroups take() { return std::move(groups_); }

 private:
  void add(std::size_t group, const std::string& parameter, std::int64_t axis, MemberRole role) {
    UnitGroup& g = groups_.groups[group];
    g.members.push_back({parameter, axis, 0, g.units, role, {}, 1});
  }

  const ConvOptions* conv_;
  UnitGroups groups_;
};

UnitGroups mlp_groups(const MlpOptions& o) {
  GroupBuilder build;
  for (std::size_t i = 0; i < o.hidden.size(); ++i) {
    const std::string layer = fmt::format("fc{}", i + 1);
    const std::size_t group = build.open(layer, o.hidden[i]);
    build.linear_out(group, layer);
    build.consumed_by(group, fmt::format("fc{}", i + 2));
  }
  return build.take();
}

UnitGroups convnet_groups(const ConvNetOptions& o) {
  GroupBuilder build(&o);
  for (int i = 1; i <= 4; ++i) {
    const std::string conv = fmt::format("conv{}", i);
    const std::size_t group = build.open(conv, o.features()[i - 1]);
    build.conv_out(group, conv, fmt::format("bn{}", i));
    build.consumed_by(group, i == 4 ? "fc" : fmt::format("conv{}", i + 1));
  }
  return build.take();
}

UnitGroups resnet_groups(const ResNetOptions& o) {
  GroupBuilder build(&o);
  // The units that the shortcuts carry through a stage; every block of the stage adds to them.
  std::size_t stream = build.open("conv1", o.features(0));
  build.conv_out(stream, "conv1", "bn1");
  for (std::int64_t stage = 0; stage < 3; ++stage) {
    for (std::int64_t i = 0; i < o.blocks(); ++i) {
      const std::string block = fmt::format("layer{}.{}", stage + 1, i);
      build.consumed_by(stream, block + ".conv1");
      const std::size_t inner = build.open(block + ".conv1", o.features(stage));
      build.conv_out(inner, block + ".conv1", block + ".bn1");
      build.consumed_by(inner, block + ".conv2");
      if (stage > 0 && i == 0) {
        build.consumed_by(stream, block + ".downsample.0");
        stream = build.open(block + ".conv2", o.features(stage));
        build.conv_out(stream, block + ".conv2", block + ".bn2");
        build.conv_out(stream, block + ".downsample.0", block + ".downsample.1");
      } else {
        build.conv_out(stream, block + ".conv2", block + ".bn2");
      }
    }
  }
  build.consumed_by(stream, "fc");
  return build.take();
}

UnitGroups vgg_groups(const VggOptions& o, const std::string& name) {
  GroupBuilder build(&o);
  int index = 0;
  std::size_t group = 0;
  for (const std::int64_t features : o.layers(name)) {
    if (features == 0) {
      ++index;
      continue;
    }
    const std::string conv = fmt::format("features.{}", index);
    if (index > 0) build.consumed_by(group, conv);
    group = build.open(conv, features);
    build.conv_out(group, conv, fmt::format("features.{}", index + 1));
    index += o.norm == Norm::kNone ? 2 : 3;
  }
  build.consumed_by(group, "classifier");
  return build.take();
}

}  // namespace

bool has_written_groups(const std::string& builtin) {
  return builtin != "vit" && deep_resnet_plan(builtin).blocks.empty();
}

UnitGroups builtin_unit_groups(const std::string& name, const nlohmann::json& options) {
  if (name == "mlp") return mlp_groups(mlp_options(options));
  if (name == "convnet") return convnet_groups(convnet_options(options));
  if (name == "resnet20") return resnet_groups(resnet_options(options));
  if (is_vgg(name)) return vgg_groups(vgg_options(options), name);
  fail_unknown_builtin(name);
}

}  // namespace weightsmith
