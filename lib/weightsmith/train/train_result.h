#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "weightsmith/data/loader.h"
#include "weightsmith/eval/evaluation.h"
#include "weightsmith/train/train_config.h"

namespace weightsmith {

/// The network of the epoch that scored best on the validation share: by accuracy, of a regression
/// by loss, the first of equal ones.
struct BestEpoch {
  std::int64_t epoch = 0;  ///< from 1
  Evaluation validation;
  std::optional<Evaluation> test;
  std::filesystem::path model;  ///< model-best.pt
};

/// The result's scores with the batch-norm statistics of a mode (`batch_norm_scores`).
struct NormScores {
  NormMode mode = NormMode::kShared;
  std::optional<Evaluation> validation;
  std::optional<Evaluation> test;
};

/// What a training came to.
struct TrainResult {
  std::int64_t epochs = 0;
  std::int64_t steps = 0;       ///< base steps, of all heads together
  std::int64_t parameters = 0;  ///< trained values of one head
  double train_loss = 0;        ///< mean of the last epoch
  std::int64_t skipped = 0;     ///< images that could not be read (`on_error` skip)
  std::optional<Evaluation> validation;
  std::optional<Evaluation> test;
  std::vector<NormScores> by_batch_norm;
  std::optional<BestEpoch> best;  ///< with a validation share
  std::optional<Flatness> flatness;
  std::optional<LoaderPosition> resumed_from;
  std::filesystem::path model;    ///< model.pt
  std::filesystem::path weights;  ///< model.safetensors
  std::filesystem::path metrics;  ///< metrics.jsonl
  std::filesystem::path curves;   ///< curves.svg
  double seconds = 0;             ///< of all epochs, scores included, whichever process made them
  /// Images shown to heads (samples times pipelines) a second of this process's training, scores
  /// included; 0 where all epochs were made before.
  double images_per_s = 0;
};

/// The summary; wall times are not part of it. `flatness` as `config` asks for it.
nlohmann::json train_result_json(const TrainResult& result, const TrainConfig& config);

/// For people, in Markdown: a table of what was scored, and a line on the training.
std::string train_result_table(const TrainResult& result);

}  // namespace weightsmith
