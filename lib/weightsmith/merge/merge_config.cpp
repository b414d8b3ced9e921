#include "weightsmith/merge/merge_config.h"

#include <algorithm>
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
  return {{NormalizationMode::kNone, "none"}, {NormalizationMode::kReset, "reset"}};
}

template <class Fields>
void fields(Fields& f, MergeVariant& c) {
  f("method", c.method);
  f("space", c.space);
  f("balance", c.balance);
}

template <class Fields>
void fields(Fields& f, ZipConfig& c) {
  f("reduce", c.reduce);
  f("a", c.a);
  f("b", c.b);
}

template <class Fields>
void fields(Fields& f, ActivationConfig& c) {
  f("data", c.data);
  f("batch_size", c.batch_size);
}

template <class Fields>
void fields(Fields& f, IterationConfig& c) {
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
}

template <class Fields>
void fields(Fields& f, EvaluationConfig& c) {
  f("objective", c.objective);
  f("sets", c.sets);
  f("batch_size", c.batch_size);
  f("originals", c.originals);
}

template <class Fields>
void fields(Fields& f, MergeConfig& c) {
  f("models", c.models);
  f("groups", c.groups);
  fields(f, c.variant);
  f("compare", c.compare);
  f("similarity", c.similarity);
  f("zip", c.zip);
  f("activations", c.activations);
  f("iterations", c.iterations);
  f("normalization", c.normalization);
  f("evaluation", c.evaluation);
  f("out", c.out);
  f("device", c.device);
  f("threads", c.threads);
  f("seed", c.seed);
}

void from_config(const ConfigNode& node, MergeVariant& c) { read_fields(node, c); }
nlohmann::json to_config(const MergeVariant& c) { return write_fields(c); }
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

std::vector<MergeVariant> MergeConfig::variants() const {
  return compare.empty() ? std::vector<MergeVariant>{variant} : compare;
}

void MergeConfig::validate() const {
  const auto fail = [](std::string_view key, std::string_view what, std::string_view remedy) {
    throw Error(ErrorKind::kConfig, key, what, remedy);
  };
  if (models.size() < 2)
    fail("models", fmt::format("{} given, at least 2 are merged", models.size()),
         "name two models or more");
  std::set<std::string> labels;
  bool uses_activations = false;
  for (const MergeVariant& v : variants()) {
    if (!labels.insert(v.label()).second)
      fail("compare", fmt::format("{} is listed twice", v.label()), "remove one");
    uses_activations |= v.uses_activations();
  }
  if (uses_activations && !activations.data)
    fail("activations.data", "activation and dual space need data to run the models on",
         "give it, or set space to weight");
  std::set<std::string> names;
  for (const EvaluationSet& set : evaluation.sets)
    if (!names.insert(set.name).second)
      fail("evaluation.sets", fmt::format("two sets are called \"{}\"", set.name), "rename one");
}

}  // namespace weightsmith
