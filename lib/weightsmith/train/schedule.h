#pragma once

#include <cstdint>

#include "weightsmith/train/train_config.h"

namespace weightsmith {

/// The learning rate of a batch, as the authors of Lookaround schedule it: linear from 0 over the
/// first `warmup_epochs` epochs, once a batch,
///     lr · (epoch · batches + batch) / (warmup_epochs · batches),
/// then constant, or the cosine of the epoch (Loshchilov & Hutter, "SGDR", ICLR 2017, eq. 5)
///     min_lr + ½ (lr − min_lr) (1 + cos(π · epoch / epochs)),
/// which counts epochs from the start of the run, warm-up included.
/// `epoch` and `batch` count from 0; `batches` is the number of batches an epoch.
double learning_rate(const ScheduleConfig& schedule, double lr, std::int64_t epochs,
                     std::int64_t batches, std::int64_t epoch, std::int64_t batch);

}  // namespace weightsmith
