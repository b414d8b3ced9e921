#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <string_view>

#include "weightsmith/match/unit_stack.h"

namespace weightsmith {

/// How alike the hidden units of N models are. Larger is more alike.
struct Similarity {
  enum class Scope {
    kAllPairs,    ///< (O, O): stacked unit by stacked unit
    kCrossModel,  ///< (models - 1, n, n): [i - 1][r][k] = unit r of model 0, unit k of model i; all
                  ///< models have n units
  };
  Scope scope = Scope::kAllPairs;
  UnitStack stack;    ///< the O units of all models
  at::Tensor values;  ///< float32, contiguous, on the CPU

  /// The first entry of the block of model 0 (rows) against `model` (columns), whose rows lie
  /// block_stride() apart.
  const float* cross_block(std::int64_t model) const;
  std::int64_t block_stride() const;
};

/// A Similarity to be kept: of all pairs, which are symmetric, only what stands on the diagonal and
/// to the right of it, half the memory.
struct PackedSimilarity {
  Similarity::Scope scope = Similarity::Scope::kAllPairs;
  UnitStack stack;
  at::Tensor values;  ///< float32 on the CPU: (O (O + 1) / 2), row by row; or (models - 1, n, n)
};

/// How many values a packed similarity holds.
std::int64_t packed_size(const UnitStack& stack, Similarity::Scope scope);

/// Where row r of the packed matrix of O units would begin, if it had its left part: the similarity
/// of units r ≤ c stands at packed_row(r, O) + c.
inline std::int64_t packed_row(std::int64_t r, std::int64_t units) {
  return r * units - r * (r + 1) / 2;
}

PackedSimilarity packed(const Similarity& similarity);

/// What was packed, or of all pairs the part that kCrossModel asks for (which models with unequal
/// numbers of units do not have).
Similarity unpacked(const PackedSimilarity& similarity, Similarity::Scope scope);

/// Of either the part with the first model's units, which is all that align() reads.
inline Similarity across_models(const PackedSimilarity& similarity) {
  return unpacked(similarity, Similarity::Scope::kCrossModel);
}

/// A similarity of all pairs from a matrix (O, O) of models with O / models units each. Throws
/// Error{kInput} naming `where` otherwise.
Similarity all_pairs_similarity(const at::Tensor& values, std::int64_t models,
                                std::string_view where);

/// Zeros: nothing is known of these units.
Similarity no_similarity(const UnitStack& stack, Similarity::Scope scope);

/// Checks shape, type and layout. Throws Error{kInput} naming `where`.
void check_similarity(const Similarity& similarity, std::string_view where);
void check_similarity(const PackedSimilarity& similarity, std::string_view where);

/// Throws Error{kNumeric} naming `where` and the first two stacked units whose similarity is NaN or
/// infinite, for all pairs: not every way of matching reads all of them. The diagonal, a unit with
/// itself, says nothing and may hold anything.
void check_finite(const Similarity& similarity, std::string_view where);
void check_finite(const PackedSimilarity& similarity, std::string_view where);

/// Dual space (MuDSC): `weight` becomes balance * weight + (1 - balance) * activation, balance in
/// [0, 1]. Both must have the same scope and sizes (Error{kInput} naming `where`).
void blend(PackedSimilarity& weight, const PackedSimilarity& activation, double balance,
           std::string_view where);

/// Calls visit(row, first column, last column + 1) for all parts of rows of an n x n matrix that
/// lie on its diagonal or to the right of it; from several threads, square by square, so that what
/// is written to [column][row] too stays in the caches.
template <class Visit>
void mirror_tiles(std::int64_t n, const Visit& visit) {
  constexpr std::int64_t kTile = 64;
  at::parallel_for(0, (n + kTile - 1) / kTile, 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t r0 = first * kTile; r0 < std::min(last * kTile, n); r0 += kTile)
      for (std::int64_t c0 = r0; c0 < n; c0 += kTile)
        for (std::int64_t r = r0; r < std::min(r0 + kTile, n); ++r)
          visit(r, std::max(c0, r), std::min(c0 + kTile, n));
  });
}

}  // namespace weightsmith
