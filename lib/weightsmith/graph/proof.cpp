#include "weightsmith/graph/proof.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <set>

#include "weightsmith/core/error.h"
#include "weightsmith/core/rng.h"
#include "weightsmith/core/stop.h"
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

  /// The outputs with units permuted; `left_out` names a member that is forgotten.
  std::vector<at::Tensor> run_permuted(const UnitOrders& orders,
                                       std::optional<MemberIndex> left_out = std::nullopt) {
    const TensorMap after = permuted_state(state_, groups_, orders, left_out);
    TensorMap before;
    for (const auto& [name, tensor] : after) before[name] = state_.at(name).detach().clone();
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
  if (candidates.empty()) proof.negative_control = std::numeric_limits<double>::infinity();
  return proof;
}

}  // namespace weightsmith
