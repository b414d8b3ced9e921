#include "weightsmith/merge/statistics.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <numeric>

#include "weightsmith/core/error.h"
#include "weightsmith/core/stop.h"
#include "weightsmith/match/similarity_accumulator.h"
#include "weightsmith/merge/transform.h"
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

[[noreturn]] void fail_use_counts(const GroupTap& tap, const UnitGroups& groups) {
  throw Error(ErrorKind::kInput,
              fmt::format("group {}, tap {}", groups.groups[tap.group].name, tap.tap.at),
              "the models use this layer a different number of times",
              "only networks of one architecture can be merged");
}

[[noreturn]] void fail_shape(const at::Tensor& value, const std::string& group, std::int64_t units,
                             const GroupTap& tap) {
  throw Error(ErrorKind::kInput, fmt::format("group {}, tap {}", group, tap.tap.at),
              fmt::format("its value of shape [{}] holds no axis of {} units",
                          fmt::join(value.sizes(), ", "), units),
              "name another tap in the group file");
}

/// The value as (units, k, observations…) where the tap says which axes carry the units.
at::Tensor units_first(const at::Tensor& value, const std::string& group, std::int64_t units,
                       const GroupTap& tap) {
  const auto& axes = tap.tap.axes;
  if (axes.back() >= value.dim()) fail_shape(value, group, units, tap);
  std::vector<std::int64_t> front(axes.size());
  std::iota(front.begin(), front.end(), 0);
  at::Tensor rows =
      value.movedim(axes, front).flatten(0, static_cast<std::int64_t>(axes.size()) - 1);
  if (!tap.tap.index.empty()) {
    if (*std::max_element(tap.tap.index.begin(), tap.tap.index.end()) >= rows.size(0))
      fail_shape(value, group, units, tap);
    rows = rows.index_select(0, at::tensor(tap.tap.index, at::kLong).to(value.device()));
  }
  if (rows.size(0) % units != 0) fail_shape(value, group, units, tap);
  return rows.unflatten(0, std::vector<std::int64_t>{units, rows.size(0) / units});
}

/// The tap's tensor as (observations…, units, …) and the axis of the units in it. `units`: of the
/// model that it is of.
std::pair<at::Tensor, std::int64_t> unit_axis(const at::Tensor& value, const std::string& group,
                                              std::int64_t units, const GroupTap& tap) {
  if (!tap.tap.axes.empty()) return {units_first(value, group, units, tap), 0};
  const std::int64_t n = units;
  if (tap.channels_second && value.dim() >= 3 && value.size(1) == n) return {value, 1};
  if (value.dim() >= 2 && value.size(-1) == n) return {value, value.dim() - 1};
  if (value.dim() >= 2 && value.size(-1) % n == 0) {
    std::vector<std::int64_t> shape = value.sizes().vec();
    shape.back() = n;
    shape.push_back(value.size(-1) / n);
    return {value.reshape(shape), value.dim() - 1};
  }
  fail_shape(value, group, units, tap);
}

std::vector<GroupTap> taps_of(const UnitGroups& groups, const TensorMap& parameters) {
  std::vector<GroupTap> taps;
  for (std::size_t g = 0; g < groups.groups.size(); ++g) {
    const UnitGroup& group = groups.groups[g];
    if (group.members.empty()) continue;  // blocks of other groups, compared by what these hold
    if (group.taps.empty())
      throw Error(ErrorKind::kInput, "group " + group.name,
                  "has no tap, so its activations cannot be seen",
                  "add one to the group file, or set space to weight");
    for (const UnitTap& tap : group.taps)
      taps.push_back({g, tap, consumer_is_spatial(tap.at, parameters)});
  }
  return taps;
}

/// One observer of all taps a model, which is put into eval mode.
std::vector<TapSet> observers_of(std::vector<ScriptModel>& models,
                                 const std::vector<GroupTap>& taps) {
  std::vector<std::string> names;
  for (const GroupTap& tap : taps) names.push_back(tap.tap.at);
  std::vector<TapSet> observers;
  observers.reserve(models.size());
  for (ScriptModel& model : models) {
    model.train(false);
    observers.emplace_back(model.module(), names, model.where());
  }
  return observers;
}

}  // namespace

void try_taps(std::vector<ScriptModel>& models, const UnitGroups& groups, const at::Tensor& batch) {
  const at::NoGradGuard no_grad;
  const std::vector<GroupTap> taps = taps_of(groups, models.front().parameters());
  const std::vector<TapSet> observers = observers_of(models, taps);
  const auto count = static_cast<std::int64_t>(models.size());
  std::vector<std::size_t> first_uses;
  for (std::size_t i = 0; i < models.size(); ++i) {
    std::vector<std::size_t> uses(taps.size(), 0);
    observers[i].run({models[i].preprocessed(batch)}, [&](std::size_t t, const at::Tensor& value) {
      const UnitGroup& group = groups.groups[taps[t].group];
      unit_axis(value, group.name, stack_of(group, count).units(static_cast<std::int64_t>(i)),
                taps[t]);
      ++uses[t];
    });
    if (i == 0) first_uses = uses;
    for (std::size_t t = 0; t < taps.size(); ++t)
      if (uses[t] != first_uses[t]) fail_use_counts(taps[t], groups);
  }
}

std::vector<Similarity> activation_similarity(std::vector<ScriptModel>& models,
                                              const UnitGroups& groups, const Dataset& data,
                                              std::int64_t batch_size, SimilarityMeasure measure,
                                              Similarity::Scope scope, at::Device device,
                                              Progress& progress) {
  const at::NoGradGuard no_grad;
  const std::vector<GroupTap> taps = taps_of(groups, models.front().parameters());
  const std::vector<TapSet> observers = observers_of(models, taps);
  std::vector<SimilarityAccumulator> accumulators;
  for (const UnitGroup& group : groups.groups)
    accumulators.emplace_back(stack_of(group, static_cast<std::int64_t>(models.size())), scope);

  Phase phase(progress, "activations", data.size(), "images");
  // A parameter that is used several times shows its tap as often: seen[t] lists the values of one
  // model in order.
  using Seen = std::vector<std::vector<at::Tensor>>;
  std::vector<Seen> earlier(models.size() - 1);
  for (std::int64_t begin = 0; begin < data.size(); begin += batch_size) {
    stop_here_if_requested();
    const std::int64_t count = std::min(batch_size, data.size() - begin);
    const at::Tensor batch = normalised_batch(data, begin, count).to(device);
    for (std::size_t i = 0; i + 1 < models.size(); ++i) {
      earlier[i].assign(taps.size(), {});
      observers[i].run(
          {models[i].preprocessed(batch)}, [&](std::size_t t, const at::Tensor& value) {
            earlier[i][t].push_back(value.clone());  // operators that follow may work in place
          });
    }
    std::vector<std::size_t> uses(taps.size(), 0);
    observers.back().run(
        {models.back().preprocessed(batch)}, [&](std::size_t t, const at::Tensor& value) {
          const UnitGroup& group = groups.groups[taps[t].group];
          const UnitStack stack = stack_of(group, static_cast<std::int64_t>(models.size()));
          std::vector<at::Tensor> features;
          std::int64_t axis = 0;
          const auto add = [&](const at::Tensor& tensor) {
            const auto model = static_cast<std::int64_t>(features.size());
            auto [shaped, unit] = unit_axis(tensor, group.name, stack.units(model), taps[t]);
            axis = unit;
            features.push_back(std::move(shaped));
          };
          for (Seen& seen : earlier) {
            if (uses[t] >= seen[t].size()) fail_use_counts(taps[t], groups);
            add(seen[t][uses[t]]);
          }
          add(value);
          ++uses[t];
          accumulators[taps[t].group].add(features, axis, taps[t].tap.at);
        });
    for (std::size_t t = 0; t < taps.size(); ++t)
      for (const Seen& seen : earlier)
        if (seen[t].size() != uses[t]) fail_use_counts(taps[t], groups);
    phase.update(begin + count);
  }

  std::vector<Similarity> result;
  for (std::size_t g = 0; g < accumulators.size(); ++g) {
    if (groups.groups[g].members.empty()) {
      result.push_back(no_similarity(
          stack_of(groups.groups[g], static_cast<std::int64_t>(models.size())), scope));
      continue;
    }
    const std::string where = "activations of group " + groups.groups[g].name;
    result.push_back(measure == SimilarityMeasure::kCorrelation ? accumulators[g].correlation(where)
                                                                : accumulators[g].cosine(where));
  }
  return result;
}

}  // namespace weightsmith
