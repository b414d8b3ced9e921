#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "weightsmith/config/enum_names.h"

namespace weightsmith {

/// How far apart two fields A, B (S samples, n steps, D) are (ModelGiF, section 3.3). cos is
/// guarded as in torch: a vector shorter than 1e-8 has cosine 0 with everything, itself too.
enum class DistanceKind {
  kCosine,            ///< mean over samples and steps of 1 − cos(A_st, B_st)
  kEuclidean,         ///< mean of ‖A_st − B_st‖
  kFrechetCosine,     ///< per sample the largest over steps, then the mean over samples
  kFrechetEuclidean,  ///< likewise
  kCosineNormalised,  ///< cosine after each of D is standardised over samples and steps
  kAbsolute,          ///< mean of |A − B| over everything
  /// 1 / mean over samples of cos(A_s, B_s), all steps of a sample as one vector. Not a mean of
  /// samples: it may be infinite or negative.
  kInverseCosine,
};
EnumNames<DistanceKind> enum_names(DistanceKind);

/// Where fields come from, a stretch at a time.
struct FieldSource {
  std::int64_t samples = 0;
  std::int64_t steps = 0;
  std::int64_t dimensions = 0;
  /// Rows [begin, begin + count) of the (samples · steps, D) field, float32 or float64, on the CPU.
  std::function<at::Tensor(std::int64_t begin, std::int64_t count)> rows;
};
FieldSource source_of(const at::Tensor& field);

struct FieldDistances {
  /// (models, models, S) float64: what the distance takes the mean of, sample by sample; with
  /// `against` (models, S). For inverse_cosine the samples' cosines.
  at::Tensor per_sample;
  /// (models, models) or (models) float64.
  at::Tensor mean;
  /// Steps of each model's field whose norm is below 1e-8 (as it is, or standardised where that is
  /// asked).
  std::vector<std::int64_t> zero_norms;
};

/// Distances of all pairs of fields, or of all to the field `against`. Every field is read once
/// (cosine_normalised: twice), in stretches of at most `memory_bytes` for all fields together (at
/// least one row of each). O(models² S n D), or O(models S n D). Throws Error{kInput} when shapes
/// differ, naming the model's number.
FieldDistances field_distances(const std::vector<FieldSource>& fields, DistanceKind kind,
                               std::optional<std::size_t> against = {},
                               std::int64_t memory_bytes = std::int64_t{256} << 20);

/// The mean over samples that `kind` makes of per-sample values (..., S) → (...).
at::Tensor mean_distance(const at::Tensor& per_sample, DistanceKind kind);

/// Percentile bootstrap over samples (Efron, "Bootstrap methods: another look at the jackknife",
/// Annals of Statistics 1979): limits of the central `level` of `resamples` means, each (...).
struct BootstrapLimits {
  at::Tensor low, high;
};
BootstrapLimits bootstrap_limits(const at::Tensor& per_sample, DistanceKind kind,
                                 std::int64_t resamples, std::uint64_t seed, double level = 0.95);

}  // namespace weightsmith
