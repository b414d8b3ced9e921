#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "weightsmith/model/script_model.h"

namespace weightsmith {

/// What the last layer with weights of a network reads: the data that its last convolution or
/// matrix product receives. For a classifier these are the penultimate features.
class PenultimateFeatures {
 public:
  /// Runs the network on `example` (B, ...) to see which operator comes last. The network must stay
  /// alive. Throws as GraphRunner.
  PenultimateFeatures(ScriptModel& model, const at::Tensor& example, bool trust = false);
  ~PenultimateFeatures();

  /// Whether there is such an operator, with a row of data for each sample.
  bool found() const { return node_.has_value(); }
  /// inputs (B, ...) → (B, F) float32 on the CPU.
  at::Tensor operator()(const at::Tensor& inputs) const;

 private:
  struct Impl;
  ScriptModel& model_;
  std::unique_ptr<Impl> impl_;
  std::optional<std::size_t> node_;
};

/// Linear centred kernel alignment (Kornblith, Norouzi, Lee, Hinton, "Similarity of Neural Network
/// Representations Revisited", ICML 2019, equations 3 and 4) of all pairs of `features`, each
/// (S, F_m), or of all with those of `against`: ⟨K, L⟩ / (‖K‖ ‖L‖), K and L the Gram matrices of
/// features centred over samples. (models, models) or (models) float64 in [0, 1]; 0 where features
/// do not vary. Exact, in double: Gram matrices are formed a stretch of rows at a time, in at most
/// `memory_bytes` (at least one row). O(models S² F + models² S²).
at::Tensor linear_cka(const std::vector<at::Tensor>& features,
                      std::optional<std::size_t> against = {},
                      std::int64_t memory_bytes = std::int64_t{256} << 20);

}  // namespace weightsmith
