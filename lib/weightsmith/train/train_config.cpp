#include "weightsmith/train/train_config.h"

#include <cmath>

#include "weightsmith/config/fields.h"

namespace weightsmith {

EnumNames<MethodConfig::Type> enum_names(MethodConfig::Type) {
  return {{MethodConfig::Type::kSgd, "sgd"}, {MethodConfig::Type::kLookaround, "lookaround"}};
}

EnumNames<OptimizerConfig::Type> enum_names(OptimizerConfig::Type) {
  return {{OptimizerConfig::Type::kSgd, "sgd"}};
}

EnumNames<ScheduleConfig::Type> enum_names(ScheduleConfig::Type) {
  return {{ScheduleConfig::Type::kConstant, "constant"}, {ScheduleConfig::Type::kCosine, "cosine"}};
}

template <class Fields>
void fields(Fields& f, TrainDataConfig& c) {
  f("train", c.train);
  f("test", c.test);
  f("validation", c.validation);
  f("label_noise", c.label_noise);
}

template <class Fields>
void fields(Fields& f, MethodConfig& c) {
  f("type", c.type);
  f("heads", c.heads);
  f("k", c.k);
}

template <class Fields>
void fields(Fields& f, OptimizerConfig& c) {
  f("type", c.type);
  f("lr", c.lr);
  f("momentum", c.momentum);
  f("dampening", c.dampening);
  f("weight_decay", c.weight_decay);
  f("nesterov", c.nesterov);
}

template <class Fields>
void fields(Fields& f, ScheduleConfig& c) {
  f("type", c.type);
  f("warmup_epochs", c.warmup_epochs);
  f("min_lr", c.min_lr);
}

template <class Fields>
void fields(Fields& f, CheckpointConfig& c) {
  f("every_epochs", c.every_epochs);
  f("keep", c.keep);
}

template <class Fields>
void fields(Fields& f, TrainConfig& c) {
  f("model", c.model);
  f("data", c.data);
  f("augmentations", c.augmentations);
  f("method", c.method);
  f("optimizer", c.optimizer);
  f("schedule", c.schedule);
  f("epochs", c.epochs);
  f("batch_size", c.batch_size);
  f("objective", c.objective);
  f("checkpoint", c.checkpoint);
  f("seed", c.seed);
  f("out", c.out);
  f("device", c.device);
  f("threads", c.threads);
}

void from_config(const ConfigNode& node, TrainDataConfig& c) { read_fields(node, c); }
nlohmann::json to_config(const TrainDataConfig& c) { return write_fields(c); }
void from_config(const ConfigNode& node, MethodConfig& c) { read_fields(node, c); }
nlohmann::json to_config(const MethodConfig& c) { return write_fields(c); }
void from_config(const ConfigNode& node, OptimizerConfig& c) { read_fields(node, c); }
nlohmann::json to_config(const OptimizerConfig& c) { return write_fields(c); }
void from_config(const ConfigNode& node, ScheduleConfig& c) { read_fields(node, c); }
nlohmann::json to_config(const ScheduleConfig& c) { return write_fields(c); }
void from_config(const ConfigNode& node, CheckpointConfig& c) { read_fields(node, c); }
nlohmann::json to_config(const CheckpointConfig& c) { return write_fields(c); }
void from_config(const ConfigNode& node, TrainConfig& c) { read_fields(node, c); }
nlohmann::json to_config(const TrainConfig& c) { return write_fields(c); }

void TrainConfig::validate() const {
  const auto require = [](bool holds, const char* key, std::string_view what,
                          std::string_view remedy = "see --print-schema") {
    if (!holds) throw Error(ErrorKind::kConfig, key, what, remedy);
  };
  require(!model.script.empty() || !model.builtin.empty(), "model", "missing",
          "name a `script` or a `builtin`");
  data.train.validate("data.train");
  if (data.test) data.test->validate("data.test");
  require(data.validation >= 0 && data.validation < 1, "data.validation", "must lie in [0, 1)");
  require(data.label_noise >= 0 && data.label_noise <= 1, "data.label_noise", "must lie in [0, 1]");

  require(method.heads >= 1, "method.heads", "must be at least 1");
  require(method.k >= 1, "method.k", "must be at least 1");
  if (method.type == MethodConfig::Type::kLookaround)
    require(static_cast<std::int64_t>(augmentations.size()) == method.heads, "augmentations",
            fmt::format("{} pipelines for {} heads", augmentations.size(), method.heads),
            "give one pipeline a head; an empty one, [], changes nothing");

  require(std::isfinite(optimizer.lr) && optimizer.lr > 0, "optimizer.lr", "must be positive");
  require(optimizer.momentum >= 0 && optimizer.momentum < 1, "optimizer.momentum",
          "must lie in [0, 1)");
  require(optimizer.dampening >= 0 && optimizer.dampening <= 1, "optimizer.dampening",
          "must lie in [0, 1]");
  require(std::isfinite(optimizer.weight_decay) && optimizer.weight_decay >= 0,
          "optimizer.weight_decay", "must not be negative");
  require(!optimizer.nesterov || (optimizer.momentum > 0 && optimizer.dampening == 0),
          "optimizer.nesterov", "needs momentum above 0 and dampening 0");

  require(epochs >= 1, "epochs", "must be at least 1");
  require(batch_size >= 1, "batch_size", "must be at least 1");
  require(schedule.warmup_epochs >= 0 && schedule.warmup_epochs <= epochs, "schedule.warmup_epochs",
          fmt::format("must lie in 0 to {} (epochs)", epochs));
  require(schedule.min_lr >= 0 && schedule.min_lr <= optimizer.lr, "schedule.min_lr",
          "must lie between 0 and optimizer.lr");
  require(checkpoint.every_epochs >= 1, "checkpoint.every_epochs", "must be at least 1");
  require(checkpoint.keep >= 1, "checkpoint.keep", "must be at least 1");
  require(seed >= 0, "seed", "must not be negative");
  require(!out.empty(), "out", "missing", "say where the network goes: --out DIR");
}

}  // namespace weightsmith
