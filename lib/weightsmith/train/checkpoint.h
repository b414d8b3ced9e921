#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "weightsmith/data/loader.h"
#include "weightsmith/tensor/tensor_map.h"

namespace weightsmith {

class Progress;

/// Everything a run needs to go on as if it had never stopped. A file
/// `checkpoint-<epoch>-<batch>.safetensors` holds the tensors, and the rest as JSON in its
/// metadata, under `weightsmith`.
struct Checkpoint {
  LoaderPosition position;  ///< of the next batch; batch = batches of an epoch: not yet scored
  std::int64_t steps = 0;   ///< base steps made
  double loss_sum = 0;      ///< of the running epoch, over `loss_count` steps
  std::int64_t loss_count = 0;
  double elapsed_s = 0;                              ///< of the running epoch
  nlohmann::json history = nlohmann::json::array();  ///< one object a finished epoch
  nlohmann::json config;           ///< what the run was made with (checkpoint_config)
  nlohmann::json data = {};        ///< data_keys() of what it learns from; null in older ones
  nlohmann::json loss_scale = {};  ///< LossScale::state(); null without one
  /// The best epoch so far on the validation share: `epoch` (from 1) and `validation`
  /// (evaluation_json); null without one, and in older checkpoints.
  nlohmann::json best = {};
  TensorMap best_weights;  ///< the network of that epoch, ScriptModel::state_dict()
  TensorMap optimizer;     ///< TrainingMethod::state()
  TensorMap buffers;       ///< NormStatistics::state()
};

/// Writes a checkpoint (atomic), then removes others but the `keep - 1` before it. One that is
/// ahead of it was damaged, else the run had gone on from there: it would be taken for the newest.
/// Throws Error{kOutput}.
std::filesystem::path write_checkpoint(const std::filesystem::path& folder,
                                       const Checkpoint& checkpoint, std::int64_t keep);

/// The checkpoints in `folder`, newest first.
std::vector<std::filesystem::path> checkpoints_in(const std::filesystem::path& folder);

/// Throws Error{kInput} naming the file when it is damaged or not a checkpoint.
Checkpoint read_checkpoint(const std::filesystem::path& path);

/// The newest checkpoint in `folder` that is not damaged, with its path; null where there is none.
/// Newer, damaged ones are warned of. Throws Error{kInput} naming the newest when all are damaged.
std::optional<std::pair<std::filesystem::path, Checkpoint>> newest_sound_checkpoint(
    const std::filesystem::path& folder, Progress& progress);

/// Removes every checkpoint in `folder`.
void remove_checkpoints(const std::filesystem::path& folder);

/// Throws Error{kInput} naming the data sets of which two data_keys() differ; null tells nothing.
void check_same_data(const nlohmann::json& saved, const nlohmann::json& present,
                     const std::filesystem::path& checkpoint);

/// Throws Error{kConfig} naming the keys in which two configurations differ.
void check_same_config(const nlohmann::json& saved, const nlohmann::json& present,
                       const std::filesystem::path& checkpoint);

}  // namespace weightsmith
