#pragma once

#include <cstdint>

#include "weightsmith/train/train_config.h"

namespace weightsmith {

/// The learning rate of a batch, as the authors of Lookaround schedule it: linear from 0 over the
/// first `warmup_epochs` epochs, once a batch,
///     lr · (epoch · batches + batch) / (warmup_epochs · batches),
/// then, with epochs counted from the start of the run, warm-up included,
/// - `constant`: lr;
/// - `cosine` of the epoch (Loshchilov & Hutter, "SGDR", ICLR 2017, eq. 5):
///   min_lr + ½ (lr − min_lr) (1 + cos(π · epoch / epochs));
/// - `multi_step`: lr · gamma^(number of milestones ≤ epoch);
/// - `one_cycle` (Smith & Topin, "Super-convergence", 2017, with cosines for lines as in PyTorch),
///   once a batch: with x = (epoch · batches + batch) / (epochs · batches − 1), from
///   lr / start_divisor at x = 0 to lr at x = peak to min_lr at x = 1, each by half a cosine. Its
///   warm-up, if there is any, rises to the value that the cycle has at its end, not to lr.
/// `epoch` and `batch` count from 0; `batches` is the number of batches an epoch.
double learning_rate(const ScheduleConfig& schedule, double lr, std::int64_t epochs,
                     std::int64_t batches, std::int64_t epoch, std::int64_t batch);

/// The learning rate of a run: the schedule's, but for SWA with `method.lr` from the first epoch
/// that is averaged, e₀, on: with s = ½ (1 − cos(π · min(1, (epoch − e₀) / anneal_epochs)))
///     s · method.lr + (1 − s) · (the schedule's at the start of e₀)
/// (what PyTorch's SWALR does; Izmailov et al., UAI 2018, keep it constant).
double learning_rate(const TrainConfig& config, std::int64_t batches, std::int64_t epoch,
                     std::int64_t batch);

}  // namespace weightsmith
