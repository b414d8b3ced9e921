#pragma once

#include <filesystem>
#include <functional>
#include <nlohmann/json_fwd.hpp>

#include "weightsmith/train/train_config.h"
#include "weightsmith/train/trainer.h"

namespace weightsmith {

/// Trains every method of `config.compare` with every seed of `config.seeds`, each as train() does
/// by itself, into `config.out`/NAME/seed-SEED, and compares their scores: on the test data, else
/// on the validation share.
///
/// All runs make the same number of gradient evaluations, on the same samples in the same order
/// through the same augmentations: batches depend on the seed alone (data/loader.h), and initial
/// weights, validation share and label noise as well. What methods spend beside gradients
/// (validations of SWAD, batch-norm statistics computed anew) comes on top and is not counted.
///
/// A run that is finished leaves results.json in its folder, and its checkpoints go. With
/// `options.resume` runs with the same configuration that are finished are taken as they are, and
/// the one that was stopped goes on from its checkpoint.
///
/// Writes to `config.out` comparison.json, comparison.csv (one line a run), comparison.md and
/// comparison.svg (train/curves.h), and returns the JSON (docs/tools/lookaround-train.md); `wrote`
/// is told of every file. Throws as train() does; methods, network and data are tried
/// (training_plan) before the first run begins.
nlohmann::json compare_methods(const TrainConfig& config, const TrainOptions& options,
                               Progress& progress,
                               const std::function<void(const std::filesystem::path&)>& wrote);

/// What compare_methods would do: training_plan() of each method, and the number of runs.
nlohmann::json comparison_plan(const TrainConfig& config, const TrainOptions& options);

}  // namespace weightsmith
