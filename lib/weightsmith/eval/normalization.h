#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "weightsmith/core/progress.h"
#include "weightsmith/data/dataset.h"
#include "weightsmith/model/script_model.h"

namespace weightsmith {

/// Recomputes the running statistics of every batch norm on `data`: averaging weights shrinks the
/// variance of activations, and a merged network with averaged statistics is useless (Jordan et
/// al., "REPAIR", ICLR 2023, section 3; Izmailov et al., "Averaging Weights Leads to Wider Optima",
/// UAI 2018, section 3.2). Batches flow through the network normalised by their own statistics, as
/// in training; the new running mean and (unbiased) variance of a layer are those of all its inputs
/// over the set, batches merged exactly in double, with no momentum and whatever the batches'
/// sizes. Where neighbours are mostly of one class, samples are taken in a random order, always the
/// same, so that every batch looks like the set; else in their own. A last batch of one sample has
/// no variance and is left out. A batch norm without running
/// statistics is not touched; `num_batches_tracked` stays. Works for archives traced in eval mode
/// as well. Returns the number of layers reset; 0 without batch norm. Throws naming the network and
/// the first layer whose inputs are not finite (Error{kNumeric}) or are one observation a channel
/// (Error{kInput}).
std::int64_t reset_batch_norm(ScriptModel& model, const Dataset& data, std::int64_t batch_size,
                              at::Device device, Progress& progress);

}  // namespace weightsmith
