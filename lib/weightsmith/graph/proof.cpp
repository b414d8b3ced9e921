#include "weightsmith/graph/proof.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <set>

#include "weightsmith/core/error.h"
#include "weightsmith/core/rng.h"
#include "weightsmith/core/stop.h"
#include "weightsmith/model/graph_runner.h"
#include "weightsmith/model/tensors_in.h"

namespace weightsmith {
namespace {

constexpr double kLooseTolerance = 1e-3;  // for networks that refuse float64

/// Different from every other tensor and of about the same size; positive values (variances) stay
/// positive.
at::Tensor disturbed(const at::Tensor& tensor, double strength, const at::Generator& generator) {
  const at::Tensor x = tensor.to(at::kCPU, at::kDouble);
  if (x.numel() == 0 || !at::isfinite(x).all().item<bool>()) return x;
  const at::Tensor noise = at::empty(x.sizes(), at::kDouble).normal_(0.0, strength, generator);
  if ((x > 0).all().item<bool>()) return x * noise.exp();
  const double size = x.pow(2).mean().sqrt().item<double>();
  return x + (size > 0 ? size : 0.1) * noise;
}

std::vector<at::Tensor> as_double(const c10::IValue& outputs) {
  std::vector<at::Tensor> tensors;
  for (const at::Tensor& tensor : tensors_in(outputs))
    if (!tensor.is_complex()) tensors.push_back(tensor.detach().to(at::kDouble).clone());
  return tensors;
}

bool all_finite(const std::vector<at::Tensor>& tensors) {
  return std::all_of(tensors.begin(), tensors.end(), [](const at::Tensor& tensor) {
    return at::isfinite(tensor).all().item<bool>();
  });
}

double relative_change(const std::vector<at::Tensor>& before,
                       const std::vector<at::Tensor>& after) {
  double worst = 0;
  for (std::size_t i = 0; i < before.size(); ++i) {
    if (before[i].numel() == 0) continue;
    const double change = (after[i] - before[i]).abs().max().item<double>();
    const double size = before[i].abs().max().item<double>();
    if (std::isnan(change)) return std::numeric_limits<double>::infinity();
    if (change > 0) worst = std::max(worst, size > 0 ? change / size : change);
  }
  return worst;
}

/// A random order that is not the present one, where there is another: an order that moves nothing
/// proves nothing.
std::vector<std::int64_t> another_order(std::int64_t n, Rng& rng) {
  std::vector<std::int64_t> order = random_permutation(n, rng);
  while (n > 1 && std::is_sorted(order.begin(), order.end())) order = random_permutation(n, rng);
  return order;
}

/// Orders of units for some of the groups; the others stay, or follow the blocks they are within.
class Shuffle {
 public:
  Shuffle(const UnitGroups& groups, const std::set<std::size_t>& moving, Rng& rng) {
    std::map<std::string, std::size_t> by_name;
    for (std::size_t g = 0; g < groups.groups.size(); ++g) {
      const UnitGroup& group = groups.groups[g];
      by_name[group.name] = g;
      const bool moves = moving.contains(g);
      const auto order = [&](std::int64_t n) {
        if (moves) return another_order(n, rng);
        std::vector<std::int64_t> same(n);
        std::iota(same.begin(), same.end(), 0);
        return same;
      };
      const std::vector<std::int64_t> blocks =
          group.within.empty() ? order(group.blocks) : orders_[by_name.at(group.within)];
      const std::int64_t size = group.units / group.blocks;
      std::vector<std::int64_t>& units = orders_.emplace_back();
      for (const std::int64_t block : blocks)
        for (const std::int64_t unit : order(size)) units.push_back(block * size + unit);
    }
  }

  const std::vector<std::int64_t>& order(std::size_t group) const { return orders_[group]; }

 private:
  std::vector<std::vector<std::int64_t>> orders_;
};

/// A copy of the network whose parameters can be permuted and put back.
class Subject {
 public:
  Subject(const ScriptModel& model, const UnitGroups& groups, std::vector<c10::IValue> inputs,
          bool in_double, double strength, std::uint64_t seed)
      : groups_(groups), model_(model.clone()), inputs_(std::move(inputs)) {
    const at::Generator generator = at::detail::createCPUGenerator(seed);
    std::set<const void*> done;  // tensors under several names stay one
    for (const auto& [name, tensor] : model_.state_dict()) {
      if (!tensor.is_floating_point() || tensor.is_complex()) continue;
      if (!done.insert(tensor.unsafeGetTensorImpl()).second) continue;
      const bool requires_grad = tensor.requires_grad();
      at::Tensor target = tensor;
      const at::Tensor value =
          disturbed(tensor, strength, generator)
              .to(tensor.device(), in_double ? at::kDouble : tensor.scalar_type());
      target.set_data(value);
      target.set_requires_grad(requires_grad);
    }
    for (c10::IValue& input : inputs_)
      if (in_double && input.isTensor() && input.toTensor().is_floating_point())
        input = input.toTensor().to(at::kDouble);
    state_ = model_.state_dict();
    runner_.emplace(model_.module(), model_.where());
  }

  std::vector<at::Tensor> run() const { return as_double(runner_->run(inputs_)); }

  /// The outputs with units permuted; `left_out` names a group and its member that is forgotten.
  std::vector<at::Tensor> run_permuted(
      const Shuffle& shuffle,
      std::optional<std::pair<std::size_t, std::size_t>> left_out = std::nullopt) {
    TensorMap before;
    TensorMap after;
    const auto permute = [&](std::size_t g, bool in_groups) {
      const auto& order = shuffle.order(g);
      if (std::is_sorted(order.begin(), order.end())) return;
      for (std::size_t m = 0; m < groups_.groups[g].members.size(); ++m) {
        const GroupMember& member = groups_.groups[g].members[m];
        if (left_out == std::pair{g, m} || (member.groups > 1) != in_groups) continue;
        const at::Tensor& tensor = state_.at(member.parameter);
        if (!before.contains(member.parameter)) {
          before[member.parameter] = tensor.detach().clone();
          after[member.parameter] = before[member.parameter];
        }
        after[member.parameter] = permuted(after[member.parameter], member, order);
      }
    };
    // Inside a convolution's groups before its first axis moves them.
    for (const bool in_groups : {true, false})
      for (std::size_t g = 0; g < groups_.groups.size(); ++g) permute(g, in_groups);
    write(after);
    std::vector<at::Tensor> outputs = run();
    write(before);
    return outputs;
  }

 private:
  void write(const TensorMap& values) {
    for (const auto& [name, value] : values) state_.at(name).detach().copy_(value);
  }

  const UnitGroups& groups_;
  ScriptModel model_;
  std::vector<c10::IValue> inputs_;
  TensorMap state_;
  std::optional<GraphRunner> runner_;
};

/// A network that runs, with finite outputs and parameters as different as that allows.
std::unique_ptr<Subject> usable_subject(const ScriptModel& model, const UnitGroups& groups,
                                        const std::vector<c10::IValue>& inputs, bool in_double,
                                        std::uint64_t seed) {
  for (const double strength : {0.2, 0.02, 0.0}) {
    auto subject = std::make_unique<Subject>(model, groups, inputs, in_double, strength, seed);
    const std::vector<at::Tensor> outputs = subject->run();
    if (outputs.empty())
      throw Error(ErrorKind::kInput, model.where(), "the network returns no tensor");
    if (!all_finite(outputs)) continue;
    if (relative_change(outputs, subject->run()) > 0)
      throw Error(ErrorKind::kInput, model.where(),
                  "two runs on the same input give different outputs",
                  "export the network in eval mode, without sampling");
    return subject;
  }
  return nullptr;
}

}  // namespace

at::Tensor permuted(const at::Tensor& tensor, const GroupMember& member,
                    const std::vector<std::int64_t>& unit_at) {
  const auto units = static_cast<std::int64_t>(unit_at.size());
  const std::int64_t k = member.length / units;
  const std::int64_t axis_size = tensor.size(member.axis);
  const auto position = [&](std::int64_t unit, std::int64_t j) {
    return member.index.empty() ? member.offset + unit * k + j : member.index[unit * k + j];
  };
  // source[p]: what comes to position p of the axis, as the convolution's input counts it.
  std::vector<std::int64_t> source(axis_size * member.groups);
  std::iota(source.begin(), source.end(), 0);
  for (std::int64_t u = 0; u < units; ++u)
    for (std::int64_t j = 0; j < k; ++j) source[position(u, j)] = position(unit_at[u], j);
  if (member.groups == 1)
    return tensor.index_select(member.axis, at::tensor(source, at::kLong).to(tensor.device()));
  // A unit that comes from group h to group g brings its place inside h; the first axis then moves
  // the rows of h to g.
  const std::int64_t rows = tensor.size(0) / member.groups;
  at::Tensor result = tensor.clone();
  for (std::int64_t g = 0; g < member.groups; ++g) {
    std::vector<std::int64_t> inner(source.begin() + g * axis_size,
                                    source.begin() + (g + 1) * axis_size);
    const std::int64_t from = inner.front() / axis_size;
    for (std::int64_t& p : inner) {
      WS_CHECK(p / axis_size == from, member.parameter);
      p -= from * axis_size;
    }
    const at::Tensor index = at::tensor(inner, at::kLong).to(tensor.device());
    result.narrow(0, from * rows, rows)
        .copy_(tensor.narrow(0, from * rows, rows).index_select(1, index));
  }
  return result;
}

GroupProof prove_unit_groups(const ScriptModel& model, const UnitGroups& groups,
                             const std::vector<c10::IValue>& inputs, const ProofOptions& options,
                             Progress& progress) {
  const at::NoGradGuard no_grad;
  GroupProof proof;
  proof.tolerance = options.tolerance;
  std::unique_ptr<Subject> subject;
  try {
    subject = usable_subject(model, groups, inputs, true, options.seed);
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::kInput) throw;
    // Perhaps it mixes in constants of its own type: then that one must do.
    subject = usable_subject(model, groups, inputs, false, options.seed);
    proof.precision = "float32";
    proof.tolerance = kLooseTolerance;
  }
  if (!subject)
    throw Error(ErrorKind::kNumeric, model.where(), "its outputs are not finite",
                "check the weights, or give the input it is made for with --input");
  const std::vector<at::Tensor> expected = subject->run();
  Rng rng(options.seed, {0x73687566});
  std::set<std::size_t> all;
  for (std::size_t g = 0; g < groups.groups.size(); ++g) all.insert(g);
  const auto change = [&](const std::set<std::size_t>& moving) {
    stop_here_if_requested();
    return relative_change(expected, subject->run_permuted(Shuffle(groups, moving, rng)));
  };

  const auto steps = static_cast<std::int64_t>(options.each_group ? all.size() + 1 : 1);
  Phase phase(progress, "prove unit groups", steps, "permutations");
  const double together = change(all);
  proof.max_relative_change = together;
  phase.update(1);
  const bool look_closer = options.each_group || together > proof.tolerance;
  for (const std::size_t g : all) {
    if (!look_closer) break;
    const double alone = change({g});
    proof.max_relative_change = std::max(proof.max_relative_change, alone);
    if (alone > proof.tolerance) proof.failed.push_back(groups.groups[g].name);
    phase.update(static_cast<std::int64_t>(g) + 2);
  }
  if (together > proof.tolerance && proof.failed.empty()) {
    // Each holds alone: name those that do not go with the ones before them.
    std::set<std::size_t> holding;
    for (const std::size_t g : all) {
      holding.insert(g);
      if (change(holding) <= proof.tolerance) continue;
      holding.erase(g);
      proof.failed.push_back(groups.groups[g].name);
    }
    // Orders drawn again may spare what the first ones did not.
    if (proof.failed.empty())
      for (const UnitGroup& group : groups.groups) proof.failed.push_back(group.name);
  }

  // Leave out one axis of some weight at random until the outputs notice.
  std::vector<std::pair<std::size_t, std::size_t>> candidates;
  const TensorMap state = model.state_dict();
  for (const std::size_t g : all)
    for (std::size_t m = 0; m < groups.groups[g].members.size(); ++m)
      if (state.at(groups.groups[g].members[m].parameter).dim() > 1) candidates.emplace_back(g, m);
  constexpr int kTries = 5;
  for (int i = 0; i < kTries && !candidates.empty() && proof.negative_control <= proof.tolerance;
       ++i) {
    const Shuffle shuffle(groups, all, rng);
    const auto left_out = candidates[rng.below(candidates.size())];
    proof.negative_control =
        std::max(proof.negative_control,
                 relative_change(expected, subject->run_permuted(shuffle, left_out)));
  }
  if (candidates.empty()) proof.negative_control = std::numeric_limits<double>::infinity();
  return proof;
}

}  // namespace weightsmith
