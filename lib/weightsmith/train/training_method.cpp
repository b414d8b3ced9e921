#include "weightsmith/train/training_method.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include "weightsmith/core/error.h"

namespace weightsmith {

void TrainingMethod::step(double lr) {
  const std::int64_t stepped = head();
  optimizer_.step(stepped, lr);
  finish_step(stepped);
}

void TrainingMethod::skip_step() {
  for (const at::Tensor& parameter : arena_.parameters()) parameter.mutable_grad().reset();
  finish_step(head());
}

void TrainingMethod::finish_step(std::int64_t stepped) {
  ++steps_;
  after_step(stepped);
  if (head() != stepped) show_training();
}

at::Tensor TrainingMethod::keep(const std::string& name, at::Tensor tensor) {
  WS_CHECK(own_.emplace(name, tensor).second);
  return tensor;
}

TensorMap TrainingMethod::state() const {
  TensorMap state = optimizer_.state();
  state.emplace("heads", arena_.values());
  for (const auto& [name, tensor] : own_) WS_CHECK(state.emplace(name, tensor).second);
  return state;
}

void TrainingMethod::load_state(const TensorMap& state, std::int64_t steps,
                                const std::string& where) {
  TensorMap own = this->state();
  for (const auto& [name, target] : own) {
    const auto it = state.find(name);
    if (it == state.end() || it->second.sizes() != target.sizes() ||
        it->second.scalar_type() != target.scalar_type())
      throw Error(ErrorKind::kInput, where,
                  fmt::format("tensor {} does not fit this network and method", name),
                  "resume with the configuration the checkpoint was made with");
  }
  const at::NoGradGuard no_grad;
  for (auto& [name, target] : own) target.copy_(state.at(name));
  steps_ = steps;
  show_training();
}

}  // namespace weightsmith
