#include "weightsmith/merge/repair.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>
#include <torch/csrc/jit/ir/ir.h>

#include <algorithm>
#include <set>
#include <utility>

#include "weightsmith/core/error.h"
#include "weightsmith/core/stop.h"
#include "weightsmith/eval/batch_norm_observer.h"
#include "weightsmith/eval/channel_moments.h"
#include "weightsmith/model/graph_runner.h"

namespace weightsmith {
namespace {

constexpr const char* kWeight = "weight";
constexpr const char* kBias = "bias";
constexpr double kDeadShare = 1e-3;

/// "conv1." of "conv1.weight", "attention.in_proj_" of "attention.in_proj_weight"; "" for another
/// ending.
std::string layer_of(const std::string& parameter, const std::string& ending) {
  if (!parameter.ends_with(ending)) return "";
  std::string layer = parameter.substr(0, parameter.size() - ending.size());
  return layer.size() > 1 && (layer.ends_with('.') || layer.ends_with('_')) ? layer : "";
}

/// What a unit's outputs are multiplied by to reach the wanted deviation.
at::Tensor scale_to(const at::Tensor& wanted, const at::Tensor& deviation) {
  return at::where(deviation > kDeadShare * wanted, wanted / deviation.clamp_min(1e-30),
                   at::ones_like(wanted));
}

/// The weight with what makes output o multiplied by scale[o].
at::Tensor scaled_outputs(const at::Tensor& weight, const AffineLayer& layer,
                          const at::Tensor& scale) {
  // (G, C / G, O / G, …) of a grouped transposed convolution's (C, O / G, …).
  const bool grouped = layer.groups > 1;
  at::Tensor values = weight.to(at::kDouble);
  if (grouped) values = values.unflatten(0, std::vector<std::int64_t>{layer.groups, -1});
  std::vector<std::int64_t> shape(values.dim(), 1);
  shape[grouped ? 2 : layer.axis] = scale.numel() / layer.groups;
  if (grouped) shape[0] = layer.groups;
  return (values * scale.view(shape).to(weight.device())).view_as(weight);
}

/// Measures affine layers' outputs while the network runs, and rescales them where `targets` says
/// to what.
class AffineObserver final : public NodeObserver {
 public:
  AffineObserver(const FlatGraph& graph, const std::vector<AffineLayer>& layers,
                 const TensorMap& parameters, const OutputMoments* targets)
      : graph_(graph), batch_norm_(graph), targets_(targets) {
    for (const AffineLayer& layer : layers) {
      const at::Tensor& bias = parameters.at(layer.bias);
      layers_.emplace(bias.storage().unsafeGetStorageImpl(),
                      Seen{&layer, bias, parameters.at(layer.weight).dim(), {}});
    }
  }

  void before(std::size_t number, std::vector<c10::IValue>& inputs) override {
    // Without targets the network is measured as it is.
    if (targets_ != nullptr) batch_norm_.before(number, inputs);
  }

  void after(std::size_t number, const std::vector<c10::IValue>& inputs,
             const std::vector<c10::IValue>& outputs) override {
    if (outputs.size() != 1 || !outputs[0].isTensor()) return;
    for (const c10::IValue& input : inputs) {
      if (!input.isTensor() || !input.toTensor().defined()) continue;
      const at::Tensor& bias = input.toTensor();
      Seen* const seen = find(bias);
      if (seen == nullptr) continue;
      const at::Tensor output = outputs[0].toTensor();
      // A view of the bias is no layer's output.
      if (output.dim() >= 2 && !output.is_alias_of(bias)) observe(*seen, output, bias, number);
      return;
    }
  }

  /// Throws for a layer that was never seen.
  OutputMoments moments(const std::string& where) const {
    OutputMoments result;
    const Seen* broken = nullptr;  // the first one: those behind it follow
    for (const auto& [key, seen] : layers_) {
      check_complete(seen, where);
      std::vector<at::Tensor> means;
      std::vector<at::Tensor> deviations;
      for (const auto& [stretch, part] : seen.parts) {
        means.push_back(part.moments.mean().cpu());
        deviations.push_back(part.moments.variance().sqrt().cpu());
      }
      const at::Tensor deviation = at::cat(deviations);
      result[seen.layer->bias] = {at::cat(means), deviation};
      if (!at::isfinite(deviation).all().item<bool>() &&
          (broken == nullptr || seen.number() < broken->number()))
        broken = &seen;
    }
    if (broken != nullptr)
      throw Error(
          ErrorKind::kNumeric, where,
          fmt::format("the outputs that {} is added to are not finite", broken->layer->bias),
          "check the weights, the data and its normalisation");
    return result;
  }

  const BatchNormObserver& batch_norm() const { return batch_norm_; }

 private:
  /// Units whose outputs one node computes.
  struct Part {
    std::size_t number = 0;  // of the node that adds the bias
    ChannelMoments moments;
  };
  struct Seen {
    const AffineLayer* layer = nullptr;
    at::Tensor bias;
    std::int64_t weight_dims = 0;
    std::map<std::pair<std::int64_t, std::int64_t>, Part> parts;  // by first unit and number

    std::size_t number() const {
      std::size_t least = parts.begin()->second.number;
      for (const auto& [stretch, part] : parts) least = std::min(least, part.number);
      return least;
    }
  };

  /// Which layer's bias it is, or a stretch of it: attention between two sequences splits the bias
  /// of a packed projection, and adds the queries' part to one of them and the rest to the other.
  Seen* find(const at::Tensor& tensor) {
    if (tensor.dim() != 1 || tensor.numel() == 0 || !tensor.has_storage() ||
        !tensor.is_contiguous())
      return nullptr;
    const auto [begin, end] = layers_.equal_range(tensor.storage().unsafeGetStorageImpl());
    for (auto it = begin; it != end; ++it) {
      const std::int64_t first_unit = first_of(it->second, tensor);
      if (first_unit >= 0 && first_unit + tensor.numel() <= it->second.bias.numel())
        return &it->second;
    }
    return nullptr;
  }

  static std::int64_t first_of(const Seen& seen, const at::Tensor& stretch) {
    return stretch.storage_offset() - seen.bias.storage_offset();
  }

  static void check_complete(const Seen& seen, const std::string& where) {
    std::int64_t units = 0;
    bool tiled = true;
    for (const auto& [stretch, part] : seen.parts) {
      tiled &= stretch.first == units;
      units += stretch.second;
    }
    if (tiled && units == seen.bias.numel()) return;
    throw Error(ErrorKind::kInput, where,
                fmt::format("the network does not add {}{} to a layer's outputs",
                            seen.parts.empty() ? "" : "every part once of ", seen.layer->bias),
                "set normalization.mode to reset or none");
  }

  /// Convolutions and the norms made for them have their channels second, everything else last.
  std::int64_t unit_axis(const Seen& seen, const at::Tensor& output, std::size_t number) const {
    const std::string kind = graph_.nodes()[number]->kind().toUnqualString();
    const bool second = seen.weight_dims >= 3 || kind == "batch_norm" || kind == "group_norm" ||
                        kind == "instance_norm";
    return second ? 1 : output.dim() - 1;
  }

  void observe(Seen& seen, const at::Tensor& output, const at::Tensor& bias, std::size_t number) {
    const std::int64_t axis = unit_axis(seen, output, number);
    const std::int64_t units = bias.numel();
    if (output.size(axis) != units)
      throw Error(ErrorKind::kInput, fmt::format("{}: {}", graph_.where(), graph_.describe(number)),
                  fmt::format("adds {} of {} units to an output of {}", seen.layer->bias, units,
                              output.size(axis)),
                  "set normalization.mode to reset or none");
    const std::int64_t first_unit = first_of(seen, bias);
    Part& part = seen.parts.try_emplace({first_unit, units}, Part{number, {}}).first->second;
    const ChannelMoments batch = ChannelMoments::of(output, axis);
    part.moments.add(batch);
    if (targets_ == nullptr) return;
    const LayerMoments& target = targets_->at(seen.layer->bias);
    std::vector<std::int64_t> shape(output.dim(), 1);
    shape[axis] = units;
    const auto beside = [&](const at::Tensor& values) {
      return values.view(shape).to(output.device(), output.scalar_type());
    };
    const at::Tensor mean = target.mean.narrow(0, first_unit, units);
    const at::Tensor scale =
        scale_to(target.deviation.narrow(0, first_unit, units), batch.variance().sqrt().cpu());
    at::Tensor rescaled = output;  // in place: whoever reads the output sees it
    rescaled.sub_(beside(batch.mean())).mul_(beside(scale)).add_(beside(mean));
  }

  const FlatGraph& graph_;
  BatchNormObserver batch_norm_;
  const OutputMoments* targets_;
  std::multimap<const c10::StorageImpl*, Seen> layers_;  // by the storage of their biases
};

void run_over(ScriptModel& model, const GraphRunner& runner, const Dataset& data,
              std::int64_t batch_size, at::Device device, NodeObserver& observer, Phase& phase) {
  for (std::int64_t begin = 0; begin < data.size(); begin += batch_size) {
    stop_here_if_requested();
    const std::int64_t count = std::min(batch_size, data.size() - begin);
    if (count == 1 && begin > 0) break;  // it has no variance
    runner.run({model.preprocessed(normalised_batch(data, begin, count).to(device))}, &observer);
    phase.update(begin + count);
  }
}

}  // namespace

std::vector<AffineLayer> affine_layers(const UnitGroups& groups, const TensorMap& parameters) {
  std::vector<AffineLayer> layers;
  std::set<std::string> taken;
  for (const UnitGroup& group : groups.groups) {
    if (group.members.empty()) continue;                // only orders the blocks of others
    std::map<std::string, const GroupMember*> weights;  // by layer
    std::set<std::string> biases;
    bool has_norm = false;
    for (const GroupMember& member : group.members) {
      if (member.role != MemberRole::kOut || !parameters.contains(member.parameter)) continue;
      if (const std::string layer = layer_of(member.parameter, kWeight); !layer.empty())
        weights[layer] = &member;
    }
    for (const GroupMember& member : group.members) {
      const std::string layer = layer_of(member.parameter, kBias);
      const auto weight = weights.find(layer);
      if (member.role != MemberRole::kOut || weight == weights.end()) continue;
      const auto bias = parameters.find(member.parameter);
      const std::int64_t outputs =
          parameters.at(layer + kWeight).size(weight->second->axis) * weight->second->groups;
      if (bias != parameters.end() && bias->second.dim() == 1 && bias->second.numel() == outputs)
        biases.insert(layer);
    }
    for (const auto& [layer, member] : weights)
      has_norm |= biases.contains(layer) && parameters.at(layer + kWeight).dim() == 1;
    for (const auto& [layer, member] : weights) {
      const std::string weight = layer + kWeight;
      if (!biases.contains(layer)) {
        if (has_norm || parameters.at(weight).dim() == 1) continue;
        throw Error(ErrorKind::kInput, groups.describe(group),
                    fmt::format("its units come from {}, which has no bias and no norm behind it, "
                                "so their activations cannot be shifted",
                                weight),
                    "set normalization.mode to reset or none");
      }
      if (taken.insert(weight).second)
        layers.push_back({weight, layer + kBias, member->axis, member->groups});
    }
    if (biases.empty() || weights.empty())
      throw Error(ErrorKind::kInput, groups.describe(group),
                  "has no layer with a weight and a bias to rescale its units by",
                  "set normalization.mode to reset or none");
  }
  return layers;
}

OutputMoments output_moments(ScriptModel& model, const std::vector<AffineLayer>& layers,
                             const Dataset& data, std::int64_t batch_size, at::Device device,
                             Progress& progress) {
  const at::NoGradGuard no_grad;
  model.train(false);
  const GraphRunner runner(model.module(), model.where());
  AffineObserver observer(runner.graph(), layers, model.parameters(), nullptr);
  Phase phase(progress, "measure activations", data.size(), "images");
  run_over(model, runner, data, batch_size, device, observer, phase);
  return observer.moments(model.where());
}

OutputMoments merged_moments(const std::vector<AffineLayer>& layers,
                             const std::vector<OutputMoments>& originals, const UnitGroups& groups,
                             const std::vector<Matching>& matchings, const ModelShares& shares) {
  const ParameterUses uses = parameter_uses(groups);
  OutputMoments merged;
  for (const AffineLayer& layer : layers) {
    std::vector<at::Tensor> means;
    std::vector<at::Tensor> deviations;
    for (const OutputMoments& original : originals) {
      means.push_back(original.at(layer.bias).mean);
      deviations.push_back(original.at(layer.bias).deviation);
    }
    const auto& use = uses.at(layer.bias);
    merged[layer.bias] = {merge_parameter(means, use, groups, matchings, shares),
                          merge_parameter(deviations, use, groups, matchings, shares)};
  }
  return merged;
}

OutputMoments blended_moments(const std::vector<OutputMoments>& moments,
                              const std::vector<double>& weights) {
  WS_CHECK(!moments.empty() && moments.size() == weights.size());
  OutputMoments blended;
  for (const auto& [bias, first] : moments.front()) {
    at::Tensor mean = first.mean * weights.front();
    at::Tensor deviation = first.deviation * weights.front();
    for (std::size_t i = 1; i < moments.size(); ++i) {
      const LayerMoments& other = moments[i].at(bias);
      mean = mean + other.mean * weights[i];
      deviation = deviation + other.deviation * weights[i];
    }
    blended[bias] = {mean, deviation.clamp_min(0)};
  }
  return blended;
}

std::int64_t repair(ScriptModel& merged, const std::vector<AffineLayer>& layers,
                    const OutputMoments& targets, const Dataset& data, std::int64_t batch_size,
                    at::Device device, Progress& progress) {
  const at::NoGradGuard no_grad;
  merged.train(false);
  const GraphRunner runner(merged.module(), merged.where());
  const TensorMap parameters = merged.parameters();
  AffineObserver observer(runner.graph(), layers, parameters, &targets);
  {
    Phase phase(progress, "repair activations", data.size(), "images");
    run_over(merged, runner, data, batch_size, device, observer, phase);
  }
  observer.batch_norm().store();
  const OutputMoments measured = observer.moments(merged.where());
  for (const AffineLayer& layer : layers) {
    const LayerMoments& now = measured.at(layer.bias);
    const LayerMoments& target = targets.at(layer.bias);
    const at::Tensor scale = scale_to(target.deviation, now.deviation);
    at::Tensor weight = parameters.at(layer.weight);
    at::Tensor bias = parameters.at(layer.bias);
    weight.copy_(scaled_outputs(weight, layer, scale));
    bias.copy_((bias.to(at::kDouble).cpu() - now.mean) * scale + target.mean);
  }
  return static_cast<std::int64_t>(layers.size());
}

}  // namespace weightsmith
