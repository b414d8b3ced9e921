#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>

namespace weightsmith {

/// How alike the hidden units of N models are. Larger is more alike.
struct Similarity {
  enum class Scope {
    kAllPairs,    ///< (O, O): stacked unit by stacked unit, O = models * units
    kCrossModel,  ///< (models - 1, units, units): [i - 1][r][k] = unit r of model 0, k of model i
  };
  Scope scope = Scope::kAllPairs;
  std::int64_t models = 0;
  std::int64_t units = 0;  ///< of one model
  at::Tensor values;       ///< float32, contiguous, on the CPU

  /// The first entry of the block of model 0 (rows) against `model` (columns), whose rows lie
  /// block_stride() apart.
  const float* cross_block(std::int64_t model) const;
  std::int64_t block_stride() const;
};

/// A similarity of all pairs from a matrix (O, O) with O divisible by `models`. Throws
/// Error{kInput} naming `where` otherwise.
Similarity all_pairs_similarity(const at::Tensor& values, std::int64_t models,
                                std::string_view where);

/// Zeros: nothing is known of these units.
Similarity no_similarity(std::int64_t models, std::int64_t units, Similarity::Scope scope);

/// Checks shape, type and layout. Throws Error{kInput} naming `where`.
void check_similarity(const Similarity& similarity, std::string_view where);

/// Throws Error{kNumeric} naming `where` and the first two stacked units whose similarity is NaN or
/// infinite, for all pairs: not every way of matching reads all of them. The diagonal, a unit with
/// itself, says nothing and may hold anything.
void check_finite(const Similarity& similarity, std::string_view where);

/// Dual space (MuDSC): balance * weight + (1 - balance) * activation, balance in [0, 1]; a new
/// tensor. Both must have the same scope and sizes (Error{kInput} naming `where`).
Similarity blend(const Similarity& weight, const Similarity& activation, double balance,
                 std::string_view where);

}  // namespace weightsmith
