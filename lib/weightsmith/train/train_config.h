#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "weightsmith/data/augment.h"
#include "weightsmith/data/data_config.h"
#include "weightsmith/eval/objective.h"
#include "weightsmith/model/script_model.h"

namespace weightsmith {

struct TrainDataConfig {
  DataConfig train;
  std::optional<DataConfig> test;  ///< scored after every epoch, or once at the end if `validation`
  double validation = 0.0;         ///< share of the training set held out and scored every epoch
  double label_noise = 0.0;        ///< share of training labels replaced by a uniform class
};

struct MethodConfig {
  enum class Type { kSgd, kLookaround };
  Type type = Type::kLookaround;
  std::int64_t heads = 3;  ///< d: networks trained side by side, one augmentation pipeline each
  std::int64_t k = 5;      ///< rounds between two averages
};

struct OptimizerConfig {
  enum class Type { kSgd };
  Type type = Type::kSgd;
  double lr = 0.1;
  double momentum = 0.9;
  double dampening = 0.0;
  double weight_decay = 5e-4;
  bool nesterov = false;
};

struct ScheduleConfig {
  enum class Type { kConstant, kCosine };
  Type type = Type::kCosine;
  std::int64_t warmup_epochs = 1;  ///< linear from 0, once a batch
  double min_lr = 1e-5;            ///< what cosine falls to
};

struct CheckpointConfig {
  std::int64_t every_epochs = 1;
  std::int64_t keep = 2;  ///< the newest so many; older ones are removed
};

/// Everything lookaround-train can be told. Field order = schema order = docs order.
struct TrainConfig {
  ModelRef model;
  TrainDataConfig data;
  std::vector<Pipeline> augmentations;  ///< one a head; other methods step through them in turn
  MethodConfig method;
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
  std::int64_t epochs = 200;  ///< passes over the training set, each seen once by every pipeline
  std::int64_t batch_size = 128;
  ObjectiveConfig objective;
  CheckpointConfig checkpoint;
  std::int64_t seed = 0;
  std::filesystem::path out;
  std::string device = "auto";
  std::int64_t threads = 0;  ///< 0: what the process may use

  /// Cross-field rules a schema cannot say; throws Error{kConfig} naming the key.
  void validate() const;
};

void from_config(const ConfigNode& node, TrainConfig& config);
nlohmann::json to_config(const TrainConfig& config);

}  // namespace weightsmith
