#include "weightsmith/train/norm_statistics.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/ir/ir.h>

#include <unordered_map>
#include <utility>

#include "weightsmith/core/error.h"
#include "weightsmith/eval/normalization.h"
#include "weightsmith/model/batch_norms.h"
#include "weightsmith/model/graph_runner.h"

namespace weightsmith {
namespace {

class DecayObserver final : public NodeObserver {
 public:
  explicit DecayObserver(const FlatGraph& graph) : graph_(graph) {}

  void before(std::size_t number, std::vector<c10::IValue>& inputs) override {
    const torch::jit::Node* const node = graph_.nodes()[number];
    if (node->kind() != c10::Symbol::fromQualString("aten::batch_norm")) return;
    // (input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn)
    if (inputs[3].isNone() || inputs[4].isNone()) return;
    const auto training = torch::jit::toIValue(node->input(5));
    if (training && training->isBool() && !training->toBool()) return;  // they never move
    const double momentum = inputs[6].toDouble();
    if (momentum == 0)
      throw Error(ErrorKind::kConfig, "method.batch_norm_scores",
                  fmt::format("{}: {} has no momentum: statistics of other modes cannot be kept",
                              graph_.where(), graph_.describe(number)),
                  "give it one, or train once a mode");
    for (const int i : {3, 4})
      found_.emplace(inputs[i].toTensor().unsafeGetTensorImpl(), 1.0).first->second *= 1 - momentum;
  }

  const std::unordered_map<const void*, double>& found() const { return found_; }

 private:
  const FlatGraph& graph_;
  std::unordered_map<const void*, double> found_;
};

/// Of each number over the sets; the first set's where it is an integer.
TensorMap mean_of_sets(const std::vector<TensorMap>& sets) {
  TensorMap result;
  for (const auto& [name, first] : sets.front()) {
    at::Tensor mean = first;
    if (first.is_floating_point()) {
      mean = at::zeros_like(first, first.options().dtype(at::kDouble));
      for (const TensorMap& set : sets) mean += set.at(name);
      mean /= static_cast<double>(sets.size());
    }
    result.emplace(name, mean);
  }
  return result;
}

}  // namespace

std::string frozen_norm_warning(const ScriptModel& model) {
  BatchNormUses uses;
  try {
    uses = batch_norm_uses(FlatGraph(model.module(), model.where()));
  } catch (const Error&) {
    return "";  // it runs all the same
  }
  if (uses.frozen == 0) return "";
  return fmt::format(
      "{}: {} of {} batch norms are fixed in eval mode, as tracing a network in eval mode leaves "
      "them: their statistics stay as they are while the weights are trained (to train them too, "
      "export the network with torch.jit.script, or trace it in train mode)",
      model.where(), uses.frozen, uses.all);
}

std::map<std::string, double> batch_norm_decays(ScriptModel& model, const at::Tensor& inputs) {
  const at::NoGradGuard no_grad;
  model.train(false);
  const GraphRunner runner(model.module(), model.where());
  DecayObserver observer(runner.graph());
  runner.run({model.preprocessed(inputs)}, &observer);
  std::map<std::string, double> decays;
  for (const auto& [name, buffer] : model.buffers())
    if (const auto it = observer.found().find(buffer.unsafeGetTensorImpl());
        it != observer.found().end())
      decays.emplace(name, it->second);
  return decays;
}

bool is_other_kind_of_set(NormMode mode, NormMode own) {
  return (mode == NormMode::kPerHead) != (own == NormMode::kPerHead);
}

NormStatistics::NormStatistics(ScriptModel& model, NormMode mode, std::int64_t heads,
                               std::map<std::string, double> decays)
    : model_(model), mode_(mode), decays_(std::move(decays)) {
  WS_CHECK(mode != NormMode::kAuto && heads >= 1);
  if (heads == 1) return;
  for (std::int64_t h = 0; h < heads; ++h)
    (mode == NormMode::kPerHead ? sets_ : beside_).push_back(copy());
  if (decays_.empty()) {
    beside_.clear();
  } else if (per_head()) {
    beside_.push_back(copy());
  }
}

TensorMap NormStatistics::copy() const {
  TensorMap copies;
  for (const auto& [name, buffer] : model_.buffers()) copies.emplace(name, buffer.clone());
  return copies;
}

void NormStatistics::write(const TensorMap& values) {
  const at::NoGradGuard no_grad;
  for (auto& [name, buffer] : model_.buffers()) {
    at::Tensor target = buffer;
    target.copy_(values.at(name));
  }
}

void NormStatistics::show(std::int64_t head) {
  if (head == shown_) return;
  if (per_head()) sets_[static_cast<std::size_t>(shown_)] = copy();
  shown_ = head;
  if (per_head()) write(sets_[static_cast<std::size_t>(shown_)]);
}

void NormStatistics::begin_pass() {
  if (!beside_.empty()) before_ = copy();
}

void NormStatistics::end_pass() {
  if (beside_.empty()) return;
  const at::NoGradGuard no_grad;
  TensorMap& set = beside_[per_head() ? 0 : static_cast<std::size_t>(shown_)];
  for (const auto& [name, buffer] : model_.buffers()) {
    at::Tensor& own = set.at(name);
    if (const auto decay = decays_.find(name); decay != decays_.end())
      own.sub_(before_.at(name)).mul_(decay->second).add_(buffer);
    else if (at::isIntegralType(buffer.scalar_type(), /*includeBool=*/false))  // a count of passes
      own.add_(buffer - before_.at(name));
    else
      own.copy_(buffer);
  }
  before_.clear();
}

void NormStatistics::show_result(NormMode mode, bool is_average, const Dataset& data,
                                 std::int64_t batch_size, at::Device device, Progress& progress) {
  WS_CHECK(saved_.empty() && mode != NormMode::kAuto);
  if (mode == NormMode::kRecompute && is_average) {
    saved_ = copy();
    reset_batch_norm(model_, data, batch_size, device, progress);
  } else if (mode == NormMode::kPerHead && per_head()) {
    saved_ = copy();
    sets_[static_cast<std::size_t>(shown_)] = saved_;
    write(mean_of_sets(sets_));
  } else if (is_other_kind_of_set(mode, mode_) && !beside_.empty()) {
    saved_ = copy();
    write(mean_of_sets(beside_));  // of one, where it is the shared one
  }
}

void NormStatistics::show_training() {
  if (saved_.empty()) return;
  write(saved_);
  saved_.clear();
}

TensorMap NormStatistics::own_state() {
  if (!per_head()) return model_.buffers();
  sets_[static_cast<std::size_t>(shown_)] = copy();
  TensorMap state;
  for (std::size_t h = 0; h < sets_.size(); ++h)
    for (const auto& [name, tensor] : sets_[h])
      state.emplace(fmt::format("{}/{}", h, name), tensor);
  return state;
}

TensorMap NormStatistics::state() {
  TensorMap state = own_state();
  for (std::size_t h = 0; h < beside_.size(); ++h)
    for (const auto& [name, tensor] : beside_[h])
      state.emplace(fmt::format("beside/{}/{}", h, name), tensor);
  return state;
}

void NormStatistics::load_state(const TensorMap& state, const std::string& where) {
  const TensorMap own = this->state();
  for (const auto& [name, buffer] : own) {
    const auto it = state.find(name);
    if (it == state.end() || it->second.sizes() != buffer.sizes())
      throw Error(ErrorKind::kInput, where,
                  fmt::format("buffer {} does not fit {}", name, model_.where()),
                  "resume with the network the checkpoint was made with");
  }
  const at::NoGradGuard no_grad;
  for (std::size_t h = 0; h < beside_.size(); ++h)
    for (auto& [name, tensor] : beside_[h])
      tensor.copy_(state.at(fmt::format("beside/{}/{}", h, name)));
  if (!per_head()) {
    write(state);
    return;
  }
  for (std::size_t h = 0; h < sets_.size(); ++h)
    for (auto& [name, tensor] : sets_[h]) tensor.copy_(state.at(fmt::format("{}/{}", h, name)));
  write(sets_[static_cast<std::size_t>(shown_)]);
}

}  // namespace weightsmith
