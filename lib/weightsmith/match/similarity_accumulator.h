#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "weightsmith/match/similarity.h"

namespace weightsmith {

/// Second moments of the features of N models' hidden units, from data that arrives in pieces: the
/// activations of a tap batch by batch, or the weights of a group member by member. Every element
/// other than the unit is an observation, and all observations count alike: pieces of any size, and
/// several taps or members of one group, are simply added after each other.
///
/// Sums never cancel (mean 50, deviation 0.01 is exact to float32): every piece is centred on its
/// own float32 means, where these are not small already (a quarter of the deviation), before one
/// float32 matrix product a pair of models, and pieces are merged in double by the update of
/// T. Chan, G. Golub and R. LeVeque, "Algorithms for Computing the Sample Variance: Analysis and
/// Recommendations", The American Statistician 37(3), 1983, eq. 2.1b.
///
/// Memory: 8 bytes a pair of units (each pair once, and a little more), and a working copy of at
/// most 64 MB of a piece (never the whole of it, nor of all of them) and 16 MB of products a
/// thread. The last bits of sums may depend on the number of threads.
class SimilarityAccumulator {
 public:
  /// What one model says of its units: (units, …), of any strides. Position p of dimension `dim`
  /// (2 or more; 0: none) is read from position order[p], so that nothing need be reordered before.
  struct UnitRows {
    at::Tensor values;
    std::int64_t dim = 0;
    std::vector<std::int64_t> order = {};
  };

  /// Memory for one piece of features, which accumulators may take turns with.
  struct Workspace {
    at::Tensor piece;  // float32, enlarged where it is too small
  };

  /// `workspace`: by default one of its own.
  SimilarityAccumulator(const UnitStack& stack, Similarity::Scope scope,
                        std::shared_ptr<Workspace> workspace = nullptr);

  /// features[i]: model i's, any float type and device, its units along `channel_dim` (negative
  /// counts from the end) and otherwise of one shape: (B, C, H, W) or (B, T, C) activations, or a
  /// weight whose axis is the group's. No observations (an empty tensor) change nothing. Work:
  /// N (N + 1) / 2 products of (units, L) by (L, units) for kAllPairs, N - 1 for kCrossModel.
  ///
  /// Throws Error{kInput} naming `where` (the tap or parameter) and the shapes when they disagree,
  /// Error{kNumeric} naming `where`, model and unit for features that are NaN, infinite or too
  /// large to multiply in float32.
  void add(const std::vector<at::Tensor>& features, std::int64_t channel_dim,
           std::string_view where);

  /// Adds several taps or members in as few products as they fit into: members[m][i] is of model i
  /// with its units along dimension 0, otherwise as for add(). Errors name `where` for all of them.
  void add_together(const std::vector<std::vector<UnitRows>>& members, std::string_view where);

  /// Observations added so far.
  std::int64_t count() const { return count_; }

  /// Pearson correlation as the authors define it: cov / max(sigma sigma^T, 1e-7); 0 for units that
  /// never vary. Exactly symmetric. Throws Error{kInput} naming `where` when nothing was added.
  Similarity correlation(std::string_view where) const;

  /// Cosine of the features without centring: E[x y] / sqrt(E[x x] E[y y]); 0
  /// for units that are always 0.
  Similarity cosine(std::string_view where) const;

  /// The same, to be kept; nothing larger is made on the way.
  PackedSimilarity packed_correlation(std::string_view where) const;
  PackedSimilarity packed_cosine(std::string_view where) const;

  /// What sums of products take.
  static std::int64_t bytes(const UnitStack& stack, Similarity::Scope scope);

 private:
  /// Sums of products of deviations: `sums` (rows, columns), double, of stacked units from `row`
  /// and `column` on. No tile lies left of the diagonal.
  struct Tile {
    std::int64_t row;
    std::int64_t column;
    at::Tensor sums;
  };

  /// Throws unless there is one tensor a model with its units along `dim` and otherwise of one
  /// shape; returns them with at least two dimensions, the units first.
  std::vector<at::Tensor> units_first(const std::vector<at::Tensor>& features, std::int64_t dim,
                                      std::string_view where) const;
  /// [member][model], as units_first() returns them, in pieces that fit the workspace.
  void add_members(const std::vector<std::vector<UnitRows>>& members, std::string_view where);
  void add_piece(const std::vector<std::vector<UnitRows>>& members, std::string_view where);
  Similarity whole(bool centred, std::string_view where) const;
  PackedSimilarity packed(bool centred, std::string_view where) const;
  template <class Place>
  void normalise(bool centred, std::string_view where, const Place& place) const;

  UnitStack stack_;
  Similarity::Scope scope_;
  std::int64_t count_ = 0;
  at::Tensor mean_;     // (O) double
  at::Tensor squares_;  // (O) double: sums of squared deviations
  std::vector<Tile> tiles_;
  std::shared_ptr<Workspace> workspace_;
};

}  // namespace weightsmith
