#include "merge/merge_run.h"

#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>

#include "weightsmith/core/atomic_file.h"
#include "weightsmith/match/zip.h"
#include "weightsmith/model/batch_norms.h"
#include "weightsmith/report/table.h"
#include "weightsmith/tensor/safetensors.h"

namespace weightsmith {

using nlohmann::json;

void MergeRun::load_models() {
  Phase phase(run_.progress(), "load models", static_cast<std::int64_t>(config_.models.size()),
              "models");
  LoadOptions options;
  options.device = run_.settings().device;
  options.trust = run_.settings().trust;
  for (std::size_t i = 0; i < config_.models.size(); ++i) {
    const ModelRef& ref = config_.models[i];
    options.seed =
        run_.settings().seed + i;  // two builtins without weights must not be the same network
    models_.push_back(ScriptModel::load(ref, options));
    for (const auto& path : {ref.script, ref.weights})
      if (!path.empty()) run_.record().add_input(path);
    phase.update(static_cast<std::int64_t>(i) + 1);
  }
  for (const ScriptModel& model : models_) check_storable(model.state_dict(), model.where());
  check_same_architecture(models_);
  check_finite(models_);
  const ScriptModel& first = models_.front();
  has_batch_norm_ = batch_norm_uses(FlatGraph(first.module(), first.where())).all > 0;
}

void MergeRun::derive_unit_groups() {
  // The plain average has no use for them; a group file that was given is checked all the same.
  const auto variants = config_.variants();
  if (config_.groups == "auto" &&
      std::none_of(variants.begin(), variants.end(),
                   [](const MergeVariant& v) { return v.matches_units(); }))
    return;
  groups_ = unit_groups_for(models_.front(), config_.groups);
  if (config_.groups != "auto") run_.record().add_input(config_.groups);
  check_zip_keeps_widths();
}

void MergeRun::check_zip_keeps_widths() const {
  const auto variants = config_.variants();
  if (std::none_of(variants.begin(), variants.end(),
                   [](const MergeVariant& v) { return v.method == MergeMethod::kZip; }))
    return;
  const auto models = static_cast<std::int64_t>(models_.size());
  for (const UnitGroup& group : groups_.groups) {
    const std::int64_t slots =
        zip_slots(models, group.units, group.blocks, config_.zip.reduce_for(models));
    if (slots == group.units) continue;
    throw Error(
        ErrorKind::kConfig, "zip.reduce",
        fmt::format("group {} of {} units would become {} wide", group.name, group.units, slots),
        "leave it out to keep the width");
  }
}

void MergeRun::load_data() {
  const Phase phase(run_.progress(), "load data");
  if (needs_activations()) activation_data_ = load_dataset(*config_.activations.data);
  if (needs_reset()) {
    const auto& data =
        config_.normalization.data ? config_.normalization.data : config_.activations.data;
    if (!data)
      throw Error(ErrorKind::kConfig, "normalization.data",
                  "the networks have batch norms, and resetting their statistics needs data",
                  "give it here or under activations, or set normalization.mode to none");
    normalization_data_ = load_dataset(*data);
  }
  std::int64_t classes = 0;
  for (const EvaluationSet& set : config_.evaluation.sets) {
    EvaluationData& loaded = sets_.emplace_back();
    loaded.name = set.name;
    loaded.data = load_dataset(set.data);
    loaded.options.batch_size = config_.evaluation.batch_size;
    loaded.options.device = run_.settings().device;
    classes = std::max(classes, loaded.data.classes);
  }
  const auto note_files = [this](const Dataset& data) {
    if (run_.settings().dry_run) return;
    for (const auto& path : data.files) run_.record().add_input(path);
  };
  if (activation_data_) note_files(*activation_data_);
  if (normalization_data_) note_files(*normalization_data_);
  for (const EvaluationData& set : sets_) note_files(set.data);
  if (sets_.empty()) return;
  const auto& embeddings = config_.evaluation.objective.embeddings;
  if (!embeddings.empty()) run_.record().add_input(embeddings);
  Objective objective(config_.evaluation.objective, classes);
  objective.to(run_.settings().device);
  for (std::size_t s = 0; s < sets_.size(); ++s) {
    const Candidates candidates =
        config_.evaluation.sets[s].candidates.value_or(config_.evaluation.objective.candidates);
    sets_[s].objective = candidates == Candidates::kData
                             ? objective.restricted_to(classes_in(sets_[s].data))
                             : objective;
  }
}

void MergeRun::try_out() {
  const Phase phase(run_.progress(), "try out");
  const at::NoGradGuard no_grad;
  const auto few = [this](const Dataset& data) {
    constexpr std::int64_t kSamples = 2;  // a network in training mode cannot do with one
    return normalised_batch(data, 0, std::min(kSamples, data.size())).to(run_.settings().device);
  };
  if (activation_data_) try_taps(models_, groups_, few(*activation_data_));
  if (normalization_data_) models_.front().forward(few(*normalization_data_));
  for (const EvaluationData& set : sets_)
    for (ScriptModel& model : models_) set.objective->scores(model.forward(few(set.data)));
}

json MergeRun::plan() const {
  std::int64_t parameters = 0;
  std::int64_t bytes = 0;
  for (const auto& [name, tensor] : models_.front().state_dict()) {
    parameters += tensor.numel();
    bytes += static_cast<std::int64_t>(tensor.nbytes());
  }
  std::int64_t units = 0;
  std::int64_t similarity_bytes = 0;
  const auto models = static_cast<std::int64_t>(models_.size());
  for (const UnitGroup& group : groups_.groups) {
    units += group.units;
    const std::int64_t pairs =
        similarity_scope() == Similarity::Scope::kAllPairs ? models * models : models - 1;
    similarity_bytes +=
        pairs * group.units * group.units * 12;  // accumulated in double, kept in float32
  }
  json labels = json::array();
  for (const MergeVariant& variant : config_.variants()) labels.push_back(variant.label());
  json sets = json::object();
  for (const EvaluationData& set : sets_) sets[set.name] = set.data.size();
  return {{"dry_run", true},
          {"models", models},
          {"parameters", parameters},
          {"groups", groups_.groups.size()},
          {"units", units},
          {"variants", labels},
          {"activation_samples", activation_data_ ? activation_data_->size() : 0},
          {"normalization_samples", normalization_data_ ? normalization_data_->size() : 0},
          {"evaluation_samples", sets},
          {"estimated_memory_bytes",
           (models + 2) * bytes + (needs_activations() ? similarity_bytes : 0)},
          {"out", run_.settings().out.string()}};
}

void MergeRun::score_originals() {
  if (sets_.empty() || !config_.evaluation.originals) return;
  std::vector<ScriptModel*> all;
  for (ScriptModel& model : models_) {
    const Scores scores = scores_of({&model});
    table_.emplace_back(model.name(), scores);
    originals_.push_back({{"name", model.name()}, {"scores", scores_json(scores)}});
    all.push_back(&model);
  }
  const Scores scores = scores_of(all);
  table_.emplace_back("ensemble", scores);
  originals_.push_back({{"name", "ensemble"}, {"scores", scores_json(scores)}});
}

void MergeRun::reset_originals() {
  for (ScriptModel& model : models_) renormalise(model);
}

void MergeRun::collect_activations() {
  if (!needs_activations()) return;
  activation_ = activation_similarity(models_, groups_, *activation_data_,
                                      config_.activations.batch_size, config_.similarity,
                                      similarity_scope(), run_.settings().device, run_.progress());
}

MatchResult MergeRun::match(const MergeVariant& variant) {
  MatchResult matched =
      match_units(states_of(models_), groups_, activation_,
                  {variant, config_.zip, config_.iterations, config_.similarity}, run_.progress());
  run_.record().add_phase("weight similarity", matched.similarity_s);
  run_.record().add_phase("assignment", matched.matching_s);
  return matched;
}

ScriptModel MergeRun::apply(const MatchResult& matched) {
  const Phase phase(run_.progress(), "apply");
  ScriptModel merged = models_.front().clone();
  merged.metadata().erase("training");  // of the first model alone
  merged.load_state(merge_states(states_of(models_).models, groups_, matched.matchings),
                    "merged weights");
  return merged;
}

void MergeRun::renormalise(ScriptModel& model) {
  if (!needs_reset()) return;
  reset_batch_norm(model, normalization_data(), config_.normalization.batch_size,
                   run_.settings().device, run_.progress());
}

void MergeRun::score(const MergeVariant& variant, const MatchResult& matched, ScriptModel& merged) {
  json entry = {{"name", variant.label()},
                {"method", enum_name(variant.method)},
                {"objective", matched.objective},
                {"sweeps", matched.objective_history.size()},
                {"groups_matched", matched.groups_matched},
                {"groups_skipped", matched.groups_skipped}};
  if (variant.method != MergeMethod::kAverage) entry["space"] = enum_name(variant.space);
  if (variant.space == MergeSpace::kDual) entry["balance"] = variant.balance;
  if (!sets_.empty()) {
    const Scores scores = scores_of({&merged});
    table_.emplace_back(variant.label(), scores);
    entry["scores"] = scores_json(scores);
  }
  variants_.push_back(std::move(entry));
}

void MergeRun::save(const MergeVariant& variant, const MatchResult& matched,
                    const ScriptModel& merged) {
  const Phase phase(run_.progress(), "save");
  const auto folder =
      config_.compare.empty() ? run_.settings().out : run_.settings().out / variant.label();
  make_folder(folder);
  const auto write = [&](const char* name, const auto& writer) {
    writer(folder / name);
    run_.wrote(folder / name);
  };
  write("groups.json", [&](const auto& path) {
    write_text_atomically(path, unit_groups_to_json(groups_).dump(2) + "\n");
  });
  write("matching.safetensors",
        [&](const auto& path) { write_matchings(path, groups_, matched.matchings); });
  write("merged.safetensors",
        [&](const auto& path) { write_safetensors(path, merged.state_dict()); });
  write("merged.pt", [&](const auto& path) { merged.save(path); });
  variants_.back()["model"] = (folder / "merged.pt").string();
}

json MergeRun::summary() {
  json summary = {
      {"tool", "mudsc-merge"}, {"variants", variants_}, {"out", run_.settings().out.string()}};
  if (!originals_.empty()) summary["originals"] = originals_;
  if (sets_.empty()) return summary;
  std::vector<std::string> header{"accuracy, %"};
  for (const EvaluationData& set : sets_) header.push_back(set.name);
  Table table(header);
  for (const auto& [name, scores] : table_) {
    std::vector<std::string> row{name};
    for (const Evaluation& e : scores) row.push_back(fmt::format("{:.1f}", 100 * e.accuracy));
    table.add_row(row);
  }
  for (const auto& [name, text] :
       {std::pair{"table.md", table.markdown()}, {"table.csv", table.csv()}}) {
    write_text_atomically(run_.settings().out / name, text);
    run_.wrote(run_.settings().out / name);
  }
  run_.show(table.markdown());
  return summary;
}

bool MergeRun::needs_activations() const {
  const auto variants = config_.variants();
  return std::any_of(variants.begin(), variants.end(),
                     [](const MergeVariant& v) { return v.uses_activations(); });
}

bool MergeRun::needs_reset() const {
  return config_.normalization.mode == NormalizationMode::kReset && has_batch_norm_;
}

Similarity::Scope MergeRun::similarity_scope() const {
  const auto variants = config_.variants();
  return std::any_of(variants.begin(), variants.end(),
                     [](const MergeVariant& v) { return v.method == MergeMethod::kZip; })
             ? Similarity::Scope::kAllPairs
             : Similarity::Scope::kCrossModel;
}

const Dataset& MergeRun::normalization_data() const {
  WS_CHECK(normalization_data_.has_value());
  return *normalization_data_;
}

MergeRun::Scores MergeRun::scores_of(const std::vector<ScriptModel*>& models) {
  Scores scores;
  for (const EvaluationData& set : sets_)
    scores.push_back(
        evaluate_ensemble(models, set.data, *set.objective, set.options, run_.progress()));
  return scores;
}

json MergeRun::scores_json(const Scores& scores) const {
  json object = json::object();
  for (std::size_t s = 0; s < sets_.size(); ++s) object[sets_[s].name] = evaluation_json(scores[s]);
  return object;
}

}  // namespace weightsmith
