#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <vector>

namespace weightsmith {

/// Dynamic loss scaling (Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2):
/// float16 loses gradients below 6e-8, so the loss is multiplied by a scale before the backward
/// pass and the gradients are divided by it after. A scale too large makes gradients overflow: the
/// step is then skipped and the scale halved; after `kGrowthInterval` good steps in a row it
/// doubles. Numbers as in torch.cuda.amp.GradScaler.
class LossScale {
 public:
  static constexpr double kFirst = 65536;
  static constexpr double kGrowth = 2;
  static constexpr double kBackoff = 0.5;
  static constexpr std::int64_t kGrowthInterval = 2000;

  /// What the loss is multiplied by.
  double value() const { return value_; }
  /// Good steps since the scale changed.
  std::int64_t good_steps() const { return good_steps_; }

  /// Divides the gradients of `parameters` (any device; those without one are passed over) by the
  /// scale and adapts it. False where one of them was not finite: they are of no use then. Throws
  /// Error{kNumeric} when gradients overflow at a scale of 1 / kFirst: no scale would do.
  bool unscale(const std::vector<at::Tensor>& parameters);

  /// `value`, `good_steps`.
  nlohmann::json state() const;
  /// Throws nlohmann::json::exception when something is missing.
  void load_state(const nlohmann::json& state);

 private:
  double value_ = kFirst;
  std::int64_t good_steps_ = 0;
};

}  // namespace weightsmith
