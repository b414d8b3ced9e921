#include "weightsmith/merge/repair.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>
#include <torch/csrc/jit/ir/ir.h>

#include <algorithm>
#include <set>

#include "weightsmith/core/error.h"
#include "weightsmith/core/stop.h"
#include "weightsmith/eval/batch_norm_observer.h"
#include "weightsmith/eval/channel_moments.h"
#include "weightsmith/model/graph_runner.h"

namespace weightsmith {
namespace {

constexpr const char* kWeight = ".weight";
constexpr const char* kBias = ".bias";
constexpr double kDeadShare = 1e-3;

/// "conv1" of "conv1.weight"; "" for another ending.
std::string layer_of(const std::string& parameter, const std::string& ending) {
  return parameter.ends_with(ending) ? parameter.substr(0, parameter.size() - ending.size()) : "";
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
      layers_[bias.unsafeGetTensorImpl()] = {&layer, parameters.at(layer.weight).dim(), 0, {}};
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
      const auto it = layers_.find(input.toTensor().unsafeGetTensorImpl());
      if (it == layers_.end()) continue;
      const at::Tensor output = outputs[0].toTensor();
      if (output.dim() >= 2) observe(it->second, output, input.toTensor().numel(), number);
      return;
    }
  }

  /// Throws for a layer that was never seen.
  OutputMoments moments(const std::string& where) const {
    OutputMoments result;
    const Seen* broken = nullptr;  // the first one: those behind it follow
    for (const auto& [key, seen] : layers_) {
      if (seen.moments.count() == 0)
        throw Error(
            ErrorKind::kInput, where,
            fmt::format("the network does not add {} to a layer's outputs", seen.layer->bias),
            "set normalization.mode to reset or none");
      result[seen.layer->bias] = {seen.moments.mean().cpu(), seen.moments.variance().sqrt().cpu()};
      if (!at::isfinite(result[seen.layer->bias].deviation).all().item<bool>() &&
          (broken == nullptr || seen.number < broken->number))
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
  struct Seen {
    const AffineLayer* layer = nullptr;
    std::int64_t weight_dims = 0;
    std::size_t number = 0;  // of the node that adds the bias
    ChannelMoments moments;
  };

  /// Convolutions and the norms made for them have their channels second, everything else last.
  std::int64_t unit_axis(const Seen& seen, const at::Tensor& output, std::size_t number) const {
    const std::string kind = graph_.nodes()[number]->kind().toUnqualString();
    const bool second = seen.weight_dims >= 3 || kind == "batch_norm" || kind == "group_norm" ||
                        kind == "instance_norm";
    return second ? 1 : output.dim() - 1;
  }

  void observe(Seen& seen, const at::Tensor& output, std::int64_t units, std::size_t number) {
    const std::int64_t axis = unit_axis(seen, output, number);
    if (output.size(axis) != units)
      throw Error(ErrorKind::kInput, graph_.describe(number),
                  fmt::format("adds {} of {} units to an output of {}", seen.layer->bias, units,
                              output.size(axis)),
                  "set normalization.mode to reset or none");
    if (seen.moments.count() == 0) seen.number = number;
    const ChannelMoments batch = ChannelMoments::of(output, axis);
    seen.moments.add(batch);
    if (targets_ == nullptr) return;
    const LayerMoments& target = targets_->at(seen.layer->bias);
    std::vector<std::int64_t> shape(output.dim(), 1);
    shape[axis] = units;
    const auto beside = [&](const at::Tensor& values) {
      return values.view(shape).to(output.device(), output.scalar_type());
    };
    const at::Tensor scale = scale_to(target.deviation, batch.variance().sqrt().cpu());
    at::Tensor rescaled = output;  // in place: whoever reads the output sees it
    rescaled.sub_(beside(batch.mean())).mul_(beside(scale)).add_(beside(target.mean));
  }

  const FlatGraph& graph_;
  BatchNormObserver batch_norm_;
  const OutputMoments* targets_;
  std::map<const c10::TensorImpl*, Seen> layers_;
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
        throw Error(ErrorKind::kInput, "group " + group.name,
                    fmt::format("its units come from {}, which has no bias and no norm behind it, "
                                "so their activations cannot be shifted",
                                weight),
                    "set normalization.mode to reset or none");
      }
      if (taken.insert(weight).second)
        layers.push_back({weight, layer + kBias, member->axis, member->groups});
    }
    if (biases.empty() || weights.empty())
      throw Error(ErrorKind::kInput, "group " + group.name,
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
