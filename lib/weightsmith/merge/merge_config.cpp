#include "weightsmith/merge/merge_config.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

namespace weightsmith {

EnumNames<MergeMethod> enum_names(MergeMethod) {
  return {{MergeMethod::kAverage, "average"},
          {MergeMethod::kAlign, "align"},
          {MergeMethod::kZip, "zip"}};
}

EnumNames<MergeSpace> enum_names(MergeSpace) {
  return {{MergeSpace::kWeight, "weight"},
          {MergeSpace::kActivation, "activation"},
          {MergeSpace::kDual, "dual"}};
}

EnumNames<SimilarityMeasure> enum_names(SimilarityMeasure) {
  return {{SimilarityMeasure::kCorrelation, "correlation"}, {SimilarityMeasure::kCosine, "cosine"}};
}

EnumNames<NormalizationMode> enum_names(NormalizationMode) {
  return {{NormalizationMode::kNone, "none"},
          {NormalizationMode::kReset, "reset"},
          {NormalizationMode::kRepair, "repair"}};
}

EnumNames<AttentionHeads> enum_names(AttentionHeads) {
  return {{AttentionHeads::kTied, "tied"}, {AttentionHeads::kIndependent, "independent"}};
}

EnumNames<SweepStart> enum_names(SweepStart) {
  return {{SweepStart::kInOrder, "in_order"}, {SweepStart::kPropagate, "propagate"}};
}

EnumNames<AlignReference> enum_names(AlignReference) {
  return {{AlignReference::kFirst, "first"}, {AlignReference::kMean, "mean"}};
}

namespace {

/// λ, or a list of them.
struct Balances {
  std::vector<double>& values;
};

void from_config(const ConfigNode& node, Balances& balances) {
  if (node.value.is_number())
    balances.values = {node.value.get<double>()};
  else
    detail::read_value(node, balances.values);
}

nlohmann::json to_config(const Balances& balances) {
  const auto& values = balances.values;
  return values.size() == 1 ? nlohmann::json(values.front()) : nlohmann::json(values);
}

/// A list that is left out where it is empty.
struct OptionalList {
  std::vector<double>& values;
};

void from_config(const ConfigNode& node, OptionalList& list) {
  detail::read_value(node, list.values);
}

nlohmann::json to_config(const OptionalList& list) {
  return list.values.empty() ? nlohmann::json() : nlohmann::json(list.values);
}

}  // namespace

template <class Fields>
void fields(Fields& f, VariantConfig& c) {
  Balances balance{c.balance};
  f("method", c.method);
  f("space", c.space);
  f("balance", balance);
}

template <class Fields>
void fields(Fields& f, AlignConfig& c) {
  f("reference", c.reference);
}

template <class Fields>
void fields(Fields& f, ZipConfig& c) {
  f("reduce", c.reduce);
  f("a", c.a);
  f("b", c.b);
  f("b_block", c.b_block);
}

template <class Fields>
void fields(Fields& f, ActivationConfig& c) {
  OptionalPath cache{c.cache};
  f("data", c.data);
  f("batch_size", c.batch_size);
  f("memory_gb", c.memory_gb);
  f("cache", cache);
}

template <class Fields>
void fields(Fields& f, IterationConfig& c) {
  f("start", c.start);
  f("max", c.max);
  f("patience", c.patience);
}

template <class Fields>
void fields(Fields& f, NormalizationConfig& c) {
  f("mode", c.mode);
  f("data", c.data);
  f("batch_size", c.batch_size);
}

template <class Fields>
void fields(Fields& f, EvaluationSet& c) {
  f("name", c.name);
  f("data", c.data);
  f("candidates", c.candidates);
  f("task", c.task);
  f("head", c.head);
  f("objective", c.objective);
  f("selection", c.selection);
}

template <class Fields>
void fields(Fields& f, EvaluationConfig& c) {
  f("objective", c.objective);
  f("sets", c.sets);
  f("batch_size", c.batch_size);
  f("originals", c.originals);
}

template <class Fields>
void fields(Fields& f, PartialConfig& c) {
  f("until", c.until);
  f("tasks", c.tasks);
}

template <class Fields>
void fields(Fields& f, LandscapeConfig& c) {
  f("line", c.line);
  f("plane", c.plane);
  f("margin", c.margin);
  f("reset", c.reset);
  f("repair", c.repair);
  f("sets", c.sets);
}

template <class Fields>
void fields(Fields& f, MergeConfig& c) {
  OptionalList share{c.share};
  OptionalPath matching{c.matching};
  f("models", c.models);
  f("share", share);
  f("groups", c.groups);
  f("inputs", c.inputs);
  f("verify", c.verify);
  fields(f, c.variant);
  f("select_on", c.select_on);
  f("compare", c.compare);
  f("matching", matching);
  f("similarity", c.similarity);
  f("attention_heads", c.attention_heads);
  f("align", c.align);
  f("zip", c.zip);
  f("partial", c.partial);
  f("activations", c.activations);
  f("iterations", c.iterations);
  f("normalization", c.normalization);
  f("evaluation", c.evaluation);
  f("landscape", c.landscape);
  f("out", c.out);
  f("device", c.device);
  f("threads", c.threads);
  f("seed", c.seed);
}

void from_config(const ConfigNode& node, VariantConfig& c) { read_fields(node, c); }
nlohmann::json to_config(const VariantConfig& c) { return write_fields(c); }
void from_config(const ConfigNode& node, AlignConfig& c) { read_fields(node, c); }
nlohmann::json to_config(const AlignConfig& c) { return write_fields(c); }
void from_config(const ConfigNode& node, ZipConfig& c) { read_fields(node, c); }
nlohmann::json to_config(const ZipConfig& c) { return write_fields(c); }
void from_config(const ConfigNode& node, ActivationConfig& c) { read_fields(node, c); }
nlohmann::json to_config(const ActivationConfig& c) { return write_fields(c); }
void from_config(const ConfigNode& node, IterationConfig& c) { read_fields(node, c); }
nlohmann::json to_config(const IterationConfig& c) { return write_fields(c); }
void from_config(const ConfigNode& node, NormalizationConfig& c) { read_fields(node, c); }
nlohmann::json to_config(const NormalizationConfig& c) { return write_fields(c); }
void from_config(const ConfigNode& node, EvaluationSet& c) { read_fields(node, c); }
nlohmann::json to_config(const EvaluationSet& c) { return write_fields(c); }
void from_config(const ConfigNode& node, EvaluationConfig& c) { read_fields(node, c); }
nlohmann::json to_config(const EvaluationConfig& c) { return write_fields(c); }
void from_config(const ConfigNode& node, PartialConfig& c) { read_fields(node, c); }
nlohmann::json to_config(const PartialConfig& c) { return write_fields(c); }
void from_config(const ConfigNode& node, LandscapeConfig& c) { read_fields(node, c); }
nlohmann::json to_config(const LandscapeConfig& c) { return write_fields(c); }

void from_config(const ConfigNode& node, MergeConfig& c) {
  read_fields(node, c);
  if (c.groups != "auto") {
    const ConfigNode groups = node.child("groups", node.value.at("groups"));
    c.groups = resolve_path(c.groups, groups.base).string();
  }
}

nlohmann::json to_config(const MergeConfig& c) { return write_fields(c); }

std::string MergeVariant::label() const {
  if (method == MergeMethod::kAverage) return enum_name(method);
  std::string text = enum_name(method) + "-" + enum_name(space);
  if (space == MergeSpace::kDual) text += fmt::format("-{}", balance);
  return text;
}

std::string VariantConfig::label() const {
  std::string text = candidates().front().label();
  if (candidates().size() > 1) text.erase(text.rfind('-'));
  return text;
}

std::vector<MergeVariant> VariantConfig::candidates() const {
  if (method == MergeMethod::kAverage || space != MergeSpace::kDual)
    return {{method, space, balance.front()}};
  std::vector<MergeVariant> all;
  for (const double b : balance) all.push_back({method, space, b});
  return all;
}

void VariantConfig::validate(const std::string& key) const {
  const auto fail = [&](std::string_view what, std::string_view remedy) {
    throw Error(ErrorKind::kConfig, key.empty() ? "balance" : key + ".balance", what, remedy);
  };
  if (balance.empty()) fail("an empty list", "give one balance or more");
  for (const double b : balance)
    if (!(b >= 0 && b <= 1)) fail(fmt::format("{} is not in [0, 1]", b), "it is a share");
  const std::set<double> distinct(balance.begin(), balance.end());
  if (distinct.size() != balance.size()) fail("a balance is listed twice", "remove one");
}

std::optional<DataConfig> EvaluationSet::selection_data() const {
  if (selection) return selection;
  const bool has_splits = data.format != DataConfig::Format::kTensors && data.images.empty();
  if (!has_splits) return std::nullopt;
  DataConfig held_out = data;
  held_out.split = DataConfig::Split::kTrain;
  return held_out;
}

ObjectiveConfig EvaluationConfig::objective_of(const EvaluationSet& set) const {
  ObjectiveConfig own = set.objective.value_or(objective);
  own.candidates = set.candidates.value_or(own.candidates);
  return own;
}

std::vector<VariantConfig> MergeConfig::variants() const {
  return compare.empty() ? std::vector<VariantConfig>{variant} : compare;
}

std::vector<MergeVariant> MergeConfig::candidates() const {
  std::vector<MergeVariant> all;
  for (const VariantConfig& v : variants())
    for (const MergeVariant& candidate : v.candidates()) all.push_back(candidate);
  return all;
}

std::vector<double> MergeConfig::shares() const {
  if (share.empty())
    return std::vector<double>(models.size(), 1.0 / static_cast<double>(models.size()));
  std::vector<double> normalised = share;
  // First by the largest: a sum of large ones would overflow.
  const double largest = *std::max_element(share.begin(), share.end());
  double sum = 0;
  for (double& s : normalised) sum += s /= largest;
  for (double& s : normalised) s /= sum;
  return normalised;
}

const EvaluationSet* MergeConfig::selection_set() const {
  for (const EvaluationSet& set : evaluation.sets)
    if (set.name == select_on) return &set;
  return nullptr;
}

namespace {

[[noreturn]] void fail(std::string_view key, std::string_view what, std::string_view remedy) {
  throw Error(ErrorKind::kConfig, key, what, remedy);
}

void validate_variants(const MergeConfig& c) {
  std::set<std::string> labels;
  c.variant.validate("");
  for (std::size_t i = 0; i < c.compare.size(); ++i) {
    c.compare[i].validate(fmt::format("compare[{}]", i));
    if (!labels.insert(c.compare[i].label()).second)
      fail("compare", fmt::format("{} is listed twice", c.compare[i].label()), "remove one");
  }
  if (!c.matching.empty() && !c.compare.empty())
    fail("matching", "a finished matching leaves nothing to compare", "remove matching or compare");
}

void validate_data(const MergeConfig& c) {
  const auto candidates = c.candidates();
  const bool uses_activations =
      c.matching.empty() && std::any_of(candidates.begin(), candidates.end(),
                                        [](const auto& v) { return v.uses_activations(); });
  if (uses_activations && !c.activations.data)
    fail("activations.data", "activation and dual space need data to run the models on",
         "give it, or set space to weight");
  if (c.normalization.mode == NormalizationMode::kRepair && !c.normalization.data &&
      !c.activations.data)
    fail("normalization.data", "repairing activations needs data",
         "give it here or under activations, or set normalization.mode to none");
}

void validate_evaluation(const MergeConfig& c) {
  std::set<std::string> names;
  std::string known = "similarity";
  for (const EvaluationSet& set : c.evaluation.sets) {
    if (!names.insert(set.name).second)
      fail("evaluation.sets", fmt::format("two sets are called \"{}\"", set.name), "rename one");
    if (set.name == "similarity")
      fail("evaluation.sets", "a set is called \"similarity\", which means something to select_on",
           "rename it");
    if (set.name == "task_average")
      fail("evaluation.sets", "a set is called \"task_average\", as the mean over tasks is",
           "rename it");
    known += ", " + set.name;
    if (!c.evaluation.objective_of(set).is_regression()) continue;
    if (set.candidates || set.task.value_or(false))
      fail("evaluation.sets",
           fmt::format("\"{}\" is a regression: it has no classes, and its errors do not average "
                       "with accuracies",
                       set.name),
           "remove candidates and task");
  }
  if (c.select_on == "similarity") return;
  const EvaluationSet* set = c.selection_set();
  if (set == nullptr)
    fail("select_on", fmt::format("there is no evaluation set \"{}\"", c.select_on),
         "known: " + known);
  if (!set->selection_data())
    fail("select_on",
         fmt::format("the set \"{}\" has no training split to choose a balance on", set->name),
         "give it held-out data under the key selection");
}

void validate_partial(const MergeConfig& c) {
  if (!c.partial) {
    for (const EvaluationSet& set : c.evaluation.sets)
      if (set.head)
        fail("evaluation.sets",
             fmt::format("\"{}\" names a head, but all layers are merged", set.name),
             "remove head, or say under partial where the heads begin");
    return;
  }
  if (c.partial->until.empty())
    fail("partial.until", "names no submodule", "name the last one that is merged");
  if (c.groups != "auto")
    fail("groups", "a partial merge finds the groups of its trunk in the graph",
         "leave groups out, or merge all layers");
  if (c.landscape)
    fail("landscape", "there are no networks between models that are merged in part",
         "remove landscape or partial");
}

void validate_landscape(const MergeConfig& c) {
  if (!c.landscape) return;
  const LandscapeConfig& l = *c.landscape;
  if (!l.is_on()) return;
  if (l.line != 0 && l.line < 3) fail("landscape.line", "fewer than 3 points", "0 turns it off");
  if (l.plane != 0 && l.plane < 3) fail("landscape.plane", "fewer than 3 points", "0 turns it off");
  if (c.evaluation.sets.empty())
    fail("landscape", "there is no set to score on", "add one under evaluation.sets");
  for (const std::string& name : l.sets)
    if (std::none_of(c.evaluation.sets.begin(), c.evaluation.sets.end(),
                     [&](const EvaluationSet& set) { return set.name == name; }))
      fail("landscape.sets", fmt::format("there is no evaluation set \"{}\"", name),
           "name one of evaluation.sets");
  for (const EvaluationSet& set : c.evaluation.sets)
    if (c.landscape_shows(set) && c.evaluation.objective_of(set).is_regression())
      fail("landscape.sets",
           fmt::format("\"{}\" is a regression, and landscapes show accuracies", set.name),
           "name the other sets");
  if (std::none_of(c.evaluation.sets.begin(), c.evaluation.sets.end(),
                   [&c](const EvaluationSet& set) { return c.landscape_shows(set); }))
    fail("landscape", "all sets are regressions, and landscapes show accuracies",
         "add another one under evaluation.sets");
  if (l.repair && c.normalization.mode != NormalizationMode::kRepair)
    fail("landscape.repair", "the merged network's activations are not repaired",
         "set normalization.mode to repair, or landscape.repair to false");
  if (l.plane != 0 && c.models.size() > 3)
    fail("landscape.plane", fmt::format("{} models do not span a plane", c.models.size()),
         "merge two or three, or leave plane out");
  for (const VariantConfig& v : c.variants())
    if (l.plane != 0 && v.method == MergeMethod::kZip)
      fail("landscape.plane", "zip leaves no matched copy of a model to lay a plane through",
           "set method to align, or leave plane out");
    else if (l.plane != 0 && v.method == MergeMethod::kAverage && c.models.size() == 2)
      fail("landscape.plane",
           "an average matches nothing, so two models give two points of a plane",
           "set method to align, or leave plane out");
  if (l.plane != 0 && !(l.margin >= 0 && l.margin <= 1000))
    fail("landscape.margin", fmt::format("{} is not in [0, 1000]", l.margin), "it is a share");
}

}  // namespace

void MergeConfig::validate() const {
  if (models.size() < 2)
    fail("models", fmt::format("{} given, at least 2 are merged", models.size()),
         "name two models or more");
  if (!share.empty() && share.size() != models.size())
    fail("share", fmt::format("{} shares for {} models", share.size(), models.size()),
         "give one a model");
  for (const double s : share)
    if (!(s > 0))
      fail("share", fmt::format("{} is not positive", s), "leave the model out instead");
  validate_variants(*this);
  validate_data(*this);
  validate_evaluation(*this);
  validate_partial(*this);
  validate_landscape(*this);
}

bool MergeConfig::landscape_shows(const EvaluationSet& set) const {
  const std::vector<std::string>& named = landscape.value().sets;
  return named.empty() ? !evaluation.objective_of(set).is_regression()
                       : std::find(named.begin(), named.end(), set.name) != named.end();
}

void MergeConfig::require_names_apart() const {
  const bool has_scores = evaluation.originals && !evaluation.sets.empty();
  const bool has_landscape = landscape && landscape->is_on();
  if (!has_scores && !has_landscape && !partial) return;
  const auto source = [this](std::size_t i) {
    const ModelRef& ref = models[i];
    const std::string file = (ref.weights.empty() ? ref.script : ref.weights).string();
    return fmt::format("models[{}] ({})", i, file.empty() ? ref.builtin : file);
  };
  std::map<std::string, std::size_t> known;
  for (std::size_t i = 0; i < models.size(); ++i) {
    const std::string& name = models[i].name;
    const auto [other, is_new] = known.emplace(name, i);
    if (!is_new)
      fail("models",
           fmt::format("{} and {} are both called \"{}\", and {} are told apart by these names",
                       source(other->second), source(i), name, partial ? "heads" : "scores"),
           R"(give one a name of its own: {"name": ..., "script": ...})");
    if (partial && name.find('/') != std::string::npos)
      fail("models",
           fmt::format("{} is called \"{}\", which cannot be part of a file's name", source(i),
                       name),
           "give it a name without a slash");
  }
}

}  // namespace weightsmith
