#pragma once

#include <string_view>

#include "weightsmith/match/matching.h"
#include "weightsmith/match/similarity.h"

namespace weightsmith {

/// How alike the units are that a matching joins, by a similarity of your choice: a slot of c units
/// counts c - 1 times with the mean similarity of its pairs, so that every joining counts once. The
/// similarity need not be the one that was matched on: this is how matchings of different spaces
/// are compared. Similarities across models only (Similarity::Scope::kCrossModel) see the pairs
/// that hold a unit of model 0. 0 when nothing was joined. O(sum of c^2).
/// Throws Error{kInput} naming `where` when models or units differ.
double agreement(const Similarity& similarity, const Matching& matching, std::string_view where);

}  // namespace weightsmith
