#pragma once

#include <cstdint>
#include <string_view>

#include "weightsmith/match/matching.h"
#include "weightsmith/match/similarity.h"

namespace weightsmith {

/// What zip can be told; the letters are ZipIt!'s.
struct ZipOptions {
  /// r, in [0, 1): share of the stacked units to merge away. (N - 1) / N keeps the layer's width
  /// (of unequal models, their mean).
  double reduce = 0.5;
  /// a, > 0: similarities of a merged cluster are scaled by this, so that clusters stay small.
  /// (Values in (0, 1) raise negative similarities: the authors' rule, kept.)
  double a = 0.5;
  /// b, >= 0: budget of merges inside one model, as a share of its part of the merges; 1 leaves
  /// them free, 0 still lets one through.
  double b = 1.0;
  /// The same for merges inside one block of a model.
  double b_block = 1.0;
};

/// Throws Error{kConfig} naming `where` for an option out of range.
void check_zip_options(const ZipOptions& options, std::string_view where);

/// How many slots zip() leaves: floor(O (1 - reduce) + 1e-4) of O stacked units, or `blocks` times
/// that of one set of blocks.
std::int64_t zip_slots(const UnitStack& stack, std::int64_t blocks, double reduce);

/// Zips units together greedily, within and across models: Stoica et al., "ZipIt! Merging Models
/// from Different Tasks without Training", ICLR 2024, section 4 and appendix, as used by Xu et al.,
/// "Training-Free Pretrained Model Merging" (MuDSC), CVPR 2024.
///
/// On the matrix S (O, O) of all pairs, with the diagonal at -infinity, until floor(O (1 - r) +
/// 1e-4) clusters are left: the largest entry, the first in row-major order among equals, names the
/// clusters x < y. Its similarity joins the list, y joins x, row and column of x become
/// min(row x, row y) * a, row and column of y go. If both clusters carry the same model label (that
/// of their lowest unit), the budget of that model, floor((removed div N) b + 1e-4), falls by one;
/// at zero all entries among clusters of that model become -infinity. Slots are numbered by
/// surviving clusters in the order of their lowest units. The value is the mean of the list.
///
/// `blocks` = g > 1: blocks of model 0 are first assigned to blocks of every other model as align()
/// does, giving g sets of N blocks of q = units / g. Set after set, in the order of model 0's
/// blocks, units are zipped inside the set only, until floor(q N (1 - r) + 1e-4) clusters are left;
/// the budgets of the models span all sets, and every block has one of its own, floor(removed *
/// b_block / (N g) + 1e-4). Slots are numbered set by set.
///
/// Models may have different numbers of units (ZipIt! has equal ones); a model's budget is the same
/// for all, as above. Blocks of unequal models cannot be assigned by their units: give the sets
/// (zip_within), or one block.
///
/// One float32 matrix of all pairs is worked on, whichever form S is given in. Every row keeps its
/// first largest entry, and only rows whose entry a merge touched look again: O(O^2) for typical
/// matrices, O(O^3) at worst; 4096 x 4096 takes a fraction of a second. A non-symmetric S is taken
/// as it is: row and column of x both become the minimum of the rows.
///
/// Throws Error{kInput} naming `where` when the similarity is not of all pairs, shapes disagree or
/// g does not divide the units; Error{kNumeric} for a NaN or infinite entry off the diagonal;
/// Error{kConfig} for options out of range, or when budgets leave no admissible pair. Polls for a
/// stop request (Interrupted).
Matching zip(const Similarity& similarity, const ZipOptions& options, std::int64_t blocks,
             std::string_view where);
Matching zip(const PackedSimilarity& similarity, const ZipOptions& options, std::int64_t blocks,
             std::string_view where);

/// zip() with the sets of blocks given: `blocks` is an alignment whose units are the blocks.
Matching zip_within(const PackedSimilarity& similarity, const ZipOptions& options,
                    const Matching& blocks, std::string_view where);

}  // namespace weightsmith
