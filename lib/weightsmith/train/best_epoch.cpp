#include "weightsmith/train/best_epoch.h"

#include <ATen/ATen.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "weightsmith/core/error.h"

namespace weightsmith {

void keep_if_best(Checkpoint& state, const ScriptModel& model, const Evaluation& validation) {
  if (!std::isfinite(validation.loss)) return;
  if (!state.best.is_null()) {
    const Evaluation best = evaluation_from_json(state.best.at("validation"));
    if (validation.errors ? validation.loss >= best.loss : validation.correct <= best.correct)
      return;
  }
  state.best = {{"epoch", state.position.epoch + 1}, {"validation", evaluation_json(validation)}};
  state.best_weights.clear();
  for (const auto& [name, tensor] : model.state_dict())
    state.best_weights.emplace(name, tensor.detach().clone());
}

BestEpoch show_best(const Checkpoint& state, ScriptModel& model) {
  WS_CHECK(!state.best.is_null());
  const at::NoGradGuard no_grad;
  for (const auto& [name, tensor] : model.state_dict()) {
    at::Tensor target = tensor;
    target.copy_(state.best_weights.at(name));
  }
  BestEpoch best;
  best.epoch = state.best.at("epoch").get<std::int64_t>();
  best.validation = evaluation_from_json(state.best.at("validation"));
  return best;
}

}  // namespace weightsmith
