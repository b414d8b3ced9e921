#include "weightsmith/train/train_config.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <limits>
#include <set>

#include "weightsmith/config/config_file.h"
#include "weightsmith/config/fields.h"

namespace weightsmith {

EnumNames<DrawMode> enum_names(DrawMode) {
  return {{DrawMode::kSame, "same"}, {DrawMode::kIndependent, "independent"}};
}

EnumNames<AugmentOn> enum_names(AugmentOn) {
  return {{AugmentOn::kAuto, "auto"}, {AugmentOn::kCpu, "cpu"}, {AugmentOn::kDevice, "device"}};
}

EnumNames<NormMode> enum_names(NormMode) {
  return {{NormMode::kAuto, "auto"},
          {NormMode::kShared, "shared"},
          {NormMode::kPerHead, "per_head"},
          {NormMode::kRecompute, "recompute"}};
}

EnumNames<MethodConfig::Type> enum_names(MethodConfig::Type) {
  using Type = MethodConfig::Type;
  return {{Type::kSgd, "sgd"},   {Type::kLookaround, "lookaround"}, {Type::kSwa, "swa"},
          {Type::kSwad, "swad"}, {Type::kLookahead, "lookahead"},   {Type::kEma, "ema"}};
}

EnumNames<OptimizerConfig::Type> enum_names(OptimizerConfig::Type) {
  using Type = OptimizerConfig::Type;
  return {{Type::kSgd, "sgd"}, {Type::kAdam, "adam"}, {Type::kAdamW, "adamw"}};
}

EnumNames<ScheduleConfig::Type> enum_names(ScheduleConfig::Type) {
  using Type = ScheduleConfig::Type;
  return {{Type::kConstant, "constant"},
          {Type::kCosine, "cosine"},
          {Type::kMultiStep, "multi_step"},
          {Type::kOneCycle, "one_cycle"}};
}

EnumNames<DistillationConfig::Type> enum_names(DistillationConfig::Type) {
  return {{DistillationConfig::Type::kSoft, "soft"}, {DistillationConfig::Type::kHard, "hard"}};
}

NormMode MethodConfig::norm_mode() const {
  if (batch_norm != NormMode::kAuto) return batch_norm;
  const bool running_average = type == Type::kSwa || type == Type::kSwad || type == Type::kEma;
  return running_average ? NormMode::kRecompute : NormMode::kShared;
}

std::vector<NormMode> MethodConfig::scored_norm_modes() const {
  if (type == Type::kSgd) return {};
  return batch_norm_scores;
}

template <class Fields>
void fields(Fields& f, TrainDataConfig& c) {
  f("train", c.train);
  f("test", c.test);
  f("validation", c.validation);
  f("label_noise", c.label_noise);
  f("draw", c.draw);
}

template <class Fields>
void fields(Fields& f, MethodConfig& c) {
  f("type", c.type);
  f("heads", c.heads);
  f("k", c.k);
  f("alpha", c.alpha);
  f("slow_from", c.slow_from);
  f("decay", c.decay);
  f("start_epoch", c.start_epoch);
  f("every", c.every);
  f("lr", c.lr);
  f("anneal_epochs", c.anneal_epochs);
  f("n_s", c.n_s);
  f("n_e", c.n_e);
  f("r", c.r);
  f("validate_every", c.validate_every);
  f("batch_norm", c.batch_norm);
  f("batch_norm_scores", c.batch_norm_scores);
}

template <class Fields>
void fields(Fields& f, ParameterGroup& c) {
  f("parameters", c.parameters);
  f("lr_factor", c.lr_factor);
  f("weight_decay", c.weight_decay);
}

template <class Fields>
void fields(Fields& f, OptimizerConfig& c) {
  f("type", c.type);
  f("lr", c.lr);
  f("momentum", c.momentum);
  f("dampening", c.dampening);
  f("weight_decay", c.weight_decay);
  f("nesterov", c.nesterov);
  f("beta1", c.beta1);
  f("beta2", c.beta2);
  f("epsilon", c.epsilon);
  f("clip_norm", c.clip_norm);
  f("clip_value", c.clip_value);
  f("accumulate", c.accumulate);
  f("groups", c.groups);
}

template <class Fields>
void fields(Fields& f, ScheduleConfig& c) {
  f("type", c.type);
  f("warmup_epochs", c.warmup_epochs);
  f("min_lr", c.min_lr);
  f("milestones", c.milestones);
  f("gamma", c.gamma);
  f("peak", c.peak);
  f("start_divisor", c.start_divisor);
}

template <class Fields>
void fields(Fields& f, DistillationConfig& c) {
  f("teacher", c.teacher);
  f("type", c.type);
  f("temperature", c.temperature);
  f("weight", c.weight);
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
  f("augment_on", c.augment_on);
  f("method", c.method);
  f("optimizer", c.optimizer);
  f("schedule", c.schedule);
  f("epochs", c.epochs);
  f("batch_size", c.batch_size);
  f("precision", c.precision);
  f("objective", c.objective);
  f("distillation", c.distillation);
  f("freeze", c.freeze);
  f("checkpoint", c.checkpoint);
  f("flatness", c.flatness);
  f("compare", c.compare);
  f("seeds", c.seeds);
  f("seed", c.seed);
  f("out", c.out);
  f("device", c.device);
  f("threads", c.threads);
}

void from_config(const ConfigNode& node, TrainDataConfig& c) { read_fields(node, c); }
nlohmann::json to_config(const TrainDataConfig& c) { return write_fields(c); }
/// Reads a section that remembers which of its keys were given.
template <class Section>
void read_section(const ConfigNode& node, Section& section) {
  read_fields(node, section);
  for (const auto& [key, value] : node.value.items())
    if (!value.is_null()) section.given.push_back(key);
}

void from_config(const ConfigNode& node, MethodConfig& c) { read_section(node, c); }
nlohmann::json to_config(const MethodConfig& c) { return write_fields(c); }
void from_config(const ConfigNode& node, ParameterGroup& c) { read_fields(node, c); }
nlohmann::json to_config(const ParameterGroup& c) { return write_fields(c); }
void from_config(const ConfigNode& node, OptimizerConfig& c) { read_section(node, c); }
nlohmann::json to_config(const OptimizerConfig& c) { return write_fields(c); }
void from_config(const ConfigNode& node, ScheduleConfig& c) { read_section(node, c); }
nlohmann::json to_config(const ScheduleConfig& c) { return write_fields(c); }
void from_config(const ConfigNode& node, DistillationConfig& c) { read_fields(node, c); }
nlohmann::json to_config(const DistillationConfig& c) { return write_fields(c); }
void from_config(const ConfigNode& node, ComparedMethod& c) {
  if (node.value.is_string()) {
    c.name = node.value.get<std::string>();
    c.overrides = {{"type", node.value}};
    return;
  }
  if (!node.value.is_object()) node.fail("expected the name of a method or an object");
  c.overrides = node.value;
  c.name = node.value.value("name", nlohmann::json(node.value.value("type", "")));
  c.overrides.erase("name");
}
nlohmann::json to_config(const ComparedMethod& c) {
  nlohmann::json json = c.overrides;
  json["name"] = c.name;
  return json;
}
void from_config(const ConfigNode& node, CheckpointConfig& c) { read_fields(node, c); }
nlohmann::json to_config(const CheckpointConfig& c) { return write_fields(c); }
void from_config(const ConfigNode& node, TrainConfig& c) { read_fields(node, c); }
nlohmann::json to_config(const TrainConfig& c) { return write_fields(c); }

nlohmann::json lasting_config(const TrainConfig& config) {
  nlohmann::json json = to_config(config);
  for (const char* key :
       {"augment_on", "out", "device", "threads", "checkpoint", "flatness", "compare", "seeds"})
    json.erase(key);
  for (const char* set : {"train", "test"})
    if (json["data"].contains(set)) json["data"][set].erase("cache_gb");
  return json;
}

nlohmann::json completed_config(const nlohmann::json& saved, const nlohmann::json& present) {
  TrainConfig defaults;
  defaults.data.test.emplace();
  defaults.distillation.emplace();
  return with_missing_keys(saved, present, lasting_config(defaults));
}

MethodConfig TrainConfig::compared_method(std::size_t index) const {
  const nlohmann::json& overrides = compare.at(index).overrides;
  const std::filesystem::path base;  // no key of a method is a path
  MethodConfig compared = method;
  from_config(ConfigNode{overrides, fmt::format("compare[{}]", index), base}, compared);
  return compared;
}

namespace {

void require(bool holds, const char* key, std::string_view what,
             std::string_view remedy = "see --print-schema") {
  if (!holds) throw Error(ErrorKind::kConfig, key, what, remedy);
}

/// NaN is not positive.
bool is_positive(double value) { return std::isfinite(value) && value > 0; }

void validate_method(const MethodConfig& m, const TrainConfig& config) {
  using Type = MethodConfig::Type;
  require(m.heads >= 1, "method.heads", "must be at least 1");
  require(m.k >= 1, "method.k", "must be at least 1");
  require(m.alpha > 0 && m.alpha <= 1, "method.alpha", "must lie in (0, 1]");
  require(m.decay >= 0 && m.decay < 1, "method.decay", "must lie in [0, 1)");
  require(m.every >= 1, "method.every", "must be at least 1");
  require(!m.lr || is_positive(*m.lr), "method.lr", "must be positive");
  require(m.anneal_epochs >= 0, "method.anneal_epochs", "must not be negative");
  require(m.n_s >= 1, "method.n_s", "must be at least 1");
  require(m.n_e >= 1, "method.n_e", "must be at least 1");
  require(std::isfinite(m.r) && m.r >= 1, "method.r", "must be at least 1");
  require(!m.validate_every || *m.validate_every >= 1, "method.validate_every",
          "must be at least 1");
  require(!m.start_epoch || *m.start_epoch >= 0, "method.start_epoch", "must not be negative");
  const std::set<NormMode> modes(m.batch_norm_scores.begin(), m.batch_norm_scores.end());
  require(modes.count(NormMode::kAuto) == 0 && modes.size() == m.batch_norm_scores.size(),
          "method.batch_norm_scores", "must be different ones of shared, per_head and recompute");
  if (m.type == Type::kLookaround)
    require(static_cast<std::int64_t>(config.augmentations.size()) == m.heads, "augmentations",
            fmt::format("{} pipelines for {} heads", config.augmentations.size(), m.heads),
            "give one pipeline a head; an empty one, [], changes nothing");
  if (m.type == Type::kSwa)
    require(m.first_averaged_epoch(config.epochs) < config.epochs, "method.start_epoch",
            fmt::format("must lie below {} (epochs)", config.epochs),
            "an average needs weights to average");
  if (m.type == Type::kSwad)
    require(config.data.validation > 0, "data.validation",
            "swad finds its start and end by the loss on a validation share", "set it to 0.1, say");
}

void validate_optimizer(const OptimizerConfig& o) {
  require(is_positive(o.lr), "optimizer.lr", "must be positive");
  require(o.momentum >= 0 && o.momentum < 1, "optimizer.momentum", "must lie in [0, 1)");
  require(o.dampening >= 0 && o.dampening <= 1, "optimizer.dampening", "must lie in [0, 1]");
  require(std::isfinite(o.weight_decay) && o.weight_decay >= 0, "optimizer.weight_decay",
          "must not be negative");
  require(
      o.type != OptimizerConfig::Type::kSgd || !o.nesterov || (o.momentum > 0 && o.dampening == 0),
      "optimizer.nesterov", "needs momentum above 0 and dampening 0");
  require(o.beta1 >= 0 && o.beta1 < 1, "optimizer.beta1", "must lie in [0, 1)");
  require(o.beta2 >= 0 && o.beta2 < 1, "optimizer.beta2", "must lie in [0, 1)");
  require(is_positive(o.epsilon) && o.epsilon >= std::numeric_limits<float>::min(),
          "optimizer.epsilon", "must be positive, also as a float32");
  require(!o.clip_norm || is_positive(*o.clip_norm), "optimizer.clip_norm", "must be positive");
  require(!o.clip_value || is_positive(*o.clip_value), "optimizer.clip_value", "must be positive");
  require(o.accumulate >= 1, "optimizer.accumulate", "must be at least 1");
  for (std::size_t i = 0; i < o.groups.size(); ++i) {
    const ParameterGroup& group = o.groups[i];
    const std::string key = fmt::format("optimizer.groups[{}]", i);
    require(!group.parameters.empty(), (key + ".parameters").c_str(), "names no parameter",
            "give patterns of names: [\"*.bias\"]");
    require(is_positive(group.lr_factor), (key + ".lr_factor").c_str(), "must be positive",
            "freeze fixes parameters");
    const double decay = group.weight_decay.value_or(0);
    require(std::isfinite(decay) && decay >= 0, (key + ".weight_decay").c_str(),
            "must not be negative");
  }
}

void validate_schedule(const ScheduleConfig& s, std::int64_t epochs, double lr) {
  require(s.warmup_epochs >= 0 && s.warmup_epochs <= epochs, "schedule.warmup_epochs",
          fmt::format("must lie in 0 to {} (epochs)", epochs));
  const bool falls_to_min =
      s.type == ScheduleConfig::Type::kCosine || s.type == ScheduleConfig::Type::kOneCycle;
  require(s.min_lr >= 0 && (s.min_lr <= lr || !falls_to_min), "schedule.min_lr",
          "must lie between 0 and optimizer.lr");
  require(std::is_sorted(s.milestones.begin(), s.milestones.end()) &&
              (s.milestones.empty() || s.milestones.front() >= 1),
          "schedule.milestones", "must be positive and ascending");
  require(s.type != ScheduleConfig::Type::kMultiStep || !s.milestones.empty(),
          "schedule.milestones", "missing", "say after how many epochs the rate falls: [60, 120]");
  require(is_positive(s.gamma) && s.gamma <= 1, "schedule.gamma", "must lie in (0, 1]");
  require(s.peak > 0 && s.peak < 1, "schedule.peak", "must lie between 0 and 1");
  require(std::isfinite(s.start_divisor) && s.start_divisor >= 1, "schedule.start_divisor",
          "must be at least 1");
}

void validate_distillation(const DistillationConfig& d) {
  require(!d.teacher.script.empty() || !d.teacher.weights.empty(), "distillation.teacher",
          "has the weights it begins with: nothing could be learnt from it",
          "name a `script`, or `weights` for the builtin");
  require(is_positive(d.temperature), "distillation.temperature", "must be positive");
  require(d.weight > 0 && d.weight <= 1, "distillation.weight", "must lie in (0, 1]");
}

/// The name becomes a folder's.
bool is_file_name(const std::string& name) {
  return !name.empty() && name.front() != '.' &&
         std::all_of(name.begin(), name.end(), [](unsigned char c) {
           return std::isalnum(c) != 0 || c == '_' || c == '-' || c == '.';
         });
}

void validate_comparison(const TrainConfig& config) {
  const std::set<std::int64_t> seeds(config.seeds.begin(), config.seeds.end());
  require(!seeds.empty() && *seeds.begin() >= 0 && seeds.size() == config.seeds.size(), "seeds",
          "must be different integers that are not negative, at least one");
  require(config.data.test || config.data.validation > 0, "data.test",
          "missing: a comparison needs data to score on", "name it, or set data.validation");
  std::set<std::string> names;
  for (std::size_t i = 0; i < config.compare.size(); ++i) {
    const std::string key = fmt::format("compare[{}]", i);
    const std::string& name = config.compare[i].name;
    require(is_file_name(name), key.c_str(),
            fmt::format("\"{}\" cannot be the name of a folder", name),
            "use letters, digits, _, - and .");
    require(names.insert(name).second, key.c_str(), fmt::format("a second \"{}\"", name),
            R"(give it a name of its own: {"type": "swa", "name": "swa-early"})");
    validate_method(config.compared_method(i), config);
  }
}

}  // namespace

void TrainConfig::validate() const {
  require(!model.script.empty() || !model.builtin.empty(), "model", "missing",
          "name a `script` or a `builtin`");
  data.train.validate("data.train");
  if (data.test) data.test->validate("data.test");
  require(data.validation >= 0 && data.validation < 1, "data.validation", "must lie in [0, 1)");
  require(data.label_noise >= 0 && data.label_noise <= 1, "data.label_noise", "must lie in [0, 1]");
  for (std::size_t i = 0; i < augmentations.size(); ++i)
    validate_pipeline(augmentations[i], fmt::format("augmentations[{}]", i));
  require(epochs >= 1, "epochs", "must be at least 1");
  require(batch_size >= 1, "batch_size", "must be at least 1");
  if (compare.empty()) {
    validate_method(method, *this);
  } else {
    validate_comparison(*this);
  }
  if (distillation) validate_distillation(*distillation);
  if (objective.is_regression()) {
    require(!distillation, "distillation",
            "a regression has no class scores to learn from a teacher",
            "remove it, or give a classification");
    require(compare.empty(), "compare", "compares accuracies, which a regression has none of",
            "train the methods one by one");
  }
  validate_optimizer(optimizer);
  validate_schedule(schedule, epochs, optimizer.lr);
  require(checkpoint.every_epochs >= 1, "checkpoint.every_epochs", "must be at least 1");
  require(checkpoint.keep >= 1, "checkpoint.keep", "must be at least 1");
  if (flatness) flatness->validate();
  require(seed >= 0, "seed", "must not be negative");
  require(!out.empty(), "out", "missing", "say where the network goes: --out DIR");
}

}  // namespace weightsmith
