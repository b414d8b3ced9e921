#pragma once

#include <ATen/ATen.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "support/images.h"
#include "unit/train/tiny_training.h"
#include "weightsmith/core/progress.h"
#include "weightsmith/core/stop.h"
#include "weightsmith/tensor/safetensors.h"
#include "weightsmith/train/trainer.h"

/// Whole trainings of a tiny network, and what they leave behind.
namespace weightsmith::testing {

inline TrainConfig small_config(const std::filesystem::path& out) {
  TrainConfig config = tiny_training(out);
  config.augmentations = {{{Augmentation::Name::kRandomCrop}}, {{Augmentation::Name::kAffine}}, {}};
  config.seed = 9;
  return config;
}

/// Keeps what it is warned of.
class Warnings final : public Progress {
 public:
  void begin(std::string_view, std::int64_t, std::string_view) override {}
  void update(std::int64_t, std::string_view) override {}
  void end() override {}
  void warn(std::string_view message) override { text += std::string(message) + "\n"; }

  std::string text;
};

/// Asks the run to stop at its `at`-th report of progress, counted over all phases.
class StopAt final : public Progress {
 public:
  explicit StopAt(std::int64_t at) : left_(at) {}
  void begin(std::string_view, std::int64_t, std::string_view) override {}
  void update(std::int64_t, std::string_view) override {
    if (--left_ == 0) request_stop(15);
  }
  void end() override {}

 private:
  std::int64_t left_;
};

inline TensorMap weights_of(const std::filesystem::path& out) {
  return read_safetensors(out / "model.safetensors").tensors;
}

/// Of an archive. Its bytes depend on what else this process loaded: classes of one name are
/// numbered.
inline TensorMap network_of(const std::filesystem::path& archive) {
  ModelRef ref;
  ref.script = archive;
  return ScriptModel::load(ref, {}).state_dict();
}

inline bool same(const TensorMap& a, const TensorMap& b) {
  if (a.size() != b.size()) return false;
  for (const auto& [name, tensor] : a)
    if (b.count(name) == 0 || !b.at(name).equal(tensor)) return false;
  return true;
}

/// The rows of metrics.jsonl without wall times.
inline std::vector<nlohmann::json> metrics_of(const std::filesystem::path& out) {
  std::vector<nlohmann::json> rows;
  std::ifstream in(out / "metrics.jsonl");
  for (std::string line; std::getline(in, line);) {
    rows.push_back(nlohmann::json::parse(line));
    rows.back().erase("seconds");
  }
  return rows;
}

inline void train_quietly(const TrainConfig& config) {
  NoProgress progress;
  train(config, {}, progress);
}

/// Images of three channels in place of the digits.
inline void show_colours(TrainConfig& config, const std::filesystem::path& file) {
  const at::Tensor images = at::randint(256, {90, 3, 8, 8}, at::kByte);
  write_safetensors(file, {{"images", images}, {"labels", at::arange(90).remainder(10)}});
  config.model.options["channels"] = 3;
  config.data.train.format = config.data.test->format = DataConfig::Format::kTensors;
  config.data.train.path = config.data.test->path = file;
  config.data.train.split = config.data.test->split = DataConfig::Split::kAll;
}

/// Every method, and every kind of state that a run may have beside it.
inline std::vector<std::pair<std::string, TrainConfig>> all_kinds_of_runs(
    const std::filesystem::path& folder) {
  using Type = MethodConfig::Type;
  std::vector<std::pair<std::string, TrainConfig>> runs;
  const auto add = [&](const std::string& name, Type type) -> TrainConfig& {
    runs.emplace_back(name, small_config(folder / name));
    TrainConfig& config = runs.back().second;
    config.method.type = type;
    config.data.validation = 0.2;
    config.schedule.warmup_epochs = 0;
    return config;
  };
  for (const auto& [type, name] : enum_names(Type{})) add(name, type);
  runs.back().second.method.decay = 0.9;
  TrainConfig& swa = add("swa early", Type::kSwa);
  swa.method.start_epoch = 1;
  swa.method.lr = 0.03;
  swa.method.every = 2;
  TrainConfig& swad = add("swad every batch", Type::kSwad);
  swad.method.validate_every = 1;
  swad.method.n_s = 2;
  swad.method.n_e = 2;
  swad.method.r = 1;
  TrainConfig& per_head = add("per head", Type::kLookaround);
  per_head.method.batch_norm = NormMode::kPerHead;
  per_head.method.batch_norm_scores = {NormMode::kShared};
  per_head.optimizer.type = OptimizerConfig::Type::kAdam;
  per_head.optimizer.lr = 0.003;
  TrainConfig& recomputed = add("recomputed", Type::kLookaround);
  recomputed.method.batch_norm = NormMode::kRecompute;
  recomputed.optimizer.type = OptimizerConfig::Type::kAdamW;
  recomputed.optimizer.lr = 0.003;
  recomputed.optimizer.accumulate = 2;
  recomputed.optimizer.clip_norm = 0.5;
  recomputed.optimizer.groups = {{{"*.bias", "bn*"}, 2, 0.0}};
  // No more reports a score than the shortest stretch between two stops of resume_test.cpp.
  add("scored per head", Type::kLookaround).method.batch_norm_scores = {NormMode::kPerHead};
  add("bfloat16", Type::kLookaround).precision = Precision::kBFloat16;
  TrainConfig& on_device = add("augmented on the device", Type::kLookaround);
  on_device.augment_on = AugmentOn::kDevice;
  on_device.augmentations[2] = {augmentation(Augmentation::Name::kTrivialAugment),
                                augmentation(Augmentation::Name::kMixup)};
  add("independent", Type::kLookaround).data.draw = DrawMode::kIndependent;
  show_colours(add("channels innermost", Type::kSgd), folder / "colours.safetensors");
  return runs;
}

}  // namespace weightsmith::testing
