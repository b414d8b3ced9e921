#include "weightsmith/merge/statistics.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <map>
#include <memory>
#include <numeric>
#include <utility>

#include "weightsmith/core/error.h"
#include "weightsmith/core/stop.h"
#include "weightsmith/match/similarity_accumulator.h"
#include "weightsmith/merge/transform.h"
#include "weightsmith/model/jit_runtime.h"
#include "weightsmith/model/taps.h"

namespace weightsmith {
namespace {

/// A tap of some group.
struct GroupTap {
  std::size_t group;
  UnitTap tap;
  bool channels_second;  ///< where no axes are given: space follows the units; else they come last
};

/// The consumer of a tap tells: a convolution's weight has axes of space, a linear layer's has
/// none. Other taps are told apart by the value itself.
bool consumer_is_spatial(const std::string& tap, const TensorMap& parameters) {
  const auto parameter = parameters.find(tap.substr(0, tap.find_last_of('/')));
  return parameter == parameters.end() || parameter->second.dim() >= 3;
}

/// How errors name a tap.
std::string describe(const GroupTap& tap, const UnitGroups& groups) {
  return fmt::format("{}, tap \"{}\"", groups.describe(groups.groups[tap.group]), tap.tap.at);
}

[[noreturn]] void fail_use_counts(const GroupTap& tap, const UnitGroups& groups) {
  throw Error(ErrorKind::kInput, describe(tap, groups),
              "the models use this layer a different number of times",
              "only networks of one architecture can be merged");
}

[[noreturn]] void fail_shape(const at::Tensor& value, const UnitGroups& groups, std::int64_t units,
                             const GroupTap& tap) {
  throw Error(ErrorKind::kInput, describe(tap, groups),
              fmt::format("its value of shape [{}] holds no axis of {} units",
                          fmt::join(value.sizes(), ", "), units),
              "name another tap in the group file");
}

/// The value as (units, k, observations…) where the tap says which axes carry the units.
at::Tensor units_first(const at::Tensor& value, const UnitGroups& groups, std::int64_t units,
                       const GroupTap& tap) {
  const auto& axes = tap.tap.axes;
  if (axes.back() >= value.dim()) fail_shape(value, groups, units, tap);
  std::vector<std::int64_t> front(axes.size());
  std::iota(front.begin(), front.end(), 0);
  at::Tensor rows =
      value.movedim(axes, front).flatten(0, static_cast<std::int64_t>(axes.size()) - 1);
  if (!tap.tap.index.empty()) {
    if (*std::max_element(tap.tap.index.begin(), tap.tap.index.end()) >= rows.size(0))
      fail_shape(value, groups, units, tap);
    rows = rows.index_select(0, at::tensor(tap.tap.index, at::kLong).to(value.device()));
  }
  if (rows.size(0) % units != 0) fail_shape(value, groups, units, tap);
  return rows.unflatten(0, std::vector<std::int64_t>{units, rows.size(0) / units});
}

/// The tap's tensor as (observations…, units, …) and the axis of the units in it. `units`: of the
/// model that it is of.
std::pair<at::Tensor, std::int64_t> unit_axis(const at::Tensor& value, const UnitGroups& groups,
                                              std::int64_t units, const GroupTap& tap) {
  if (!tap.tap.axes.empty()) return {units_first(value, groups, units, tap), 0};
  const std::int64_t n = units;
  if (tap.channels_second && value.dim() >= 3 && value.size(1) == n) return {value, 1};
  if (value.dim() >= 2 && value.size(-1) == n) return {value, value.dim() - 1};
  if (value.dim() >= 2 && value.size(-1) % n == 0) {
    std::vector<std::int64_t> shape = value.sizes().vec();
    shape.back() = n;
    shape.push_back(value.size(-1) / n);
    return {value.reshape(shape), value.dim() - 1};
  }
  fail_shape(value, groups, units, tap);
}

std::vector<GroupTap> taps_of(const UnitGroups& groups, const TensorMap& parameters) {
  std::vector<GroupTap> taps;
  for (std::size_t g = 0; g < groups.groups.size(); ++g) {
    const UnitGroup& group = groups.groups[g];
    if (group.members.empty()) continue;  // blocks of other groups, compared by what these hold
    if (group.taps.empty())
      throw Error(ErrorKind::kInput, groups.describe(group),
                  "has no tap, so its activations cannot be seen",
                  "add one to the group file, or set space to weight");
    for (const UnitTap& tap : group.taps)
      taps.push_back({g, tap, consumer_is_spatial(tap.at, parameters)});
  }
  return taps;
}

/// One observer of all taps a model, which is put into eval mode.
std::vector<TapSet> observers_of(std::vector<ScriptModel>& models, const UnitGroups& groups,
                                 const std::vector<GroupTap>& taps) {
  std::vector<std::string> names;
  std::vector<std::string> owners;
  for (const GroupTap& tap : taps) {
    names.push_back(tap.tap.at);
    owners.push_back(groups.describe(groups.groups[tap.group]));
  }
  std::vector<TapSet> observers;
  observers.reserve(models.size());
  for (ScriptModel& model : models) {
    model.train(false);
    observers.emplace_back(model.module(), names, model.where(), GraphRunnerOptions(), owners);
  }
  return observers;
}

/// The groups that each pass over the data serves, see StatisticsOptions::memory.
std::vector<std::vector<std::size_t>> passes_over(const UnitGroups& groups, std::int64_t models,
                                                  const StatisticsOptions& options) {
  std::vector<std::vector<std::size_t>> passes;
  std::int64_t bytes = 0;
  for (std::size_t g = 0; g < groups.groups.size(); ++g) {
    if (groups.groups[g].members.empty()) continue;
    const std::int64_t own =
        SimilarityAccumulator::bytes(stack_of(groups.groups[g], models), options.scope);
    if (passes.empty() || bytes + own > options.memory) {
      passes.emplace_back();
      bytes = 0;
    }
    passes.back().push_back(g);
    bytes += own;
  }
  return passes;
}

/// What one pass over the data adds up.
class Collector {
 public:
  /// `taps`: of all groups; those of the groups in `pass` are looked at.
  Collector(std::vector<ScriptModel>& models, const UnitGroups& groups,
            const std::vector<GroupTap>& taps, const std::vector<std::size_t>& pass,
            Similarity::Scope scope)
      : models_(models), groups_(groups) {
    for (const GroupTap& tap : taps)
      if (std::find(pass.begin(), pass.end(), tap.group) != pass.end()) taps_.push_back(tap);
    observers_ = observers_of(models, groups, taps_);
    const auto workspace = std::make_shared<SimilarityAccumulator::Workspace>();
    for (const std::size_t g : pass) accumulators_.try_emplace(g, stack(g), scope, workspace);
  }

  void add(const at::Tensor& batch) {
    // A parameter that is used several times shows its tap as often: earlier[i][t] lists the values
    // of model i in order.
    std::vector<std::vector<std::vector<at::Tensor>>> earlier(models_.size() - 1);
    for (std::size_t i = 0; i + 1 < models_.size(); ++i) {
      earlier[i].resize(taps_.size());
      observers_[i].run(
          {models_[i].preprocessed(batch)}, [&](std::size_t t, const at::Tensor& value) {
            earlier[i][t].push_back(value.clone());  // operators that follow may work in place
          });
    }
    std::vector<std::size_t> uses(taps_.size(), 0);
    observers_.back().run({models_.back().preprocessed(batch)},
                          [&](std::size_t t, const at::Tensor& value) {
                            std::vector<at::Tensor> values;
                            for (auto& seen : earlier) {
                              if (uses[t] >= seen[t].size()) fail_use_counts(taps_[t], groups_);
                              values.push_back(std::exchange(seen[t][uses[t]], {}));
                            }
                            values.push_back(value);
                            ++uses[t];
                            add(taps_[t], values);
                          });
    for (std::size_t t = 0; t < taps_.size(); ++t)
      for (const auto& seen : earlier)
        if (seen[t].size() != uses[t]) fail_use_counts(taps_[t], groups_);
  }

  /// The similarity of a group of this pass, whose sums are given up.
  PackedSimilarity take(std::size_t g, SimilarityMeasure measure) {
    const auto node = accumulators_.extract(g);
    const std::string where = "activations of group " + groups_.groups[g].name;
    return measure == SimilarityMeasure::kCorrelation ? node.mapped().packed_correlation(where)
                                                      : node.mapped().packed_cosine(where);
  }

 private:
  UnitStack stack(std::size_t g) const {
    return stack_of(groups_.groups[g], static_cast<std::int64_t>(models_.size()));
  }

  /// `values`: what the tap has shown, one a model.
  void add(const GroupTap& tap, const std::vector<at::Tensor>& values) {
    const UnitStack units = stack(tap.group);
    std::vector<at::Tensor> features;
    std::int64_t axis = 0;
    for (const at::Tensor& value : values) {
      auto [shaped, unit] =
          unit_axis(value, groups_, units.units(static_cast<std::int64_t>(features.size())), tap);
      axis = unit;
      features.push_back(std::move(shaped));
    }
    accumulators_.at(tap.group).add(features, axis, tap.tap.at);
  }

  std::vector<ScriptModel>& models_;
  const UnitGroups& groups_;
  std::vector<GroupTap> taps_;
  std::vector<TapSet> observers_;  // one a model
  std::map<std::size_t, SimilarityAccumulator> accumulators_;
};

}  // namespace

void try_taps(std::vector<ScriptModel>& models, const UnitGroups& groups, const at::Tensor& batch) {
  const at::NoGradGuard no_grad;
  const std::vector<GroupTap> taps = taps_of(groups, models.front().parameters());
  const std::vector<TapSet> observers = observers_of(models, groups, taps);
  const auto count = static_cast<std::int64_t>(models.size());
  std::vector<std::size_t> first_uses;
  for (std::size_t i = 0; i < models.size(); ++i) {
    std::vector<std::size_t> uses(taps.size(), 0);
    observers[i].run({models[i].preprocessed(batch)}, [&](std::size_t t, const at::Tensor& value) {
      const UnitGroup& group = groups.groups[taps[t].group];
      unit_axis(value, groups, stack_of(group, count).units(static_cast<std::int64_t>(i)), taps[t]);
      ++uses[t];
    });
    if (i == 0) first_uses = uses;
    for (std::size_t t = 0; t < taps.size(); ++t)
      if (uses[t] != first_uses[t]) fail_use_counts(taps[t], groups);
  }
}

std::vector<PackedSimilarity> activation_similarity(std::vector<ScriptModel>& models,
                                                    const UnitGroups& groups, const Dataset& data,
                                                    const StatisticsOptions& options,
                                                    at::Device device, Progress& progress) {
  const at::NoGradGuard no_grad;
  const auto count = static_cast<std::int64_t>(models.size());
  const std::vector<GroupTap> taps = taps_of(groups, models.front().parameters());
  const std::vector<std::vector<std::size_t>> passes = passes_over(groups, count, options);
  std::vector<PackedSimilarity> result(groups.groups.size());
  for (std::size_t g = 0; g < result.size(); ++g)
    if (groups.groups[g].members.empty())
      result[g] = packed(no_similarity(stack_of(groups.groups[g], count), options.scope));

  Phase phase(progress, "activations", data.size() * static_cast<std::int64_t>(passes.size()),
              "images");
  std::int64_t done = 0;
  for (const std::vector<std::size_t>& pass : passes) {
    Collector collector(models, groups, taps, pass, options.scope);
    for (std::int64_t begin = 0; begin < data.size(); begin += options.batch_size) {
      stop_here_if_requested();
      const std::int64_t images = std::min(options.batch_size, data.size() - begin);
      collector.add(normalised_batch(data, begin, images).to(device));
      done += images;
      phase.update(done);
    }
    for (const std::size_t g : pass) result[g] = collector.take(g, options.measure);
    return_freed_memory();
  }
  return result;
}

std::int64_t statistics_bytes(const UnitGroups& groups, std::int64_t models,
                              const StatisticsOptions& options) {
  std::int64_t sums = 0;
  std::int64_t results = 0;
  for (const std::vector<std::size_t>& pass : passes_over(groups, models, options)) {
    std::int64_t bytes = 0;
    for (const std::size_t g : pass) {
      const UnitStack stack = stack_of(groups.groups[g], models);
      bytes += SimilarityAccumulator::bytes(stack, options.scope);
      results += packed_size(stack, options.scope) * static_cast<std::int64_t>(sizeof(float));
    }
    sums = std::max(sums, bytes);
  }
  return sums + results;
}

}  // namespace weightsmith
