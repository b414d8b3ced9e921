// Times the phases of a merge of two ResNet-50 against what they cannot do without, in one run: the
// ratios depend on the machine far less than the times. Best of three each, with the worst beside
// it.
//
//   merge_bench FOLDER [THREADS]
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "weightsmith/core/blas_kernels.h"
#include "weightsmith/core/progress.h"
#include "weightsmith/data/dataset.h"
#include "weightsmith/eval/normalization.h"
#include "weightsmith/merge/mudsc.h"
#include "weightsmith/merge/networks.h"
#include "weightsmith/merge/statistics.h"
#include "weightsmith/merge/transform.h"
#include "weightsmith/model/builtin.h"
#include "weightsmith/model/jit_runtime.h"
#include "weightsmith/model/taps.h"

using namespace weightsmith;

namespace {

constexpr int kRepeats = 3;
constexpr std::int64_t kSamples = 128;
constexpr std::int64_t kBatch = 64;

struct Times {
  double best = std::numeric_limits<double>::infinity();
  double worst = 0;
};

Times time_of(const std::function<void()>& work) {
  Times times;
  for (int k = 0; k < kRepeats; ++k) {
    const auto start = std::chrono::steady_clock::now();
    work();
    const double s =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    times.best = std::min(times.best, s);
    times.worst = std::max(times.worst, s);
  }
  return times;
}

void print_row(const std::string& phase, const Times& ours, const char* floor, const Times& least) {
  fmt::print("| {} | {:.3f} s | {} | {:.3f} s | {:.2f} | {:.2f} to {:.2f} |\n", phase, ours.best,
             floor, least.best, ours.best / least.best, ours.best / least.worst,
             ours.worst / least.best);
  std::fflush(stdout);
}

/// Multiplications and additions of all products of units with units, each pair once, of the groups
/// that are compared, each as often as that.
double product_flops(const NetworkStates& states, const UnitGroups& groups,
                     const std::vector<std::int64_t>& compared) {
  double flops = 0;
  for (std::size_t g = 0; g < groups.groups.size(); ++g) {
    const UnitGroup& group = groups.groups[g];
    const auto stacked = static_cast<double>(group.units) * 2;
    double columns = 0;
    for (const GroupMember& member : group.members) {
      if (states.buffers.contains(member.parameter)) continue;
      const at::Tensor& tensor = states.models.front().at(member.parameter);
      columns += static_cast<double>(tensor.numel() / tensor.size(member.axis) * member.length) /
                 static_cast<double>(group.units);
    }
    flops += stacked * (stacked + 1) / 2 * columns * 2 * static_cast<double>(compared[g]);
  }
  return flops;
}

/// The products that comparing activations takes, with nothing around them.
class BareProducts {
 public:
  BareProducts(std::vector<ScriptModel>& models, const UnitGroups& groups,
               const at::Tensor& batch) {
    std::vector<std::string> names;
    for (const UnitGroup& group : groups.groups) {
      for (const UnitTap& tap : group.taps) {
        names.push_back(tap.at);
        units_.push_back(group.units);
      }
    }
    std::int64_t largest = 0;
    const TapSet taps(models.front().module(), names, models.front().where());
    taps.run({batch}, [&](std::size_t t, const at::Tensor& value) {
      shapes_.push_back({units_[t], value.numel() / units_[t]});
      largest = std::max(largest, value.numel());
    });
    values_ = at::randn({2 * largest});
  }

  /// For one batch: each model with itself and with the other.
  void run() const {
    for (const auto& [units, positions] : shapes_) {
      const at::Tensor both =
          values_.narrow(0, 0, 2 * units * positions).view({2, units, positions});
      for (const auto& [i, j] : {std::pair{0, 0}, {0, 1}, {1, 1}}) at::mm(both[i], both[j].t());
    }
  }

 private:
  std::vector<std::int64_t> units_;
  std::vector<std::pair<std::int64_t, std::int64_t>> shapes_;
  at::Tensor values_;
};

double peak_gflops() {
  constexpr std::int64_t kSide = 2048;
  const at::Tensor a = at::randn({kSide, kSide});
  const at::Tensor b = at::randn({kSide, kSide});
  at::Tensor c = at::empty({kSide, kSide});
  const Times times = time_of([&] { at::mm_out(c, a, b.t()); });
  return 2.0 * kSide * kSide * kSide / times.best / 1e9;
}

}  // namespace

int main(int argc, char** argv) {
  restart_with_better_blas_kernels(argv);
  keep_freed_memory();
  at::set_num_threads(argc > 2 ? std::atoi(argv[2]) : 2);
  const at::NoGradGuard no_grad;
  const nlohmann::json options = builtin_options("resnet50", {{"stem", "imagenet"}});
  std::vector<ScriptModel> models;
  for (const std::uint64_t seed : {1, 2})
    models.emplace_back(build_builtin("resnet50", options, seed), fmt::format("resnet50-{}", seed));
  Dataset data;
  at::manual_seed(1);
  data.images = at::randn({kSamples, 3, 64, 64});
  data.labels = at::zeros({kSamples}, at::kLong);
  data.classes = 1;
  data.where = "noise";
  const at::Tensor batch = data.images.narrow(0, 0, kBatch);
  const UnitGroups groups = unit_groups_for(models.front(), "auto", {batch.narrow(0, 0, 2)});
  const NetworkStates states = states_of(models);
  NoProgress progress;
  // Statistics that fit nothing would make activations denormal, and everything slow.
  for (ScriptModel& model : models) reset_batch_norm(model, data, kBatch, at::kCPU, progress);

  fmt::print("two ResNet-50, {} samples of 64 x 64, {} threads\n\n", kSamples,
             at::get_num_threads());
  fmt::print("| phase | time | floor | time | ratio | spread |\n|---|---:|---|---:|---:|---:|\n");

  std::vector<PackedSimilarity> activation;
  const Times statistics = time_of([&] {
    activation =
        activation_similarity(models, groups, data, {.batch_size = kBatch}, at::kCPU, progress);
  });
  for (ScriptModel& model : models) model.train(false);
  const BareProducts products(models, groups, batch);
  const Times floor = time_of([&] {
    for (std::int64_t begin = 0; begin < kSamples; begin += kBatch) {
      const at::Tensor inputs = normalised_batch(data, begin, kBatch);
      for (ScriptModel& model : models) model.forward(inputs);
      products.run();
    }
  });
  print_row("statistics", statistics, "two forwards and the products", floor);

  // A run begins with matchings by activations, which take no products (they were part of the
  // statistics), and then sweeps. In the first sweep every group is compared and matched once.
  for (const MergeMethod method : {MergeMethod::kAlign, MergeMethod::kZip}) {
    const bool all_pairs = method == MergeMethod::kZip;
    const std::string name = all_pairs ? "zip" : "align";
    MatchOptions match;
    match.iterations.max = 1;
    const auto time_in = [&](MergeSpace space) {
      match.variant = {method, space, 0.5};
      return time_of([&] { match_units(states, groups, activation, match, progress); });
    };
    const Times start = time_in(MergeSpace::kActivation);
    const Times both = time_in(MergeSpace::kDual);
    const Times sweep{both.best - start.best, both.worst - start.best};
    const double peak_flops = peak_gflops() * 1e9;
    const std::vector<std::int64_t> each_once(groups.groups.size(), 1);
    const double pairs_once = product_flops(states, groups, each_once) / peak_flops;
    // Of two models half of all pairs are between them, and each of the others stands twice in a
    // product of all units with all, which is what a general product computes.
    const double part = all_pairs ? 2 : 0.5;
    const double least = part * pairs_once;
    const char* const peak = "products at the peak";
    print_row("one sweep of " + name, sweep, peak, {least, least});
    print_row("with the matching by activations before it", both, peak, {least, least});
    if (all_pairs)
      print_row("one sweep of zip", sweep, "products of each pair once", {pairs_once, pairs_once});
    // Sweeps go on until they gain nothing, and later ones pass groups by whose neighbours kept
    // their matchings: a floor with all products, and one with those that were made.
    match.iterations = {};
    MatchResult result;
    const Times whole =
        time_of([&] { result = match_units(states, groups, activation, match, progress); });
    const std::size_t sweeps = result.objective_history.size();
    const double of_all = least * static_cast<double>(sweeps);
    const double made = part * product_flops(states, groups, result.compared) / peak_flops;
    const std::string run = fmt::format("all {} sweeps of {}, from activations on", sweeps, name);
    print_row(run, whole, peak, {of_all, of_all});
    print_row(run, whole, "products that were made, at the peak", {made, made});
  }

  std::vector<Matching> matchings;
  MatchOptions match;
  match.variant = {MergeMethod::kZip, MergeSpace::kActivation, 0.5};
  matchings = match_units(states, groups, activation, match, progress).matchings;
  const Times apply = time_of([&] { merge_states(states.models, groups, matchings); });
  const Times copy = time_of([&] {
    for (const TensorMap& state : states.models)
      for (const auto& [name, tensor] : state) tensor.clone();
  });
  print_row("application of zip", apply, "copy of the models", copy);
  return 0;
}
