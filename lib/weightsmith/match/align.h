#pragma once

#include <cstdint>
#include <string_view>

#include "weightsmith/match/matching.h"
#include "weightsmith/match/similarity.h"

namespace weightsmith {

/// Aligns every model with model 0: for i = 1 ... N-1 the permutation pi of largest total
/// similarity S[r, pi(r)] between unit r of model 0 and unit pi(r) of model i, which goes to slot
/// r. Git Re-Basin's matching (Ainsworth, Hayase, Srinivasa, "Git Re-Basin: Merging Models modulo
/// Permutation Symmetries", ICLR 2023) with the similarity of your choice. The value is the mean of
/// the matched similarities, over units and over models.
///
/// `blocks` = g > 1: units stand in g blocks of q = units / g (attention heads, groups of a group
/// norm) that move as wholes. For every pair of blocks the best assignment inside (g^2 problems of
/// size q), then the assignment of blocks that maximises the sum of the inner means; units follow
/// their block. The value is the mean of the chosen inner means.
///
/// Only cross-model similarities are read, so both scopes do. One model gives the identity. Every
/// assignment is optimal (match/assignment.h); the time is theirs. Polls for a stop request between
/// assignments (Interrupted). Throws Error{kInput} naming `where` when shapes disagree or g does
/// not divide the units, Error{kNumeric} when a similarity is NaN or infinite.
Matching align(const Similarity& similarity, std::int64_t blocks, std::string_view where);

}  // namespace weightsmith
