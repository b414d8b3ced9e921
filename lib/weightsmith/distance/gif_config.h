#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "weightsmith/config/fields.h"
#include "weightsmith/data/data_config.h"
#include "weightsmith/distance/field_distance.h"
#include "weightsmith/distance/field_file.h"
#include "weightsmith/distance/gradient_field.h"
#include "weightsmith/distance/rank_statistics.h"
#include "weightsmith/model/model_ref.h"
#include "weightsmith/model/precision.h"

namespace weightsmith {

/// Where the paths begin: "zero", "shuffle" (another reference input, none its own), a number, or a
/// data set (its sample i for input i; a single sample for all).
struct BaselineConfig {
  enum class Kind { kZero, kShuffle, kNumber, kData };
  Kind kind = Kind::kZero;
  double number = 0;
  std::optional<DataConfig> data;
};
void from_config(const ConfigNode& node, BaselineConfig& config);
nlohmann::json to_config(const BaselineConfig& config);

struct ReferenceConfig {
  DataConfig data;
  BaselineConfig baseline;
  /// selection.json of a run of the task `select`: its order of samples, and what made it.
  std::filesystem::path selection;
};
void from_config(const ConfigNode& node, ReferenceConfig& config);
nlohmann::json to_config(const ReferenceConfig& config);

struct FieldConfig {
  FieldOptions options;  ///< keys rule, cumulative, multiply_by_inputs, target, …; `steps` below
  std::optional<std::int64_t> steps{50};  ///< nothing: "auto"; once known, options.steps as well
  /// "auto": the least number that doubling changes distances by at most so much, as a share of the
  /// largest distance.
  double steps_tolerance = 0.02;
  FieldStorage store = FieldStorage::kFloat32;
  /// Fold batch norms and keep channels innermost where fields of some samples agree to 1e-4.
  bool fast = true;
  /// bfloat16 costs digits: a run says how many. float16 is not offered.
  Precision precision = Precision::kFloat32;
};
void from_config(const ConfigNode& node, FieldConfig& config);
nlohmann::json to_config(const FieldConfig& config);

/// Models by name.
struct ModelGroup {
  std::string name;
  std::vector<std::string> models;
};
void from_config(const ConfigNode& node, ModelGroup& config);
nlohmann::json to_config(const ModelGroup& config);

enum class TaskType { kMatrix, kRelatedness, kOwnership, kSelect, kUnlearning };
EnumNames<TaskType> enum_names(TaskType);

struct TaskConfig {
  TaskType type = TaskType::kMatrix;
  std::string against;                        ///< matrix: distances to this model alone
  std::vector<std::vector<double>> affinity;  ///< relatedness
  std::string victim;                         ///< ownership, select, target victim_prediction
  std::vector<ModelGroup> groups;             ///< ownership: derived models, by how
  std::vector<std::string> surrogates;        ///< select
  std::vector<std::string> independents;      ///< ownership, select
  std::vector<std::int64_t> counts;           ///< ownership: reference samples on the curve
  std::int64_t draws = 20;  ///< ownership: random subsets a point, without a selection
  double false_positive_rate = 0.1;
  bool allow_overlap = false;  ///< ownership: mark, not refuse, a selection that leaks
  SampleRule rule = SampleRule::kGap;
  SampleStatistic statistic = SampleStatistic::kMean;
  std::vector<std::string> reference;  ///< unlearning: the reference's checkpoints, or one
  std::vector<ModelGroup> sequences;   ///< unlearning: sequences of one name are replicates
};
void from_config(const ConfigNode& node, TaskConfig& config);
nlohmann::json to_config(const TaskConfig& config);

/// Everything modelgif-dist can be told. Field order = schema order = order in
/// docs/tools/modelgif-dist.md.
struct GifConfig {
  std::vector<ModelRef> models;
  ReferenceConfig reference;
  FieldConfig field;
  DistanceKind distance = DistanceKind::kCosine;
  std::optional<std::int64_t> batch_size;  ///< points a batch; nothing: "auto"
  std::int64_t bootstrap = 1000;           ///< resamples of confidence intervals; 0: none
  std::filesystem::path cache;             ///< default: `out`/fields
  TaskConfig task;
  std::filesystem::path out;
  std::string device = "auto";
  std::int64_t threads = 0;
  std::int64_t seed = 0;

  /// Rules between fields. Throws Error{kConfig}.
  void validate() const;
  /// The position of a model; throws Error{kConfig} naming `key`.
  std::size_t index_of(const std::string& name, const std::string& key) const;
};
void from_config(const ConfigNode& node, GifConfig& config);
nlohmann::json to_config(const GifConfig& config);

}  // namespace weightsmith
