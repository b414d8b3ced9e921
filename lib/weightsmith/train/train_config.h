#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "weightsmith/data/augment.h"
#include "weightsmith/data/data_config.h"
#include "weightsmith/eval/flatness.h"
#include "weightsmith/eval/objective.h"
#include "weightsmith/model/precision.h"
#include "weightsmith/model/script_model.h"
#include "weightsmith/train/lookahead.h"

namespace weightsmith {

/// Which training samples the pipelines show in a batch.
enum class DrawMode {
  kSame,         ///< the same ones, as the paper of Lookaround means
  kIndependent,  ///< each the next ones of an own order, as in the program of its authors
};
EnumNames<DrawMode> enum_names(DrawMode);

struct TrainDataConfig {
  DataConfig train;
  std::optional<DataConfig> test;  ///< scored after every epoch, or once at the end if `validation`
  double validation = 0.0;         ///< share of the training set held out and scored every epoch
  double label_noise = 0.0;        ///< share of training labels replaced by a uniform class
  DrawMode draw = DrawMode::kSame;
};

/// Who augments the training images.
enum class AugmentOn {
  kAuto,    ///< the device, where it is a GPU and takes them, else the CPU
  kCpu,     ///< the loader's threads, image by image
  kDevice,  ///< the device, which holds all of them as bytes (data/device_batches.h)
};
EnumNames<AugmentOn> enum_names(AugmentOn);

/// Where the batch-norm statistics of the result come from.
enum class NormMode {
  kAuto,       ///< what the paper of the method does: recompute for swa, swad and ema, else shared
  kShared,     ///< one set that every step of every head updates
  kPerHead,    ///< a set a head; the result has their mean
  kRecompute,  ///< computed anew on the training samples for a result that is an average
};
EnumNames<NormMode> enum_names(NormMode);

/// A method and the keys of all methods; those of others have no effect, so that `type` can be
/// changed by itself (train/unused_keys.h warns of them).
struct MethodConfig {
  enum class Type { kSgd, kLookaround, kSwa, kSwad, kLookahead, kEma };
  Type type = Type::kLookaround;
  std::int64_t heads = 3;  ///< lookaround: d networks side by side, one augmentation pipeline each
  std::int64_t k = 5;      ///< lookaround: rounds; lookahead: steps between two averages
  double alpha = 0.5;      ///< lookahead: how far the slow weights go
  SlowFrom slow_from = SlowFrom::kStart;    ///< lookahead: what they start as
  double decay = 0.999;                     ///< ema: β
  std::optional<std::int64_t> start_epoch;  ///< swa: epochs before; default: three quarters
  std::int64_t every = 1;                   ///< swa: batches between two weights averaged
  std::optional<double> lr;                 ///< swa: learning rate there; default: the schedule's
  std::int64_t anneal_epochs = 10;          ///< swa: over which the rate gets there
  std::int64_t n_s = 3;                     ///< swad: N_s
  std::int64_t n_e = 6;                     ///< swad: N_e
  double r = 1.2;                           ///< swad: tolerance rate
  std::optional<std::int64_t> validate_every;  ///< swad: batches; default: once an epoch
  NormMode batch_norm = NormMode::kAuto;
  /// What else the result is scored with: as if `batch_norm` had been that, from one training.
  std::vector<NormMode> batch_norm_scores = {};
  std::vector<std::string> given = {};  ///< keys that the configuration names

  /// What `batch_norm` comes to; never kAuto.
  NormMode norm_mode() const;
  /// `batch_norm_scores`; none for plain training, which has no average.
  std::vector<NormMode> scored_norm_modes() const;
  /// Copies of the parameters that gradients are taken at.
  std::int64_t trained_heads() const { return type == Type::kLookaround ? heads : 1; }
  std::int64_t first_averaged_epoch(std::int64_t epochs) const {
    return start_epoch.value_or(epochs * 3 / 4);
  }
};

EnumNames<MethodConfig::Type> enum_names(MethodConfig::Type);

/// Parameters that are stepped in a way of their own.
struct ParameterGroup {
  std::vector<std::string> parameters;      ///< patterns of names, as in `freeze`
  double lr_factor = 1;                     ///< times the schedule's rate
  std::optional<double> weight_decay = {};  ///< default: the optimiser's
};
void from_config(const ConfigNode& node, ParameterGroup& config);
nlohmann::json to_config(const ParameterGroup& config);

struct OptimizerConfig {
  enum class Type { kSgd, kAdam, kAdamW };
  Type type = Type::kSgd;
  double lr = 0.1;
  double momentum = 0.9;   ///< sgd
  double dampening = 0.0;  ///< sgd
  double weight_decay = 5e-4;
  bool nesterov = false;                    ///< sgd
  double beta1 = 0.9;                       ///< adam, adamw
  double beta2 = 0.999;                     ///< adam, adamw
  double epsilon = 1e-8;                    ///< adam, adamw
  std::optional<double> clip_norm = {};     ///< largest norm of all gradients together
  std::optional<double> clip_value = {};    ///< largest absolute value of a gradient
  std::int64_t accumulate = 1;              ///< parts that a batch's gradient is summed over
  std::vector<ParameterGroup> groups = {};  ///< the first that fits counts
  std::vector<std::string> given = {};      ///< as in MethodConfig
};

EnumNames<OptimizerConfig::Type> enum_names(OptimizerConfig::Type);

struct ScheduleConfig {
  enum class Type { kConstant, kCosine, kMultiStep, kOneCycle };
  Type type = Type::kCosine;
  std::int64_t warmup_epochs = 1;             ///< linear from 0, once a batch
  double min_lr = 1e-5;                       ///< what cosine and one_cycle fall to
  std::vector<std::int64_t> milestones = {};  ///< multi_step: epochs from which the rate is lower
  double gamma = 0.1;                         ///< multi_step: by this factor each
  double peak = 0.3;                    ///< one_cycle: share of the run up to the highest rate
  double start_divisor = 25;            ///< one_cycle: begins at lr / start_divisor
  std::vector<std::string> given = {};  ///< as in MethodConfig
};

EnumNames<ScheduleConfig::Type> enum_names(ScheduleConfig::Type);

/// A teacher to learn from (train/distillation.h).
struct DistillationConfig {
  enum class Type { kSoft, kHard };
  ModelRef teacher;
  Type type = Type::kSoft;
  double temperature = 4.0;  ///< of soft targets
  double weight = 1.0;       ///< w: share of the teacher in the loss; the labels have the rest
};
EnumNames<DistillationConfig::Type> enum_names(DistillationConfig::Type);
void from_config(const ConfigNode& node, DistillationConfig& config);
nlohmann::json to_config(const DistillationConfig& config);

/// One method of a comparison: its type ("swa"), or an object with keys of `method` and, where two
/// have the same type, a `name`. What it does not say is as in `method`.
struct ComparedMethod {
  std::string name;          ///< of its folder and its row; default: the type
  nlohmann::json overrides;  ///< of `method`
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
  AugmentOn augment_on = AugmentOn::kAuto;
  MethodConfig method;
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
  std::int64_t epochs = 200;  ///< passes over the training set, each seen once by every pipeline
  std::int64_t batch_size = 128;
  /// Of the network's forward and backward passes (autocast); float16 on a GPU, with a loss scale
  /// (train/loss_scale.h). Weights, loss and averages are float32, and so are evaluations.
  Precision precision = Precision::kFloat32;
  ObjectiveConfig objective;
  std::optional<DistillationConfig> distillation;
  std::vector<std::string> freeze;  ///< patterns of names of parameters that are not trained
  CheckpointConfig checkpoint;
  std::optional<FlatnessConfig> flatness;       ///< measured around the result
  std::vector<ComparedMethod> compare;          ///< not empty: train and compare these methods
  std::vector<std::int64_t> seeds = {0, 1, 2};  ///< of a comparison
  std::int64_t seed = 0;
  std::filesystem::path out;
  std::string device = "auto";
  std::int64_t threads = 0;  ///< 0: what the process may use

  /// Gradients taken a batch: one a pipeline.
  std::int64_t views() const {
    return std::max<std::int64_t>(static_cast<std::int64_t>(augmentations.size()), 1);
  }

  /// `method` with the overrides of `compare[index]`. Throws Error{kConfig} naming the key.
  MethodConfig compared_method(std::size_t index) const;

  /// Cross-field rules a schema cannot say; throws Error{kConfig} naming the key.
  void validate() const;
};

nlohmann::json to_config(const MethodConfig& config);
nlohmann::json to_config(const OptimizerConfig& config);
nlohmann::json to_config(const ScheduleConfig& config);

void from_config(const ConfigNode& node, TrainConfig& config);
nlohmann::json to_config(const TrainConfig& config);

/// What the weights of one run depend on: where a run writes, how it is run, what it is compared
/// with and what is measured afterwards may change when it is resumed.
nlohmann::json lasting_config(const TrainConfig& config);
/// `saved`, the lasting configuration of a run that an older version may have made, with the keys
/// of `present` that it lacks: at their defaults, as that version had them without knowing
/// (with_missing_keys).
nlohmann::json completed_config(const nlohmann::json& saved, const nlohmann::json& present);

}  // namespace weightsmith
