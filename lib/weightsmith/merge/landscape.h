#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "weightsmith/eval/evaluation.h"
#include "weightsmith/model/script_model.h"
#include "weightsmith/tensor/tensor_map.h"

namespace weightsmith {

/// Σ weights[i] · states[i] of every floating tensor, accumulated in float32 or wider; other
/// tensors are the first state's. The weights should sum to 1 and may be negative.
TensorMap blended_state(const std::vector<TensorMap>& states, const std::vector<double>& weights);

/// The plane through three networks in the space of their parameters, with coordinates that keep
/// distances (Garipov et al., "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs",
/// NeurIPS 2018, appendix A.1): the first lies at (0, 0), the second at (x > 0, 0), the third at
/// y > 0.
class ModelPlane {
 public:
  /// Nothing when the three lie on a line. `buffers` are no coordinates.
  static std::optional<ModelPlane> through(const TensorMap& a, const TensorMap& b,
                                           const TensorMap& c,
                                           const std::set<std::string>& buffers);

  /// Where network i lies.
  std::array<double, 2> place(int i) const { return places_[i]; }
  /// The weights of the three networks, of sum 1, whose blend lies at (x, y).
  std::array<double, 3> weights(double x, double y) const;
  /// `points` values from the lowest to the highest coordinate of the three, widened on both sides
  /// by `margin` times that distance. axis: 0 for x, 1 for y.
  std::vector<double> grid(int axis, std::int64_t points, double margin) const;

 private:
  ModelPlane() = default;

  std::array<std::array<double, 2>, 3> places_{};
};

/// How far the loss on the way between two networks rises above the line between their own losses:
/// the largest loss[k] - ((1 - at[k]) · loss[first] + at[k] · loss[last]), at least 0. `at` runs
/// from 0 to 1 (Entezari et al., "The Role of Permutation Invariance in Linear Mode Connectivity of
/// Neural Networks", ICLR 2022, definition 2.1). NaN where a loss is.
double loss_barrier(const std::vector<double>& at, const std::vector<double>& loss);

/// Scores `count` networks of one architecture, up to `threads` at a time, each on one thread and
/// in a copy of `pattern` of its own: for small networks that is far faster than one after the
/// other on all threads. `state(k)` and `score(k, network)` are called on any of the threads,
/// `done` on the caller's, in the order of completion. What one of them throws (Interrupted, too)
/// ends the work and comes out here.
void score_networks(const ScriptModel& pattern, std::int64_t count, int threads,
                    const std::function<TensorMap(std::int64_t)>& state,
                    const std::function<std::vector<Evaluation>(std::int64_t, ScriptModel&)>& score,
                    const std::function<void(std::int64_t, const std::vector<Evaluation>&)>& done);

}  // namespace weightsmith
