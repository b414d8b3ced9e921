#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <variant>
#include <vector>

#include "weightsmith/tensor/tensor_map.h"
#include "weightsmith/train/adam.h"
#include "weightsmith/train/parameter_arena.h"
#include "weightsmith/train/sgd.h"

namespace weightsmith {

/// Which base optimiser, and how it is set.
using BaseOptions = std::variant<SgdOptions, AdamOptions>;

/// What is special about a parameter.
struct ParameterSettings {
  double lr_factor = 1;                     ///< times the rate of a step
  std::optional<double> weight_decay = {};  ///< in place of the options'
};

/// Steps the heads of an arena by a base optimiser; every head has momenta of its own, laid out as
/// its values are.
class BaseOptimizer {
 public:
  /// `arena` must outlive this.
  BaseOptimizer(ParameterArena& arena, const BaseOptions& options);

  /// From now on steps each parameter of the arena by settings of its own; none: all alike.
  void set_parameters(const std::vector<ParameterSettings>& settings);

  /// Steps `head` with the gradients of the arena's parameters and drops them. A parameter without
  /// a gradient stays as it is. On the CPU one pass over the head, its momenta and the gradients;
  /// elsewhere step_by_operators().
  void step(std::int64_t head, double lr);

  /// The same by tensor operations, on any device, up to the rounding of fused products: the
  /// gradients of neighbouring parameters that are stepped alike are laid beside each other, some
  /// million values at a time, and take as many operations as those of one.
  void step_by_operators(std::int64_t head, double lr);

  /// Everything that a later step depends on beside the arena's values: `counts` (heads,
  /// parameters) int64, the steps that each parameter made; `momenta` (heads, width) for SGD with
  /// momentum and for Adam, `squares` likewise for Adam. The tensors are the live ones.
  TensorMap state() const;

 private:
  /// How a parameter is stepped.
  struct OwnOptions {
    double lr_factor;
    BaseOptions options;

    friend bool operator==(const OwnOptions&, const OwnOptions&) = default;
  };

  void step_in_one_pass(std::int64_t head, double lr);
  /// Behind the parameters from `first` on that have gradients and are stepped alike. `counts`: of
  /// the steps that each made so far.
  std::size_t end_of_run(std::size_t first, const std::int64_t* counts) const;
  at::Tensor flat_gradient(std::size_t first, std::size_t end);

  ParameterArena& arena_;
  std::vector<OwnOptions> options_;  // one a parameter
  at::Tensor momenta_;
  at::Tensor squares_;
  at::Tensor counts_;   // on the CPU
  at::Tensor padding_;  // zeros that lie between gradients, on the arena's device
};

}  // namespace weightsmith
