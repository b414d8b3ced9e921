#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>

#include "weightsmith/config/enum_names.h"
#include "weightsmith/eval/evaluation.h"

namespace weightsmith {

struct ConfigNode;

/// In which measure a perturbation of the weights has its norm.
enum class PerturbationScale {
  /// Every parameter tensor in units of its own norm, T = diag(‖θ_p‖ I): networks that compute the
  /// same with weights of another scale, as batch norm allows, are equally flat.
  kRelative,
  kAbsolute,  ///< T = I
};
EnumNames<PerturbationScale> enum_names(PerturbationScale);

struct FlatnessConfig {
  double random_radius = 0.5;  ///< ρ_r: a random direction hardly meets a steep one
  double worst_radius = 0.01;  ///< ρ_w
  PerturbationScale scale = PerturbationScale::kRelative;
  std::int64_t directions = 10;        ///< random ones; 0: none
  std::int64_t ascent_steps = 10;      ///< towards the worst direction; 0: none
  std::int64_t power_iterations = 50;  ///< at most, for the Hessian; 0: none
  double tolerance = 1e-3;      ///< of the eigenvalue, relative: ends when it changes by less
                                ///< and the residual is below its square root
  std::int64_t samples = 1024;  ///< of the training set, drawn by the run's seed
  bool operator==(const FlatnessConfig&) const = default;

  /// Throws Error{kConfig} naming the key (`flatness.…`).
  void validate() const;
};
void from_config(const ConfigNode& node, FlatnessConfig& config);
nlohmann::json to_config(const FlatnessConfig& config);

/// How the mean loss L (Objective::loss, in eval mode) changes around the weights θ. A loss that is
/// not finite counts as infinite.
struct Flatness {
  std::int64_t samples = 0;
  double loss = 0;              ///< L(θ)
  double random_loss = 0;       ///< mean over directions z of L(θ + ρ_r T z / ‖z‖), z normal
  double random_deviation = 0;  ///< over the directions, divided by n − 1; 0 for a single one
  double worst_loss = 0;  ///< the largest L(θ + T u) met with ‖u‖ = ρ_w: a lower bound of the
                          ///< largest there is
  double top_eigenvalue = 0;  ///< largest eigenvalue of the Hessian ∂²L/∂θ², whatever the scale
  std::int64_t iterations = 0;  ///< products with the Hessian
  bool converged = false;       ///< whether the tolerance was reached
};

/// {"samples", "loss", "random_loss", "random_deviation", "worst_loss", "top_eigenvalue",
/// "iterations", "converged"}, without what `config` does not ask for; infinite losses are null.
nlohmann::json flatness_json(const Flatness& flatness, const FlatnessConfig& config);

/// Measures the flatness around a network's parameters that require gradients, on the whole of
/// `dataset`.
///
/// The worst direction is sought by repeating the step of sharpness-aware minimisation (Foret,
/// Kleiner, Mobahi, Neyshabur, ICLR 2021, equation 2; scaled: Kwon, Kim, Park, Choi, "ASAM", ICML
/// 2021): u ← ρ_w T g / ‖T g‖ with the gradient g at θ + T u, from u = 0 on. The eigenvalue comes
/// from power iteration on exact products with the Hessian (Pearlmutter, Neural Computation 1994;
/// Yao et al., "PyHessian", 2020). Where the eigenvalue of largest magnitude is negative, the
/// iteration goes on with the Hessian less that eigenvalue.
///
/// The network is put into eval mode and stays there: batch-norm statistics do not move with the
/// weights. Weights are changed in place and put back, bit for bit, whatever happens. Costs
/// directions + 1 passes forward, ascent_steps times one forward and backward, and products with
/// the Hessian of about twice that each. The draws depend on `seed` alone.
///
/// Throws Error{kInput} naming the model when nothing in it requires a gradient or what does is not
/// float32, when outputs do not fit the objective or an operator has no second derivative,
/// Error{kNumeric} when L(θ) is not finite or memory runs out, Interrupted when asked to stop.
Flatness measure_flatness(ScriptModel& model, const Dataset& dataset, const Objective& objective,
                          const FlatnessConfig& config, std::uint64_t seed,
                          const EvaluationOptions& options, Progress& progress);

}  // namespace weightsmith
