#include "weightsmith/model/builtin_options.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "weightsmith/config/fields.h"
#include "weightsmith/config/nearest.h"
#include "weightsmith/model/builtin.h"

namespace weightsmith {
namespace {

constexpr std::int64_t kMostUnits = 1 << 20;
constexpr double kLeastWidth = 1.0 / 16.0;
constexpr double kMostWidth = 16.0;

}  // namespace

// Outside the unnamed namespace, where argument-dependent lookup would not find them.
template <class Fields>
void fields(Fields& f, MlpOptions& o) {
  f("inputs", o.inputs);
  f("hidden", o.hidden);
  f("outputs", o.outputs);
}

template <class Fields>
void conv_fields(Fields& f, ConvOptions& o) {
  f("channels", o.channels);
  f("outputs", o.outputs);
  f("norm", o.norm);
  f("groups", o.groups);
}

template <class Fields>
void fields(Fields& f, ConvNetOptions& o) {
  f("width", o.width);
  conv_fields(f, o);
}

template <class Fields>
void fields(Fields& f, ResNetOptions& o) {
  f("depth", o.depth);
  f("width", o.width);
  conv_fields(f, o);
}

template <class Fields>
void fields(Fields& f, VggOptions& o) {
  f("width", o.width);
  conv_fields(f, o);
}

template <class Fields>
void fields(Fields& f, DeepResNetOptions& o) {
  f("stem", o.stem);
  f("width", o.width);
  conv_fields(f, o);
}

template <class Fields>
void fields(Fields& f, VitOptions& o) {
  f("image", o.image);
  f("patch", o.patch);
  f("dim", o.dim);
  f("depth", o.depth);
  f("heads", o.heads);
  f("mlp", o.mlp);
  f("channels", o.channels);
  f("outputs", o.outputs);
}

namespace {

[[noreturn]] void fail_option(const std::string& key, const std::string& seen,
                              const std::string& wanted) {
  throw Error(ErrorKind::kConfig, "options." + key, fmt::format("found {}", seen),
              "expected " + wanted);
}

void check_count(const std::string& key, std::int64_t value) {
  if (value < 1 || value > kMostUnits)
    fail_option(key, std::to_string(value), fmt::format("an integer from 1 to {}", kMostUnits));
}

void check_width(double width) {
  if (!(width >= kLeastWidth && width <= kMostWidth))
    fail_option("width", fmt::format("{}", width),
                fmt::format("a number from {} to {}", kLeastWidth, kMostWidth));
}

void check_conv(const ConvOptions& o) {
  check_count("channels", o.channels);
  check_count("outputs", o.outputs);
  check_count("groups", o.groups);
}

template <class Options>
Options read_options(const nlohmann::json& json) {
  const std::filesystem::path no_folder;
  const nlohmann::json value = json.is_null() ? nlohmann::json::object() : json;
  Options options;
  read_fields(ConfigNode{value, "options", no_folder}, options);
  return options;
}

std::int64_t scaled(std::int64_t features, double width) {
  return std::max<std::int64_t>(1, std::llround(static_cast<double>(features) * width));
}

}  // namespace

std::vector<std::pair<Norm, const char*>> enum_names(Norm) {
  return {{Norm::kBatch, "batch"}, {Norm::kGroup, "group"}, {Norm::kNone, "none"}};
}

std::vector<std::pair<DeepResNetOptions::Stem, const char*>> enum_names(DeepResNetOptions::Stem) {
  return {{DeepResNetOptions::Stem::kCifar, "cifar"},
          {DeepResNetOptions::Stem::kImageNet, "imagenet"}};
}

std::int64_t ConvOptions::norm_groups(std::int64_t features) const {
  std::int64_t divisor = std::min(groups, features);
  while (features % divisor != 0) --divisor;
  return divisor;
}

std::int64_t ConvOptions::unit_blocks(std::int64_t features) const {
  if (norm != Norm::kGroup) return 1;
  const std::int64_t blocks = norm_groups(features);
  return blocks == features ? 1 : blocks;  // blocks of one unit constrain nothing
}

std::int64_t ResNetOptions::features(std::int64_t stage) const {
  return scaled(std::int64_t{16} << stage, width);
}

std::int64_t DeepResNetOptions::features(std::int64_t stage) const {
  return scaled(std::int64_t{64} << stage, width);
}

DeepResNetPlan deep_resnet_plan(const std::string& name) {
  if (name == "resnet18") return {{2, 2, 2, 2}, false, 1};
  if (name == "resnet34") return {{3, 4, 6, 3}, false, 1};
  if (name == "resnet50") return {{3, 4, 6, 3}, true, 1};
  if (name == "resnet101") return {{3, 4, 23, 3}, true, 1};
  if (name == "resnet152") return {{3, 8, 36, 3}, true, 1};
  if (name == "resnext50") return {{3, 4, 6, 3}, true, 32};
  return {};
}

std::vector<std::int64_t> VggOptions::layers(const std::string& name) const {
  // Convolutions of the five stages; a pooling ends each.
  std::vector<int> counts;
  if (name == "vgg11") counts = {1, 1, 2, 2, 2};
  if (name == "vgg13") counts = {2, 2, 2, 2, 2};
  if (name == "vgg16") counts = {2, 2, 3, 3, 3};
  if (name == "vgg19") counts = {2, 2, 4, 4, 4};
  WS_CHECK(!counts.empty(), name);
  std::vector<std::int64_t> layers;
  for (std::size_t stage = 0; stage < counts.size(); ++stage) {
    layers.insert(layers.end(), counts[stage],
                  scaled(std::min<std::int64_t>(64 << stage, 512), width));
    layers.push_back(0);
  }
  return layers;
}

bool is_vgg(const std::string& name) {
  return name == "vgg11" || name == "vgg13" || name == "vgg16" || name == "vgg19";
}

MlpOptions mlp_options(const nlohmann::json& json) {
  const auto o = read_options<MlpOptions>(json);
  check_count("inputs", o.inputs);
  for (std::size_t i = 0; i < o.hidden.size(); ++i)
    check_count(fmt::format("hidden[{}]", i), o.hidden[i]);
  check_count("outputs", o.outputs);
  return o;
}

ConvNetOptions convnet_options(const nlohmann::json& json) {
  const auto o = read_options<ConvNetOptions>(json);
  check_count("width", o.width);
  check_conv(o);
  return o;
}

ResNetOptions resnet_options(const nlohmann::json& json) {
  const auto o = read_options<ResNetOptions>(json);
  const std::vector<std::int64_t> depths{8, 14, 20, 26, 32, 44, 56};
  if (std::find(depths.begin(), depths.end(), o.depth) == depths.end())
    fail_option("depth", std::to_string(o.depth), "8, 14, 20, 26, 32, 44 or 56");
  check_width(o.width);
  check_conv(o);
  return o;
}

VggOptions vgg_options(const nlohmann::json& json) {
  const auto o = read_options<VggOptions>(json);
  check_width(o.width);
  check_conv(o);
  return o;
}

DeepResNetOptions deep_resnet_options(const nlohmann::json& json) {
  const auto o = read_options<DeepResNetOptions>(json);
  check_width(o.width);
  check_conv(o);
  return o;
}

VitOptions vit_options(const nlohmann::json& json) {
  const auto o = read_options<VitOptions>(json);
  for (const auto& [key, value] : {std::pair{"image", o.image},
                                   {"patch", o.patch},
                                   {"dim", o.dim},
                                   {"depth", o.depth},
                                   {"heads", o.heads},
                                   {"mlp", o.mlp},
                                   {"channels", o.channels},
                                   {"outputs", o.outputs}})
    check_count(key, value);
  if (o.image % o.patch != 0)
    fail_option("image", std::to_string(o.image), fmt::format("a multiple of {} (patch)", o.patch));
  if (o.dim % o.heads != 0)
    fail_option("dim", std::to_string(o.dim), fmt::format("a multiple of {} (heads)", o.heads));
  return o;
}

std::vector<std::string> builtin_names() {
  return {"mlp",      "convnet",  "resnet20", "vgg11",     "vgg13",     "vgg16",     "vgg19",
          "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50", "vit"};
}

void fail_unknown_builtin(const std::string& name) {
  const std::string nearest = nearest_name(name, builtin_names());
  std::string known;
  for (const std::string& candidate : builtin_names())
    known += (known.empty() ? "" : ", ") + candidate;
  throw Error(ErrorKind::kConfig, "builtin", fmt::format("no network is called \"{}\"", name),
              nearest.empty() ? "known: " + known : fmt::format("did you mean \"{}\"?", nearest));
}

nlohmann::json builtin_options(const std::string& name, const nlohmann::json& options) {
  if (name == "mlp") return write_fields(mlp_options(options));
  if (name == "convnet") return write_fields(convnet_options(options));
  if (name == "resnet20") return write_fields(resnet_options(options));
  if (is_vgg(name)) return write_fields(vgg_options(options));
  if (!deep_resnet_plan(name).blocks.empty()) return write_fields(deep_resnet_options(options));
  if (name == "vit") return write_fields(vit_options(options));
  fail_unknown_builtin(name);
}

}  // namespace weightsmith
