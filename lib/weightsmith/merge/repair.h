#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "weightsmith/core/progress.h"
#include "weightsmith/data/dataset.h"
#include "weightsmith/graph/unit_groups.h"
#include "weightsmith/match/matching.h"
#include "weightsmith/merge/transform.h"
#include "weightsmith/model/script_model.h"

namespace weightsmith {

/// A layer that gives units their scale and their offset: y = weight · (…) + bias, one weight row
/// and one bias a unit. A convolution or linear layer with a bias, or the affine part of a norm.
struct AffineLayer {
  std::string weight;
  std::string bias;
  std::int64_t axis = 0;  ///< of the weight, along which the units lie
  /// Above 1: of a grouped transposed convolution, whose second axis each of so many groups of the
  /// first one uses for other outputs.
  std::int64_t groups = 1;
};

/// The layers at which the units of every group can be rescaled without changing the network's
/// form: X.bias with X.weight and X_bias with X_weight (in_proj_weight), both members that produce
/// units and as many of them, for every such pair. A layer is rescaled as a whole: outputs that
/// belong to no group or to another one (packed queries, keys and values) with it. Throws
/// Error{kInput} naming the first group with a layer that produces its units without a bias and
/// without a norm behind it, so that there is nothing to fold an offset into.
std::vector<AffineLayer> affine_layers(const UnitGroups& groups, const TensorMap& parameters);

/// Mean and standard deviation of the outputs of affine layers, one value a unit, by bias name.
struct LayerMoments {
  at::Tensor mean;       ///< (n) double
  at::Tensor deviation;  ///< (n) double
};
using OutputMoments = std::map<std::string, LayerMoments>;

/// Measures a network, in eval mode, on all of `data`. Throws Error{kInput} naming the network and
/// a layer that is never run, or whose bias the network uses in a way that is not understood,
/// Error{kNumeric} naming a bias where outputs are not finite.
OutputMoments output_moments(ScriptModel& model, const std::vector<AffineLayer>& layers,
                             const Dataset& data, std::int64_t batch_size, at::Device device,
                             Progress& progress);

/// What a merged network's units should have: a unit's moments are merged as its bias is, by the
/// mean over its slot, weighed by `shares`. `originals`: one a model.
OutputMoments merged_moments(const std::vector<AffineLayer>& layers,
                             const std::vector<OutputMoments>& originals, const UnitGroups& groups,
                             const std::vector<Matching>& matchings, const ModelShares& shares);

/// Σ weights[i] · moments[i]; the weights should sum to 1 and may be negative, a deviation is at
/// least 0.
OutputMoments blended_moments(const std::vector<OutputMoments>& moments,
                              const std::vector<double>& weights);

/// REPAIR (Jordan, Sedghi, Saukh, Entezari, Neyshabur, "REPAIR: REnormalizing Permuted Activations
/// for Interpolation Repair", ICLR 2023): averaging shrinks the variance of activations, layer
/// after layer. Every unit's output of every affine layer is shifted and scaled to the mean and
/// deviation that its originals had, interpolated by their shares (merged_moments); both are folded
/// into weight and bias. Networks without batch norm profit; batch-norm statistics, where there are
/// any, are recomputed in the same pass, as reset_batch_norm does.
///
/// One pass over `data`: while it runs, each batch is rescaled by its own statistics, so that later
/// layers see what they will see when all is folded; what is folded are the statistics over all
/// batches. A unit whose deviation is below a thousandth of the wanted
/// one (dead in the merged network) is shifted and not scaled. Differences from the paper: norms'
/// outputs are rescaled as well; nothing beyond the groups (the last layer) is touched. Returns the
/// number of layers rescaled.
std::int64_t repair(ScriptModel& merged, const std::vector<AffineLayer>& layers,
                    const OutputMoments& targets, const Dataset& data, std::int64_t batch_size,
                    at::Device device, Progress& progress);

}  // namespace weightsmith
