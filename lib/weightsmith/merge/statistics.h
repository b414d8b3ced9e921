#pragma once

#include <cstdint>
#include <vector>

#include "weightsmith/core/progress.h"
#include "weightsmith/data/dataset.h"
#include "weightsmith/graph/unit_groups.h"
#include "weightsmith/match/similarity.h"
#include "weightsmith/merge/merge_config.h"
#include "weightsmith/model/script_model.h"

namespace weightsmith {

struct StatisticsOptions {
  std::int64_t batch_size = 128;
  SimilarityMeasure measure = SimilarityMeasure::kCorrelation;
  Similarity::Scope scope = Similarity::Scope::kAllPairs;
  std::int64_t memory = std::int64_t{2} << 30;  ///< bytes that sums of products may take, see below
};

/// Similarity of the units of every group by what they compute: all models see the same samples,
/// and the activations at a group's taps are accumulated as they appear. One pass over the data
/// serves as many groups as `memory` holds the sums of, and at least one; where it holds all, as
/// for most networks, there is one pass. The result does not depend on it. Held at a time beside
/// the results and these sums: the taps of one batch for all models but the last. Tensors that a
/// tap may show: (B, n, …) for a consumer with spatial axes (convolution); (…, n) for a linear one,
/// or (…, n·k) where an image was flattened, k consecutive elements a unit, which count as k more
/// positions. Result: one a group, in the order of the groups.
/// Throws Error{kInput} naming the group, and the group file it is from, when it has no tap, the
/// network lacks the tap, or the tap's shape does not hold its units; and Error{kNumeric} naming
/// the tap for non-finite activations.
std::vector<PackedSimilarity> activation_similarity(std::vector<ScriptModel>& models,
                                                    const UnitGroups& groups, const Dataset& data,
                                                    const StatisticsOptions& options,
                                                    at::Device device, Progress& progress);

/// What activation_similarity takes for its results and sums together, in bytes.
std::int64_t statistics_bytes(const UnitGroups& groups, std::int64_t models,
                              const StatisticsOptions& options);

/// Runs every model once on `batch` (preprocessing comes on top) and throws what
/// activation_similarity would: a tap that is missing, not reached, used a different number of
/// times or without its group's units, an input of the wrong size. No similarity is computed.
void try_taps(std::vector<ScriptModel>& models, const UnitGroups& groups, const at::Tensor& batch);

}  // namespace weightsmith
