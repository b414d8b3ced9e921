#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "weightsmith/match/matching.h"
#include "weightsmith/match/similarity.h"

namespace weightsmith {

/// The column prices of an alignment's assignments, for every model but the first; empty where
/// there are none.
using AlignPrices = std::vector<std::vector<double>>;

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
/// `prices`: where assignments start, and then those they end with: similarities that change from
/// one sweep to the next are assigned several times faster from the prices of the last. They change
/// nothing else, except which of several best permutations is found. Blocks go without.
///
/// Only cross-model similarities are read, so both scopes do. One model gives the identity. Every
/// assignment is optimal (match/assignment.h); the time is theirs. Polls for a stop request between
/// assignments (Interrupted). Throws Error{kInput} naming `where` when shapes disagree or g does
/// not divide the units, Error{kNumeric} when a similarity is NaN or infinite.
Matching align(const Similarity& similarity, std::int64_t blocks, std::string_view where,
               AlignPrices* prices = nullptr);

/// Aligns all models with each other: one permutation a model, so that every way around a cycle of
/// models leads back to the same unit, of large total similarity over *all* pairs of models. Ascent
/// by coordinates, started from align(): model after model is assigned anew against the mean of its
/// similarities with the units of all others, as they stand, until a round over the models changes
/// nothing. With inner products as similarity that is aligning with the mean of the other models'
/// weights, algorithm 3 (MergeMany) of Git Re-Basin; the aim is that of C²M³ (Crisostomi et al.,
/// "C²M³: Cycle-Consistent Multi-Model Merging", NeurIPS 2024). Differences: the models take turns
/// in order, not at random, and a model only changes for a strict gain, so the total never falls.
/// Which model comes first hardly matters, while align() is only as good as its model 0.
///
/// Slots keep the order of model 0's units. The value is the mean of the matched similarities over
/// units and over all N (N - 1) / 2 pairs. Blocks, prices and errors are those of align(), which is
/// what two models get. Throws Error{kInput} for three models or more when similarities are not of
/// all pairs.
Matching align_to_mean(const Similarity& similarity, std::int64_t blocks, std::string_view where,
                       AlignPrices* prices = nullptr);

/// Mean similarity of the units of every block of model 0 with those of every block of each other
/// model, inner assignments made best: (models - 1, blocks, blocks). Several groups whose blocks
/// have one order (queries, keys and values of attention heads) add theirs up. Errors as align().
at::Tensor block_affinities(const Similarity& similarity, std::int64_t blocks,
                            std::string_view where);

/// The same of every pair of models: a similarity of all pairs of blocks, 0 within a model. Throws
/// Error{kInput} where similarities are not of all pairs. Errors as align().
Similarity block_similarity(const Similarity& similarity, std::int64_t blocks,
                            std::string_view where);

/// align() with the order of blocks given: `blocks` is an alignment whose units are the blocks. The
/// value is the mean of the inner means. Errors as align().
Matching align_within(const Similarity& similarity, const Matching& blocks, std::string_view where);

/// align_to_mean() with the order of blocks given, inside each of them. The value is the mean over
/// blocks. Errors as align_to_mean().
Matching align_within_to_mean(const Similarity& similarity, const Matching& blocks,
                              std::string_view where);

}  // namespace weightsmith
