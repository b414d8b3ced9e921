#include "weightsmith/train/loss_scale.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <nlohmann/json.hpp>

#include "weightsmith/core/error.h"

namespace weightsmith {

bool LossScale::unscale(const std::vector<at::Tensor>& parameters) {
  const at::NoGradGuard no_grad;
  at::Tensor finite;  // stays on the device: asking it costs a wait there
  for (const at::Tensor& parameter : parameters) {
    at::Tensor gradient = parameter.grad();
    if (!gradient.defined()) continue;
    gradient.mul_(1 / value_);  // a power of two, so that nothing is rounded
    const at::Tensor own = gradient.isfinite().all();
    finite = finite.defined() ? finite.logical_and(own) : own;
  }
  if (finite.defined() && !finite.item<bool>()) {
    good_steps_ = 0;
    value_ *= kBackoff;
    if (value_ < 1 / kFirst)
      throw Error(ErrorKind::kNumeric, "precision",
                  fmt::format("gradients are not finite at a loss scale of {}", value_ / kBackoff),
                  "train in bfloat16 or float32, or lower optimizer.lr");
    return false;
  }
  if (++good_steps_ == kGrowthInterval) {
    value_ *= kGrowth;
    good_steps_ = 0;
  }
  return true;
}

nlohmann::json LossScale::state() const { return {{"value", value_}, {"good_steps", good_steps_}}; }

void LossScale::load_state(const nlohmann::json& state) {
  state.at("value").get_to(value_);
  state.at("good_steps").get_to(good_steps_);
}

}  // namespace weightsmith
