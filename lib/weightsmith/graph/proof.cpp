#include "weightsmith/graph/proof.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <set>

#include "weightsmith/core/error.h"
#include "weightsmith/core/rng.h"
#include "weightsmith/core/stop.h"
#include "weightsmith/graph/unit_flow.h"
#include "weightsmith/graph/unit_orders.h"
#include "weightsmith/model/graph_runner.h"
#include "weightsmith/model/tensors_in.h"

namespace weightsmith {
namespace {

constexpr double kLooseTolerance = 1e-4;  // for networks that refuse float64

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

at::Tensor as_double(const at::Tensor& tensor) {
  const at::Tensor x = tensor.detach();
  return (x.is_complex() ? at::view_as_real(x.resolve_conj()) : x).to(at::kDouble).clone();
}

bool is_continuous(const at::Tensor& tensor) {
  return tensor.is_floating_point() || tensor.is_complex();
}

/// Knows of every tensor that holds integers or booleans, or is computed from such alone, which
/// floating tensors decided it.
class Deciders : public NodeObserver {
 public:
  void after(std::size_t /*number*/, const std::vector<c10::IValue>& inputs,
             const std::vector<c10::IValue>& outputs) override {
    const std::vector<at::Tensor> given = tensors_in(inputs);
    std::vector<at::Tensor> found;
    bool all_discrete = !given.empty();
    for (const at::Tensor& tensor : given) {
      const auto known = known_.find(tensor.unsafeGetTensorImpl());
      const bool is_discrete = known != known_.end() || !is_continuous(tensor);
      all_discrete &= is_discrete;
      if (!is_discrete) found.push_back(tensor);
      if (known != known_.end())
        found.insert(found.end(), known->second.floats.begin(), known->second.floats.end());
    }
    std::optional<std::vector<at::Tensor>> copies;
    for (const at::Tensor& result : tensors_in(outputs)) {
      if (is_continuous(result) && !all_discrete) continue;
      if (known_.contains(result.unsafeGetTensorImpl())) continue;
      if (!copies) copies = once_each(found);
      known_[result.unsafeGetTensorImpl()] = {result, *copies};
    }
  }

  /// Null for a tensor that is no such.
  const std::vector<at::Tensor>* of(const at::Tensor& tensor) const {
    const auto known = known_.find(tensor.unsafeGetTensorImpl());
    return known == known_.end() ? nullptr : &known->second.floats;
  }

 private:
  struct Discrete {
    at::Tensor tensor;  // keeps its address from being used again
    std::vector<at::Tensor> floats;
  };

  /// What a network changes in place later must not change here.
  std::vector<at::Tensor> once_each(const std::vector<at::Tensor>& tensors) {
    std::vector<at::Tensor> copies;
    std::set<const void*> seen;
    for (const at::Tensor& tensor : tensors)
      if (seen.insert(tensor.unsafeGetTensorImpl()).second)
        copies.push_back(copies_.contains(tensor.unsafeGetTensorImpl()) ? tensor : copy(tensor));
    return copies;
  }

  at::Tensor copy(const at::Tensor& tensor) {
    at::Tensor copied = tensor.detach().clone();
    copies_.insert(copied.unsafeGetTensorImpl());
    return copied;
  }

  std::map<const void*, Discrete> known_;
  std::set<const void*> copies_;
};

/// The values of a tensor whatever their order; those that are not finite do not count.
at::Tensor sorted_values(const at::Tensor& tensor) {
  const at::Tensor values = as_double(tensor).flatten();
  return std::get<0>(at::nan_to_num(values, 0.0, 0.0, 0.0).sort());
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

/// A copy of the network whose parameters can be permuted and put back.
class Subject {
 public:
  Subject(const ScriptModel& model, const UnitGroups& groups, std::vector<c10::IValue> inputs,
          bool in_double, double strength, std::uint64_t seed)
      : groups_(groups), model_(model.clone()), inputs_(std::move(inputs)) {
    const at::Generator generator = at::detail::createCPUGenerator(seed);
    std::map<const void*, at::Tensor> done;  // tensors under several names stay one
    const TensorMap buffers = model_.buffers();
    std::set<std::string> moved;
    for (const UnitGroup& group : groups.groups)
      for (const GroupMember& member : group.members) moved.insert(member.parameter);
    for (const auto& [name, tensor] : model_.state_dict()) {
      at::Tensor& value = done[tensor.unsafeGetTensorImpl()];
      const bool is_new = !value.defined();
      if (is_new) value = tensor.detach();
      // Constants are what they are: equal slopes may be why heads can be exchanged.
      const bool is_constant =
          buffers.contains(name) && !is_trained_buffer(name) && !moved.contains(name);
      if (is_new && tensor.is_floating_point() && !tensor.is_complex()) {
        if (!is_constant) value = disturbed(tensor, strength, generator).to(tensor.options());
        const bool requires_grad = tensor.requires_grad();
        at::Tensor target = tensor;
        target.set_data(value.to(in_double ? at::kDouble : value.scalar_type(),
                                 /*non_blocking=*/false, /*copy=*/true));
        target.set_requires_grad(requires_grad);
      }
      values_[name] = value;
    }
    state_ = model_.state_dict();
    for (c10::IValue& input : inputs_)
      if (in_double && input.isTensor() && input.toTensor().is_floating_point())
        input = input.toTensor().to(at::kDouble);
    runner_.emplace(model_.module(), model_.where());
    for (const at::Tensor& output : tensors_in(runner_->run(inputs_)))
      seems_discrete_ |= !is_continuous(output) || is_whole(output);
  }

  /// The outputs, and beside those made of integers what decided them.
  std::vector<at::Tensor> run() {
    Deciders deciders;
    const std::vector<at::Tensor> outputs =
        tensors_in(runner_->run(inputs_, seems_discrete_ ? &deciders : nullptr));
    std::vector<at::Tensor> compared;
    weak_outputs_ = 0;
    for (const at::Tensor& output : outputs) {
      compared.push_back(as_double(output));
      const std::vector<at::Tensor>* floats = deciders.of(output);
      if (floats == nullptr && is_continuous(output)) continue;
      if (floats == nullptr || floats->empty()) ++weak_outputs_;
      if (floats != nullptr)
        for (const at::Tensor& tensor : *floats) compared.push_back(sorted_values(tensor));
    }
    return compared;
  }

  /// Of the last run.
  std::int64_t weak_outputs() const { return weak_outputs_; }

  /// The outputs with units permuted; `left_out` names a member that is forgotten.
  std::vector<at::Tensor> run_permuted(const UnitOrders& orders,
                                       std::optional<MemberIndex> left_out = std::nullopt) {
    return run_with(
        [&](const auto& take) { permute_state(values_, groups_, orders, left_out, take); });
  }

  /// The outputs with every value of one parameter changed at random.
  std::vector<at::Tensor> run_disturbed(const std::string& parameter, std::uint64_t seed) {
    const at::Generator generator = at::detail::createCPUGenerator(seed);
    return run_with([&](const auto& take) {
      take(parameter, disturbed(values_.at(parameter), 0.2, generator));
    });
  }

 private:
  /// Floating, but perhaps made of integers.
  static bool is_whole(const at::Tensor& tensor) {
    return !tensor.is_complex() && (tensor == tensor.round()).all().item<bool>();
  }

  using Take = std::function<void(const std::string& name, const at::Tensor& value)>;

  /// The outputs with the values that `give` hands over, one at a time: there are never two copies
  /// of the network in the precision of the proof.
  std::vector<at::Tensor> run_with(const std::function<void(const Take&)>& give) {
    std::map<const void*, std::string> changed;  // a tensor under several names is changed once
    give([&](const std::string& name, const at::Tensor& value) {
      if (changed.emplace(state_.at(name).unsafeGetTensorImpl(), name).second) put(name, value);
    });
    std::vector<at::Tensor> outputs = run();
    for (const auto& [tensor, name] : changed) put(name, values_.at(name));
    return outputs;
  }

  void put(const std::string& name, const at::Tensor& value) {
    at::Tensor target = state_.at(name);
    const bool requires_grad = target.requires_grad();
    target.set_data(value.to(target.options(), /*non_blocking=*/false, /*copy=*/true));
    target.set_requires_grad(requires_grad);
  }

  const UnitGroups& groups_;
  ScriptModel model_;
  std::vector<c10::IValue> inputs_;
  TensorMap values_;  // in the network's own precision
  TensorMap state_;   // what the network computes with
  std::optional<GraphRunner> runner_;
  bool seems_discrete_ = false;
  std::int64_t weak_outputs_ = 0;
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

std::string GroupProof::weakness() const {
  return fmt::format(
      "{} outputs hold integers or booleans that no floating tensor decides, so that wrong unit "
      "groups may leave them as they are",
      weak_outputs);
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
  proof.weak_outputs = subject->weak_outputs();
  Rng rng(options.seed, {0x73687566});
  std::set<std::size_t> all;
  for (std::size_t g = 0; g < groups.groups.size(); ++g) all.insert(g);
  const auto change = [&](const std::set<std::size_t>& moving) {
    stop_here_if_requested();
    return relative_change(expected, subject->run_permuted(random_orders(groups, moving, rng)));
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
  std::vector<MemberIndex> candidates;
  const TensorMap state = model.state_dict();
  for (const std::size_t g : all)
    for (std::size_t m = 0; m < groups.groups[g].members.size(); ++m)
      if (state.at(groups.groups[g].members[m].parameter).dim() > 1) candidates.emplace_back(g, m);
  constexpr int kTries = 5;
  for (int i = 0; i < kTries && !candidates.empty() && proof.negative_control <= proof.tolerance;
       ++i) {
    const UnitOrders orders = random_orders(groups, all, rng);
    const auto left_out = candidates[rng.below(candidates.size())];
    proof.negative_control = std::max(
        proof.negative_control, relative_change(expected, subject->run_permuted(orders, left_out)));
  }
  if (proof.negative_control <= proof.tolerance && !candidates.empty()) {
    // Perhaps the outputs do not depend on the order at all (a plain sum over the units). Then it
    // is enough that they depend on the weights.
    proof.control_is_disturbance = true;
    for (int i = 0; i < kTries && proof.negative_control <= proof.tolerance; ++i) {
      const auto& [g, m] = candidates[rng.below(candidates.size())];
      proof.negative_control = std::max(
          proof.negative_control,
          relative_change(
              expected, subject->run_disturbed(groups.groups[g].members[m].parameter, rng.next())));
    }
  }
  if (candidates.empty()) proof.negative_control = std::numeric_limits<double>::infinity();
  return proof;
}

}  // namespace weightsmith
