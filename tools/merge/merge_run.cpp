#include "merge/merge_run.h"

#include <ATen/Functions.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <set>
#include <utility>

#include "merge/survey.h"
#include "weightsmith/core/atomic_file.h"
#include "weightsmith/eval/fingerprint.h"
#include "weightsmith/eval/normalization.h"
#include "weightsmith/graph/derive_groups.h"
#include "weightsmith/merge/statistics_cache.h"
#include "weightsmith/merge/widths.h"
#include "weightsmith/model/batch_norms.h"
#include "weightsmith/model/example_input.h"
#include "weightsmith/model/graph_runner.h"
#include "weightsmith/model/jit_runtime.h"
#include "weightsmith/tensor/safetensors.h"

namespace weightsmith {

using nlohmann::json;

namespace {

constexpr const char* kActivationData = "activations.data";
constexpr const char* kNormalizationData = "normalization.data";

/// Runs networks on a data set's first samples, whatever they return; throws as try_samples.
void try_networks(const char* key, const Dataset& data,
                  const std::vector<const ScriptModel*>& models, at::Device device) {
  const at::NoGradGuard no_grad;
  try_samples(key, data, device, [&](const at::Tensor& samples) {
    for (const ScriptModel* model : models)
      GraphRunner(model->module(), model->where()).run({model->preprocessed(samples)});
  });
}

}  // namespace

void MergeRun::load_models() {
  config_.require_names_apart();
  return_freed_memory();  // a proof frees much between the allocations of what it keeps
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
  if (config_.partial) cut_into_parts();
  check_same_architecture(models_, widths_may_differ());
  check_integer_buffers();
  const std::vector<ScriptModel*> all = originals();
  for (ScriptModel* model : all) {
    check_finite(*model);
    types_.push_back(convert_to_float32(*model));
    has_batch_norm_ |= batch_norm_uses(FlatGraph(model->module(), model->where())).all > 0;
  }
}

/// Integers and booleans pick, order or mask; they have no mean. A single number may be a counter.
void MergeRun::check_integer_buffers() {
  const TensorMap first = models_.front().buffers();
  for (std::size_t i = 1; i < models_.size(); ++i) {
    const TensorMap own = models_[i].buffers();
    for (const auto& [name, tensor] : first) {
      if (tensor.is_floating_point() || name.ends_with("num_batches_tracked")) continue;
      if (at::equal(own.at(name), tensor)) continue;
      if (tensor.numel() > 1)
        throw Error(ErrorKind::kInput, models_[i].where(),
                    fmt::format("its buffer {} of type {} differs from that of {}", name,
                                c10::toString(tensor.scalar_type()), models_.front().where()),
                    "such values cannot be blended: merge networks that agree in them");
      run_.progress().warn(fmt::format("{}: {} differs from that of {}, which is kept",
                                       models_[i].where(), name, models_.front().where()));
    }
  }
}

void MergeRun::cut_into_parts() {
  CutModels cut = cut_models(models_, config_.partial->until);
  whole_ = std::exchange(models_, std::move(cut.trunks));
  heads_ = std::move(cut.heads);
}

std::vector<ScriptModel*> MergeRun::originals() {
  std::vector<ScriptModel*> all;
  for (ScriptModel& model : config_.partial ? whole_ : models_) all.push_back(&model);
  return all;
}

void MergeRun::derive_unit_groups() {
  // The plain average has no use for them; a group file that was given is checked all the same.
  const auto candidates = config_.candidates();
  if (config_.groups == "auto" && config_.matching.empty() &&
      config_.normalization.mode != NormalizationMode::kRepair &&
      std::none_of(candidates.begin(), candidates.end(),
                   [](const MergeVariant& v) { return v.matches_units(); }))
    return;
  const std::vector<c10::IValue> inputs = example_inputs();
  const std::set<std::string> moving = moving_buffers();
  if (config_.partial) {
    TrunkUnits units =
        trunk_units(models_.front(), inputs, config_.verify, run_.progress(), moving);
    groups_ = std::move(units.groups);
    boundary_ = std::move(units.boundary);
  } else {
    groups_ = unit_groups_for(models_.front(), config_.groups, inputs, moving);
    if (config_.verify && !inputs.empty())
      verify_unit_groups(models_.front(), groups_, inputs, run_.progress());
  }
  if (config_.groups != "auto") run_.record().add_input(config_.groups);
  if (!config_.matching.empty()) run_.record().add_input(config_.matching);
  check_widths(inputs);
  if (config_.normalization.mode == NormalizationMode::kRepair)
    layers_ = affine_layers(groups_, models_.front().parameters());
}

std::set<std::string> MergeRun::moving_buffers() const {
  std::vector<const ScriptModel*> all;
  for (const ScriptModel& model : models_) all.push_back(&model);
  return differing_buffers(all);
}

std::vector<c10::IValue> MergeRun::example_inputs() const {
  if (!config_.inputs.empty())
    return weightsmith::example_inputs(config_.inputs, "inputs", run_.settings().seed,
                                       run_.settings().device);
  const Dataset* data = activation_data_      ? &*activation_data_
                        : normalization_data_ ? &*normalization_data_
                                              : nullptr;
  if (data == nullptr && !board_.sets().empty()) data = &board_.sets().front().data;
  if (data != nullptr)
    return {models_.front().preprocessed(first_samples(*data, run_.settings().device))};
  // Data that nothing else needs tell what inputs look like: two samples do.
  std::optional<DataConfig> told =
      config_.activations.data ? config_.activations.data : config_.normalization.data;
  if (!told) return {};
  told->limit = std::min<std::int64_t>(2, told->limit.value_or(2));
  const Dataset two = load_dataset(*told, &run_.progress());
  try_networks(config_.activations.data ? kActivationData : kNormalizationData, two,
               {&models_.front()}, run_.settings().device);
  return {models_.front().preprocessed(first_samples(two, run_.settings().device))};
}

bool MergeRun::widths_may_differ() const {
  const auto variants = config_.variants();
  return !config_.matching.empty() ||
         std::all_of(variants.begin(), variants.end(),
                     [](const VariantConfig& v) { return v.method == MergeMethod::kZip; });
}

void MergeRun::check_widths(const std::vector<c10::IValue>& inputs) {
  const auto models = static_cast<std::int64_t>(models_.size());
  const bool differ = find_widths(groups_, models_);
  if (differ && config_.verify && !inputs.empty())
    for (std::int64_t i = 1; i < models; ++i) {
      if (config_.partial)  // what the trunk hands out is free
        trunk_units(models_[i], inputs, /*verify=*/true, run_.progress(), moving_buffers());
      else
        verify_unit_groups(models_[i], groups_of_model(groups_, i), inputs, run_.progress());
    }
  if (!config_.matching.empty()) given_ = read_matchings(config_.matching, groups_, models);

  const auto variants = config_.variants();
  const bool zips = !given_ && std::any_of(variants.begin(), variants.end(), [](const auto& v) {
    return v.method == MergeMethod::kZip;
  });
  const bool changes =
      (given_ && changes_width(groups_, merged_units(given_->matchings))) ||
      (zips &&
       changes_width(groups_, zipped_units(groups_, models, config_.zip.reduce_for(models))));
  if (config_.landscape && (differ || changes))
    throw Error(ErrorKind::kConfig, "landscape",
                "there is no line between networks whose layers differ in width",
                "leave it out, or keep the width");
  if (!given_) return;
  const bool all = std::all_of(given_->matchings.begin(), given_->matchings.end(),
                               [](const Matching& m) { return m.is_permutation(); });
  if (config_.landscape && config_.landscape->plane > 0 && !all)
    throw Error(ErrorKind::kInput, config_.matching.string(),
                "joins units of one model, so there is no matched copy to lay a plane through",
                "give the matching of an align, or set landscape.plane to 0");
}

void MergeRun::load_data() {
  const Phase phase(run_.progress(), "load data");
  const auto load = [this](const DataConfig& config) {
    Dataset data = load_dataset(config, &run_.progress());
    if (!data.skipped.empty()) run_.progress().warn(skipped_warning(data));
    if (!run_.settings().dry_run) run_.record().add_inputs(data.inputs());
    return data;
  };
  if (needs_activations()) activation_data_ = load(*config_.activations.data);
  if (needs_reset() || config_.normalization.mode == NormalizationMode::kRepair) {
    const auto& data =
        config_.normalization.data ? config_.normalization.data : config_.activations.data;
    if (!data)
      throw Error(ErrorKind::kConfig, kNormalizationData,
                  "the networks have batch norms, and resetting their statistics needs data",
                  "give it here or under activations, or set normalization.mode to none");
    normalization_data_ = load(*data);
  }
  board_.load();
}

void MergeRun::try_data() {
  const Phase phase(run_.progress(), "try out");
  const at::Device device = run_.settings().device;
  std::vector<const ScriptModel*> merged;  // of a partial merge, the trunks
  for (const ScriptModel& model : models_) merged.push_back(&model);
  const std::vector<ScriptModel*> all = originals();
  if (activation_data_) try_networks(kActivationData, *activation_data_, merged, device);
  const bool has_own = config_.normalization.data.has_value();
  const bool with_heads = needs_reset() && config_.partial;  // batch norms are reset there as well
  if (normalization_data_ && (has_own || with_heads || !activation_data_)) {
    if (with_heads) merged.assign(all.begin(), all.end());
    try_networks(has_own ? kNormalizationData : kActivationData, *normalization_data_, merged,
                 device);
  }
  board_.try_out(all);
}

void MergeRun::try_taps() {
  // From here on batches repeat; what the proof took in double is handed back before.
  keep_freed_memory();
  if (!activation_data_) return;
  const Phase phase(run_.progress(), "try taps");
  weightsmith::try_taps(models_, groups_, first_samples(*activation_data_, run_.settings().device));
}

json MergeRun::plan() const {
  std::int64_t parameters = 0;
  std::int64_t bytes = 0;
  for (const auto& [name, tensor] : (config_.partial ? whole_ : models_).front().state_dict()) {
    parameters += tensor.numel();
    bytes += static_cast<std::int64_t>(tensor.nbytes());
  }
  std::int64_t merged_parameters = 0;
  for (const auto& [name, tensor] : models_.front().state_dict())
    merged_parameters += tensor.numel();
  std::int64_t units = 0;
  const auto models = static_cast<std::int64_t>(models_.size());
  for (const UnitGroup& group : groups_.groups) units += group.units;
  json labels = json::array();
  for (const VariantConfig& variant : config_.variants()) labels.push_back(name_of(variant));
  json sets = json::object();
  for (const ScoredSet& set : board_.sets()) sets[set.name] = set.data.size();
  return {{"dry_run", true},
          {"models", models},
          {"parameters", parameters},
          {"merged_parameters", merged_parameters},
          {"groups", groups_.groups.size()},
          {"units", units},
          {"variants", labels},
          {"matchings", given_ ? 0 : config_.candidates().size()},
          {"activation_samples", activation_data_ ? activation_data_->size() : 0},
          {"normalization_samples", normalization_data_ ? normalization_data_->size() : 0},
          {"selection_samples", board_.selection() ? board_.selection()->data.size() : 0},
          {"evaluation_samples", sets},
          {"landscape_points", survey_size(config_)},
          {"estimated_memory_bytes",
           (models + 2) * bytes +
               (needs_activations() ? statistics_bytes(groups_, models, statistics_options()) : 0)},
          {"out", run_.settings().out.string()}};
}

void MergeRun::score_originals() {
  if (board_.sets().empty() || !config_.evaluation.originals) return;
  const auto add = [this](const std::string& name, const std::vector<ScriptModel*>& models) {
    originals_.push_back({{"name", name}, {"scores", board_.add(name, board_.score(models))}});
  };
  const std::vector<ScriptModel*> all = originals();
  for (ScriptModel* model : all) add(model->name(), {model});
  add("ensemble", all);
}

void MergeRun::collect_statistics() {
  const bool repair = config_.normalization.mode == NormalizationMode::kRepair;
  bool collect = needs_activations();
  StatisticsCache cache({}, {});
  if (collect) {
    const Phase phase(run_.progress(), "fingerprint");
    Fingerprint fingerprint("activation statistics 3");
    for (const ScriptModel& model : models_) fingerprint.add(model);
    fingerprint.add(*activation_data_).add(unit_groups_to_json(groups_).dump());
    fingerprint.add(enum_name(config_.similarity));
    fingerprint.add(statistics_scope() == Similarity::Scope::kAllPairs ? "all" : "cross");
    fingerprint.add(normalization_data_ ? std::to_string(config_.normalization.batch_size) : "");
    if (normalization_data_) fingerprint.add(*normalization_data_);
    statistics_key_ = fingerprint.hex();
    cache = StatisticsCache(config_.activations.cache, statistics_key_);
    auto stored = cache.load(groups_, statistics_scope(), static_cast<std::int64_t>(models_.size()),
                             run_.progress());
    if (stored) activation_ = std::move(*stored);
    collect = !stored;
  }
  // Activations are those of networks whose batch norms are reset; the networks stay as they came.
  std::vector<TensorMap> as_they_came;
  if (collect || repair) {
    for (ScriptModel& model : models_) {
      TensorMap& kept = as_they_came.emplace_back(model.buffers());
      for (auto& [name, buffer] : kept) buffer = buffer.clone();
      reset(model);
    }
  }
  if (collect) {
    activation_ = activation_similarity(models_, groups_, *activation_data_, statistics_options(),
                                        run_.settings().device, run_.progress());
    cache.store(groups_, activation_);
  }
  if (repair)
    for (ScriptModel& model : models_)
      moments_.push_back(output_moments(model, layers_, normalization_data(),
                                        config_.normalization.batch_size, run_.settings().device,
                                        run_.progress()));
  const at::NoGradGuard no_grad;
  for (std::size_t i = 0; i < as_they_came.size(); ++i)
    for (auto& [name, buffer] : models_[i].buffers()) buffer.copy_(as_they_came[i].at(name));
}

MatchResult MergeRun::match(const VariantConfig& variant) {
  entry_of(variant);
  const bool is_last = variants_.size() == config_.variants().size();
  if (given_) {
    MatchResult result;
    result.matchings = given_->matchings;
    for (const Matching& m : result.matchings)
      result.objective += m.value / static_cast<double>(result.matchings.size());
    return result;
  }
  const auto candidates = variant.candidates();
  MatchResult matched =
      candidates.size() == 1 ? match_candidate(candidates.front()) : sweep(variant);
  // Of a large network they take more than its weights do.
  if (is_last) {
    activation_ = {};
    return_freed_memory();
  }
  return matched;
}

MatchResult MergeRun::match_candidate(const MergeVariant& candidate) {
  const MatchOptions options{candidate,          config_.align,      config_.zip,
                             config_.iterations, config_.similarity, config_.attention_heads};
  MatchResult matched =
      match_units(states_of(models_), groups_, activation_, options, run_.progress());
  run_.record().add_phase("weight similarity", matched.similarity_s);
  run_.record().add_phase("assignment", matched.matching_s);
  return matched;
}

ScriptModel MergeRun::apply(const MatchResult& matched) {
  const Phase phase(run_.progress(), "apply");
  ScriptModel merged = models_.front().clone();
  merged.metadata().erase("training");  // of the first model alone
  const ModelShares shares = config_.share.empty() ? ModelShares{} : config_.shares();
  const TensorMap state =
      merge_states(states_of(models_).models, groups_, matched.matchings, shares);
  const std::vector<std::int64_t> units = merged_units(matched.matchings);
  if (!changes_width(groups_, units)) {
    merged.load_state(state, "merged weights");
    return merged;
  }
  merged.replace_state(state);
  for (const char* key : {"builtin", "options"}) merged.metadata().erase(key);  // of other widths
  if (!config_.partial)  // else when it has its heads
    try_other_widths(merged, models_.front(), resized_groups(groups_, units), example_inputs(),
                     run_.progress());
  return merged;
}

void MergeRun::reset(ScriptModel& model) {
  if (!needs_reset()) return;
  reset_batch_norm(model, normalization_data(), config_.normalization.batch_size,
                   run_.settings().device, run_.progress());
}

void MergeRun::renormalise(ScriptModel& merged, const MatchResult& matched) {
  if (config_.normalization.mode != NormalizationMode::kRepair) {
    if (!config_.partial) reset(merged);  // else together with the heads
    return;
  }
  const OutputMoments wanted =
      merged_moments(layers_, moments_, groups_, matched.matchings, config_.shares());
  repair(merged, layers_, wanted, normalization_data(), config_.normalization.batch_size,
         run_.settings().device, run_.progress());
}

void MergeRun::attach_heads(ScriptModel& merged, const MatchResult& matched) {
  if (!config_.partial) return;
  merged = weightsmith::attach_heads(merged, heads_, boundary_, matched.matchings,
                                     config_.partial->until);
  if (changes_width(groups_, merged_units(matched.matchings))) {
    const std::vector<ScriptModel> tasks = task_networks(merged);
    for (std::size_t i = 0; i < tasks.size(); ++i)
      try_other_widths(tasks[i], whole_[i], {}, example_inputs(), run_.progress());
  }
  reset(merged);
}

std::vector<ScriptModel> MergeRun::tasks_of(const ScriptModel& merged) const {
  return config_.partial ? task_networks(merged) : std::vector<ScriptModel>{};
}

ScoredNetworks MergeRun::scored_networks(ScriptModel& merged,
                                         std::vector<ScriptModel>& tasks) const {
  std::vector<ScriptModel*> models;
  for (ScriptModel& task : tasks) models.push_back(&task);
  if (!config_.partial) models = {&merged};
  ScoredNetworks scored(std::move(models));
  if (config_.partial) {
    scored.shares = config_.shares();
    scored.together = &merged;
  }
  return scored;
}

void MergeRun::score(const VariantConfig& variant, const MatchResult& matched,
                     ScriptModel& merged) {
  json& entry = entry_of(variant);
  entry["objective"] = matched.objective;
  entry["sweeps"] = matched.objective_history.size();
  entry["groups_matched"] = matched.groups_matched;
  entry["groups_skipped"] = matched.groups_skipped;
  if (board_.sets().empty()) return;
  std::vector<ScriptModel> tasks = tasks_of(merged);
  entry["scores"] = board_.add(name_of(variant), board_.score(scored_networks(merged, tasks)));
}

void MergeRun::save(const VariantConfig& variant, const MatchResult& matched,
                    const ScriptModel& merged) {
  const Phase phase(run_.progress(), "save");
  const auto folder = folder_of(variant);
  make_folder(folder);
  const auto write = [&](const char* name, const auto& writer) {
    writer(folder / name);
    run_.wrote(folder / name);
  };
  ScriptModel saved = merged.clone();
  convert_back(saved, saved_types(), "merged weights");
  write("groups.json", [&](const auto& path) {
    const UnitGroups groups = resized_groups(groups_, merged_units(matched.matchings));
    write_text_atomically(path, unit_groups_to_json(groups).dump(2) + "\n");
  });
  write("matching.safetensors",
        [&](const auto& path) { write_matchings(path, groups_, matched.matchings); });
  write("merged.safetensors",
        [&](const auto& path) { write_safetensors(path, saved.state_dict()); });
  write("merged.pt", [&](const auto& path) { saved.save(path); });
  json& entry = entry_of(variant);
  entry["model"] = (folder / "merged.pt").string();
  if (!config_.partial || !config_.partial->tasks) return;
  for (const ScriptModel& task : task_networks(saved)) {
    const std::string file = fmt::format("task_{}.pt", task.name());
    write(file.c_str(), [&](const auto& path) { task.save(path); });
    entry["tasks"][task.name()] = (folder / file).string();
  }
}

void MergeRun::survey(const VariantConfig& variant, const MatchResult& matched) {
  if (survey_size(config_) == 0) return;
  const bool reset_points = config_.landscape->reset && needs_reset();
  Fingerprint fingerprint("landscape 3");
  for (const ScriptModel& model : models_) fingerprint.add(model);
  for (const Matching& m : matched.matchings) fingerprint.add(json(m.slot).dump());
  fingerprint.add(unit_groups_to_json(groups_).dump());
  fingerprint.add(to_config(*config_.landscape).dump()).add(reset_points ? "reset" : "");
  const bool repair_points = config_.landscape->repair;
  if (reset_points || repair_points)
    fingerprint.add(normalization_data()).add(std::to_string(config_.normalization.batch_size));
  fingerprint.add(to_config(config_.evaluation).dump());
  for (const ScoredSet& set : board_.sets()) fingerprint.add(set.data);
  const std::vector<OutputMoments> none;
  const Survey::Subject subject{
      models_,
      groups_,
      matched.matchings,
      fingerprint.hex(),
      repair_points ? moments_ : none,
      layers_,
      [&](ScriptModel& network, const OutputMoments& moments) {
        NoProgress quiet;
        if (repair_points)  // batch norm, too
          weightsmith::repair(network, layers_, moments, normalization_data(),
                              config_.normalization.batch_size, run_.settings().device, quiet);
        else if (reset_points)
          reset_batch_norm(network, normalization_data(), config_.normalization.batch_size,
                           run_.settings().device, quiet);
      }};
  entry_of(variant)["landscape"] = Survey(config_, run_, board_, subject).run(folder_of(variant));
}

json MergeRun::summary() {
  json summary = {
      {"tool", "mudsc-merge"}, {"variants", variants_}, {"out", run_.settings().out.string()}};
  if (!originals_.empty()) summary["originals"] = originals_;
  board_.write(run_.settings().out);
  return summary;
}

DataTypes MergeRun::saved_types() const {
  if (!config_.partial) return types_.front();
  DataTypes types;
  const TensorMap trunk = models_.front().state_dict();
  for (const auto& [name, type] : types_.front())
    if (trunk.count(name) != 0) types["trunk." + name] = type;
  for (std::size_t i = 0; i < heads_.size(); ++i) {
    const TensorMap head = heads_[i].state_dict();
    for (const auto& [name, type] : types_[i])
      if (head.count(name) != 0) types[fmt::format("heads.{}.{}", i, name)] = type;
  }
  return types;
}

bool MergeRun::needs_reset() const {
  return config_.normalization.mode != NormalizationMode::kNone && has_batch_norm_;
}

std::string MergeRun::name_of(const VariantConfig& variant) const {
  return given_ ? "matching" : variant.label();
}

json& MergeRun::entry_of(const VariantConfig& variant) {
  const std::string name = name_of(variant);
  for (json& entry : variants_)
    if (entry["name"] == name) return entry;
  json& entry = variants_.emplace_back(json{{"name", name}});
  if (given_) {
    entry["matching"] = config_.matching.string();
    return entry;
  }
  entry["method"] = enum_name(variant.method);
  if (variant.method == MergeMethod::kAverage) return entry;
  entry["space"] = enum_name(variant.space);
  if (variant.space == MergeSpace::kDual) entry["balance"] = variant.balance.front();
  return entry;
}

std::filesystem::path MergeRun::folder_of(const VariantConfig& variant) const {
  return config_.compare.empty() ? run_.settings().out : run_.settings().out / variant.label();
}

bool MergeRun::needs_activations() const {
  const auto candidates = config_.candidates();
  return config_.matching.empty() &&
         std::any_of(candidates.begin(), candidates.end(),
                     [](const MergeVariant& v) { return v.uses_activations(); });
}

Similarity::Scope MergeRun::statistics_scope() const {
  for (const VariantConfig& v : config_.variants())
    if (v.method != MergeMethod::kAverage &&
        similarity_scope(v.method, config_.align.reference, models_.size()) ==
            Similarity::Scope::kAllPairs)
      return Similarity::Scope::kAllPairs;
  return Similarity::Scope::kCrossModel;
}

StatisticsOptions MergeRun::statistics_options() const {
  constexpr double kMost = 1 << 20;  // what no machine has still fits the integer
  return {config_.activations.batch_size, config_.similarity, statistics_scope(),
          static_cast<std::int64_t>(std::min(config_.activations.memory_gb, kMost) *
                                    (std::int64_t{1} << 30))};
}

const Dataset& MergeRun::normalization_data() const {
  WS_CHECK(normalization_data_.has_value());
  return *normalization_data_;
}

}  // namespace weightsmith
