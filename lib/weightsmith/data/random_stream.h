#pragma once

#include <cstdint>

namespace weightsmith {

/// First coordinate of every random stream of data and training (core/rng.h), so that no two
/// purposes share numbers under one seed. Values are part of the reproducibility of runs: never
/// reuse one.
enum RandomStream : std::uint64_t {
  kSubsetStream = 1,      ///< (subset_seed): which samples `limit` keeps
  kShuffleStream = 2,     ///< (seed, epoch): order of an epoch
  kAugmentStream = 3,     ///< (seed, epoch, sample, pipeline): one augmented view
  kValidationStream = 4,  ///< (seed): which training samples validate
  kEmbeddingStream = 5,   ///< (embedding seed, class): random class embeddings
  kNoiseStream = 6,       ///< (seed): label noise
  kForwardStream = 7,     ///< (seed, step): what a network draws itself (dropout)
  kBootstrapStream = 8,   ///< (seed): resamples of reference samples
  kBaselineStream = 9,    ///< (seed): which sample is whose baseline
  kMixingStream = 10,     ///< (seed, epoch, batch, pipeline): mixup and cutmix
  kFlatnessStream = 11,   ///< (seed): samples and directions that flatness is measured with
  kOwnOrderStream = 12,   ///< (seed, epoch, pipeline): order of an epoch for one pipeline alone
  kNormOrderStream = 13,  ///< (0): order of samples that batch-norm statistics are taken in
};

}  // namespace weightsmith
