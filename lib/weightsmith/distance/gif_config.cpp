#include "weightsmith/distance/gif_config.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "weightsmith/config/nearest.h"

namespace weightsmith {

EnumNames<TaskType> enum_names(TaskType) {
  return {{TaskType::kMatrix, "matrix"},
          {TaskType::kRelatedness, "relatedness"},
          {TaskType::kOwnership, "ownership"},
          {TaskType::kSelect, "select"},
          {TaskType::kUnlearning, "unlearning"}};
}

namespace {

/// A whole number, or "auto".
struct Automatic {
  std::optional<std::int64_t>& value;
};

void from_config(const ConfigNode& node, Automatic& automatic) {
  if (node.value == "auto")
    automatic.value.reset();
  else
    detail::read_value(node, automatic.value.emplace());
}

nlohmann::json to_config(const Automatic& automatic) {
  return automatic.value ? nlohmann::json(*automatic.value) : nlohmann::json("auto");
}

}  // namespace

void from_config(const ConfigNode& node, BaselineConfig& c) {
  c = BaselineConfig();
  if (node.value.is_number()) {
    c.kind = BaselineConfig::Kind::kNumber;
    c.number = node.value.get<double>();
  } else if (node.value.is_object()) {
    c.kind = BaselineConfig::Kind::kData;
    detail::read_value(node, c.data);
  } else if (node.value == "shuffle") {
    c.kind = BaselineConfig::Kind::kShuffle;
  } else if (node.value != "zero") {
    node.fail(fmt::format("unknown baseline {}", node.value.dump()),
              "zero, shuffle, a number or a data set");
  }
}

nlohmann::json to_config(const BaselineConfig& c) {
  if (c.kind == BaselineConfig::Kind::kNumber) return c.number;
  if (c.kind == BaselineConfig::Kind::kData) return to_config(*c.data);
  return c.kind == BaselineConfig::Kind::kZero ? "zero" : "shuffle";
}

template <class Fields>
void fields(Fields& f, ReferenceConfig& c) {
  OptionalPath selection{c.selection};
  f("data", c.data);
  f("baseline", c.baseline);
  f("selection", selection);
}

template <class Fields>
void fields(Fields& f, FieldConfig& c) {
  Automatic steps{c.steps};
  f("rule", c.options.rule);
  f("steps", steps);
  f("steps_tolerance", c.steps_tolerance);
  f("cumulative", c.options.cumulative);
  f("multiply_by_inputs", c.options.multiply_by_inputs);
  f("target", c.options.target);
  f("channel_mean", c.options.channel_mean);
  f("subset", c.options.subset);
  f("store", c.store);
  f("fast", c.fast);
  f("precision", c.precision);
}

template <class Fields>
void fields(Fields& f, ModelGroup& c) {
  f("name", c.name);
  f("models", c.models);
}

template <class Fields>
void fields(Fields& f, TaskConfig& c) {
  f("type", c.type);
  f("against", c.against);
  f("affinity", c.affinity);
  f("victim", c.victim);
  f("groups", c.groups);
  f("surrogates", c.surrogates);
  f("independents", c.independents);
  f("counts", c.counts);
  f("draws", c.draws);
  f("false_positive_rate", c.false_positive_rate);
  f("allow_overlap", c.allow_overlap);
  f("rule", c.rule);
  f("statistic", c.statistic);
  f("reference", c.reference);
  f("sequences", c.sequences);
}

template <class Fields>
void fields(Fields& f, GifConfig& c) {
  Automatic batch_size{c.batch_size};
  OptionalPath cache{c.cache};
  f("models", c.models);
  f("reference", c.reference);
  f("field", c.field);
  f("distance", c.distance);
  f("batch_size", batch_size);
  f("bootstrap", c.bootstrap);
  f("cache", cache);
  f("task", c.task);
  f("out", c.out);
  f("device", c.device);
  f("threads", c.threads);
  f("seed", c.seed);
}

void from_config(const ConfigNode& node, ReferenceConfig& c) { read_fields(node, c); }
nlohmann::json to_config(const ReferenceConfig& c) { return write_fields(c); }
void from_config(const ConfigNode& node, FieldConfig& c) {
  read_fields(node, c);
  c.options.steps = c.steps.value_or(c.options.steps);
}
nlohmann::json to_config(const FieldConfig& c) { return write_fields(c); }
void from_config(const ConfigNode& node, ModelGroup& c) { read_fields(node, c); }
nlohmann::json to_config(const ModelGroup& c) { return write_fields(c); }
void from_config(const ConfigNode& node, TaskConfig& c) { read_fields(node, c); }
nlohmann::json to_config(const TaskConfig& c) { return write_fields(c); }
void from_config(const ConfigNode& node, GifConfig& c) { read_fields(node, c); }
nlohmann::json to_config(const GifConfig& c) { return write_fields(c); }

namespace {

[[noreturn]] void fail(std::string_view key, std::string_view what, std::string_view remedy) {
  throw Error(ErrorKind::kConfig, key, what, remedy);
}

void validate_task(const GifConfig& c) {
  const TaskConfig& t = c.task;
  const auto known = [&](const std::vector<std::string>& names, const std::string& key) {
    for (const std::string& name : names) c.index_of(name, key);
  };
  const auto require = [&](bool given, const char* key) {
    if (!given)
      fail(std::string("task.") + key, fmt::format("the task {} needs it", enum_name(t.type)),
           "see docs/tools/modelgif-dist.md");
  };
  const auto once = [](const std::vector<std::string>& names, const std::string& key) {
    for (const std::string& name : names)
      if (std::count(names.begin(), names.end(), name) > 1)
        fail(key, fmt::format("\"{}\" stands there twice", name), "a model counts once");
  };
  for (const std::string& name : {t.against, t.victim})
    if (!name.empty()) c.index_of(name, name == t.against ? "task.against" : "task.victim");
  known(t.surrogates, "task.surrogates");
  known(t.independents, "task.independents");
  known(t.reference, "task.reference");
  once(t.surrogates, "task.surrogates");
  once(t.independents, "task.independents");
  std::vector<std::string> group_names;
  for (const ModelGroup& group : t.groups) {
    if (group.models.empty()) fail("task.groups", "a group without models", "remove it");
    known(group.models, "task.groups");
    once(group.models, "task.groups");
    group_names.push_back(group.name);
    for (const std::string& name : group.models)
      if (name == t.victim || std::count(t.independents.begin(), t.independents.end(), name) > 0)
        fail("task.groups", fmt::format("\"{}\" is also the victim or independent", name),
             "a model has one part");
  }
  once(group_names, "task.groups");
  for (const std::string& name : t.independents)
    if (name == t.victim) fail("task.independents", "holds the victim", "remove it");
  for (const std::string& name : t.surrogates)
    if (name == t.victim || std::count(t.independents.begin(), t.independents.end(), name) > 0)
      fail("task.surrogates", fmt::format("\"{}\" is also the victim or independent", name),
           "a model has one part");
  for (const ModelGroup& sequence : t.sequences) {
    known(sequence.models, "task.sequences");
    if (t.reference.size() != 1 && t.reference.size() != sequence.models.size())
      fail("task.sequences",
           fmt::format("\"{}\" has {} checkpoints, the reference {}", sequence.name,
                       sequence.models.size(), t.reference.size()),
           "give as many, or a reference of one");
  }
  if (t.type == TaskType::kOwnership || t.type == TaskType::kSelect) {
    require(!t.victim.empty(), "victim");
    require(!t.independents.empty(), "independents");
  }
  if (t.type == TaskType::kOwnership) require(!t.groups.empty(), "groups");
  if (t.type == TaskType::kSelect && t.rule == SampleRule::kGap)
    require(!t.surrogates.empty(), "surrogates");
  if (t.type == TaskType::kUnlearning) {
    require(!t.reference.empty(), "reference");
    require(!t.sequences.empty(), "sequences");
    for (const ModelGroup& a : t.sequences)
      for (const ModelGroup& b : t.sequences)
        if (a.name == b.name && a.models.size() != b.models.size())
          fail("task.sequences",
               fmt::format("replicates of \"{}\" have {} and {} checkpoints", a.name,
                           a.models.size(), b.models.size()),
               "give each as many, or another name");
  }
  if (t.type == TaskType::kRelatedness) {
    require(!t.affinity.empty(), "affinity");
    for (const auto& row : t.affinity)
      if (t.affinity.size() != c.models.size() || row.size() != c.models.size())
        fail("task.affinity", fmt::format("is not {0} x {0}, one row a model", c.models.size()),
             "give it in the order of models");
  }
  if (c.field.options.target == FieldTarget::kVictimPrediction && t.victim.empty())
    fail("task.victim", "the target victim_prediction needs it", "name a model");
  if (!(t.false_positive_rate > 0 && t.false_positive_rate < 1))
    fail("task.false_positive_rate", "not between 0 and 1", "it is a share");
  if (c.distance == DistanceKind::kInverseCosine && t.type == TaskType::kSelect)
    fail("distance", "inverse_cosine has no value a sample", "choose another to select by");
}

}  // namespace

std::size_t GifConfig::index_of(const std::string& name, const std::string& key) const {
  std::vector<std::string> names;
  for (std::size_t m = 0; m < models.size(); ++m) {
    if (models[m].name == name) return m;
    names.push_back(models[m].name);
  }
  const std::string nearest = nearest_name(name, names);
  fail(key, fmt::format("there is no model \"{}\"", name),
       nearest.empty() ? "name one of models" : fmt::format("did you mean \"{}\"?", nearest));
}

void GifConfig::validate() const {
  std::set<std::string> names;
  for (const ModelRef& model : models)
    if (!names.insert(model.name).second)
      fail("models", fmt::format("two models are called \"{}\"", model.name),
           "give one another name");
  reference.data.validate("reference.data");
  if (reference.baseline.data) reference.baseline.data->validate("reference.baseline");
  if (field.steps && *field.steps < 1)
    fail("field.steps", "at least 1 wanted", "or \"auto\"; 50 is the authors'");
  if (!(field.steps_tolerance > 0))
    fail("field.steps_tolerance", "must be above 0", "such as 0.02");
  if (!field.steps && models.size() < 2)
    fail("field.steps", "\"auto\" compares distances, and there is one model",
         "give a number, or more models");
  if (field.precision == Precision::kFloat16)
    fail("field.precision", "float16 is too narrow for gradients without a loss scale",
         "use bfloat16");
  if (field.steps && kept_steps(field.options.subset, *field.steps).empty())
    fail("field.subset", "keeps none of these steps", "take more steps");
  if (batch_size && *batch_size < 1) fail("batch_size", "at least 1 wanted", "or \"auto\"");
  if (bootstrap < 0) fail("bootstrap", "negative", "0 turns it off");
  validate_task(*this);
}

}  // namespace weightsmith
