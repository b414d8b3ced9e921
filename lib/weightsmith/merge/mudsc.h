#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "weightsmith/core/progress.h"
#include "weightsmith/graph/unit_groups.h"
#include "weightsmith/match/matching.h"
#include "weightsmith/match/similarity.h"
#include "weightsmith/merge/merge_config.h"
#include "weightsmith/merge/transform.h"
#include "weightsmith/tensor/tensor_map.h"

namespace weightsmith {

/// Networks of one architecture, as tensors.
struct NetworkStates {
  std::vector<TensorMap>
      models;  ///< parameters and buffers by qualified name, equal shapes in every model where
               ///< their groups are equally wide (UnitGroup::widths)
  std::set<std::string>
      buffers;  ///< names that are no parameters: they follow their units but say nothing of them
};

/// The pairs of units whose similarity a method needs.
Similarity::Scope similarity_scope(MergeMethod method, AlignReference reference,
                                   std::size_t models);

struct MatchOptions {
  MergeVariant variant;
  AlignConfig align;
  ZipConfig zip;
  IterationConfig iterations;
  SimilarityMeasure similarity = SimilarityMeasure::kCorrelation;
  AttentionHeads attention_heads = AttentionHeads::kTied;
};

struct MatchResult {
  std::vector<Matching> matchings;  ///< one a group, in the order of the groups
  std::vector<double>
      objective_history;  ///< mean value over the groups after each sweep (empty without sweeps)
  double objective = 0;   ///< of the matchings returned
  std::int64_t groups_matched = 0;     ///< in all sweeps together
  std::vector<std::int64_t> compared;  ///< how often each group was, by its weights
  std::int64_t groups_skipped = 0;     ///< because none of their neighbours had changed
  double similarity_s = 0;             ///< wall time in weight similarities
  double matching_s = 0;               ///< wall time in assignments and zips
};

/// What the axes of groups that are not matched yet count for when weights are compared.
enum class UnmatchedAxes {
  kInOrder,  ///< they are taken to correspond as they stand
  kLeaveOut  ///< parameters that have such an axis say nothing
};

/// Similarity of the units of group `g` by their weights: for every parameter among its members
/// (running statistics say nothing of a unit's weights and are left out) the other axes are brought
/// into the order of the current matchings of the groups they carry, so that columns correspond;
/// then units are rows and everything else columns. `matchings[h]` may be empty (slots == 0): group
/// h is not matched yet, and `unmatched` says what that means. As in the authors' code, axes that
/// consume units are averaged here and axes that produce them added up, the reverse of what merging
/// does at the end; for permutations both are the same.
PackedSimilarity weight_similarity(const NetworkStates& states, const UnitGroups& groups,
                                   const ParameterUses& uses, std::size_t g,
                                   const std::vector<Matching>& matchings,
                                   SimilarityMeasure measure, Similarity::Scope scope,
                                   UnmatchedAxes unmatched = UnmatchedAxes::kInOrder);

/// Matches the units of every group (Xu et al., "Training-Free Pretrained Model Merging", CVPR
/// 2024, section 3.3 and algorithm 1; the weight-space sweeps are those of Git Re-Basin, Ainsworth
/// et al., ICLR 2023, algorithm 1). Activation space: each group once. Weight and dual space:
/// sweeps over all groups in random order until the mean similarity of the matched units stops
/// improving; dual space starts from the activation matchings. A
/// sweep that does not improve is undone before the next one, in its own random order, is tried. A
/// group none of whose neighbours (groups that meet it in a parameter) has changed since it was
/// last matched is skipped: it would be matched to the same result. Networks of unequal widths, in
/// weight space, start from matchings spread from inputs and outputs (SweepStart::kPropagate).
/// `activation`: one a group, of
/// all pairs or of what the method needs (similarity_scope); unused and possibly empty in weight
/// space and for `average`. Throws Error{kNumeric} naming the group for non-finite similarities.
MatchResult match_units(const NetworkStates& states, const UnitGroups& groups,
                        const std::vector<PackedSimilarity>& activation,
                        const MatchOptions& options, Progress& progress);

/// How alike matched units are by their weights, with the groups around them matched, and by their
/// activations: means over the groups of agreement() (match/agreement.h). Unlike
/// MatchResult::objective they compare matchings found in different spaces or at different
/// balances. `scope`: the pairs of units that are looked at, those that the matchings were found by
/// (similarity_scope). One weight similarity a group; `activation` as for match_units, empty: its
/// mean is 0.
struct SpaceAgreement {
  double weight = 0;
  double activation = 0;
};
SpaceAgreement space_agreement(const NetworkStates& states, const UnitGroups& groups,
                               const std::vector<PackedSimilarity>& activation,
                               const std::vector<Matching>& matchings, SimilarityMeasure measure,
                               Similarity::Scope scope, Progress& progress);

}  // namespace weightsmith
