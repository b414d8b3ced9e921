#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <variant>

#include "weightsmith/tensor/tensor_map.h"
#include "weightsmith/train/adam.h"
#include "weightsmith/train/parameter_arena.h"
#include "weightsmith/train/sgd.h"

namespace weightsmith {

/// Which base optimiser, and how it is set.
using BaseOptions = std::variant<SgdOptions, AdamOptions>;

/// Steps the heads of an arena by a base optimiser; every head has momenta of its own, laid out as
/// its values are.
class BaseOptimizer {
 public:
  /// `arena` must outlive this.
  BaseOptimizer(ParameterArena& arena, const BaseOptions& options);

  /// Steps `head` with the gradients of the arena's parameters and drops them. A parameter without
  /// a gradient stays as it is. One pass over the head, its momenta and the gradients.
  void step(std::int64_t head, double lr);

  /// Everything that a later step depends on beside the arena's values: `counts` (heads,
  /// parameters) int64, the steps that each parameter made; `momenta` (heads, width) for SGD with
  /// momentum and for Adam, `squares` likewise for Adam. The tensors are the live ones.
  TensorMap state() const;

 private:
  void step_in_one_pass(std::int64_t head, double lr);

  ParameterArena& arena_;
  BaseOptions options_;
  at::Tensor momenta_;
  at::Tensor squares_;
  at::Tensor counts_;  // on the CPU
};

}  // namespace weightsmith
