#include "gif/gif_run.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <numeric>

#include "weightsmith/core/atomic_file.h"
#include "weightsmith/core/json_text.h"
#include "weightsmith/core/rng.h"
#include "weightsmith/data/random_stream.h"
#include "weightsmith/eval/fingerprint.h"
#include "weightsmith/model/fast_network.h"
#include "weightsmith/model/jit_runtime.h"
#include "weightsmith/tensor/first_row.h"

namespace weightsmith {

using nlohmann::json;
namespace fs = std::filesystem;

std::vector<double> values_of(const at::Tensor& tensor) {
  const at::Tensor plain = tensor.to(at::kDouble).contiguous();
  const auto* data = plain.data_ptr<double>();
  return {data, data + plain.numel()};
}

ScriptModel GifRun::load(std::size_t index) {
  const ModelRef& ref = config_.models[index];
  LoadOptions options;
  options.device = run_.settings().device;
  options.trust = run_.settings().trust;
  options.seed = run_.settings().seed + index;
  ScriptModel model = ScriptModel::load(ref, options);
  for (const auto& path : {ref.script, ref.weights})
    if (!path.empty()) run_.record().add_input(path);
  return model;
}

namespace {

/// Or a network's field would be blamed, and with shuffled baselines another sample's.
void check_finite(const at::Tensor& inputs, const Dataset& data) {
  if (const auto bad = first_row_where(at::isfinite(inputs).logical_not()))
    throw Error(ErrorKind::kInput, data.where, fmt::format("sample {} is not finite", *bad),
                "leave it out, or check the normalisation");
}

}  // namespace

void GifRun::load_reference() {
  keep_freed_memory();
  const Phase phase(run_.progress(), "load data");
  data_ = load_dataset(config_.reference.data, &run_.progress());
  if (!data_->skipped.empty()) run_.progress().warn(skipped_warning(*data_));
  data_content_ = Fingerprint("reference 1").add(*data_).hex();
  if (!config_.reference.selection.empty()) read_selection();
  const at::Tensor x = normalised_batch(*data_, 0, data_->size());
  check_finite(x, *data_);
  inputs_.inputs = x.to(run_.settings().device);
  inputs_.classes = data_->labels;
  make_baselines();
}

void GifRun::read_selection() {
  const fs::path& path = config_.reference.selection;
  const auto fail = [&](const std::string& what) {
    throw Error(ErrorKind::kInput, path.string(), what, "select anew for this reference");
  };
  json selection = parse_json(read_text(path), ErrorKind::kInput, path.string(), "select anew");
  run_.record().add_input(path);
  std::vector<std::int64_t> order;
  try {
    if (selection.at("data") != data_content_) fail("was made for other reference samples");
    order = selection.at("order").get<std::vector<std::int64_t>>();
    for (const json& model : selection.at("models"))
      if (!model.at("content").is_string()) fail("is damaged");
  } catch (const json::exception&) {
    fail("is not a selection of the task select");
  }
  for (const std::int64_t s : order)
    if (s < 0 || s >= data_->size()) fail(fmt::format("names sample {}, which is not there", s));
  const auto& counts = config_.task.counts;
  if (!counts.empty() && config_.task.type == TaskType::kOwnership)
    order.resize(std::min<std::size_t>(
        order.size(), static_cast<std::size_t>(*std::max_element(counts.begin(), counts.end()))));
  if (order.empty()) fail("selects nothing");
  data_ = subset(*data_, order);
  selection_ = std::move(selection);
}

void GifRun::make_baselines() {
  const BaselineConfig& baseline = config_.reference.baseline;
  const at::Tensor& x = inputs_.inputs;
  switch (baseline.kind) {
    case BaselineConfig::Kind::kZero:
      inputs_.baselines = at::zeros_like(x);
      return;
    case BaselineConfig::Kind::kNumber:
      inputs_.baselines = at::full_like(x, baseline.number);
      return;
    case BaselineConfig::Kind::kShuffle: {
      if (x.size(0) < 2)
        throw Error(ErrorKind::kConfig, "reference.baseline", "one sample cannot be shuffled",
                    "take more samples or another baseline");
      // A random cycle: no sample is its own baseline (Sattolo, 1986).
      std::vector<std::int64_t> order(static_cast<std::size_t>(x.size(0)));
      for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int64_t>(i);
      Rng rng(run_.settings().seed, {kBaselineStream});
      for (std::size_t i = order.size() - 1; i > 0; --i) std::swap(order[i], order[rng.below(i)]);
      inputs_.baselines = x.index_select(0, at::tensor(order, at::kLong).to(x.device()));
      return;
    }
    case BaselineConfig::Kind::kData: {
      const Dataset data = load_dataset(*baseline.data, &run_.progress());
      if (!data.skipped.empty()) run_.progress().warn(skipped_warning(data));
      at::Tensor given = normalised_batch(data, 0, data.size());
      check_finite(given, data);
      given = given.to(x.device());
      if (given[0].sizes() != x[0].sizes() || (data.size() != 1 && data.size() < x.size(0)))
        throw Error(ErrorKind::kInput, data.where,
                    fmt::format("{} baselines of shape [{}] for {} inputs of shape [{}]",
                                data.size(), fmt::join(given[0].sizes(), ", "), x.size(0),
                                fmt::join(x[0].sizes(), ", ")),
                    "give one for all, or one an input");
      inputs_.baselines =
          data.size() == 1 ? given.expand_as(x).contiguous() : given.narrow(0, 0, x.size(0));
    }
  }
}

void GifRun::read_victims_classes() {
  if (config_.field.options.target != FieldTarget::kVictimPrediction) return;
  ScriptModel victim = load(config_.index_of(config_.task.victim, "task.victim"));
  const at::Tensor outputs = GradientField(victim, config_.field.options).outputs(inputs_.inputs);
  if (outputs.dim() != 2)
    throw Error(ErrorKind::kInput, victim.where(),
                fmt::format("outputs of shape [{}], (B, K) wanted of a victim",
                            fmt::join(outputs.sizes(), ", ")),
                "set field.target to sum or channel_max");
  inputs_.classes = outputs.argmax(1).cpu();
}

void GifRun::choose_steps() {
  if (config_.field.steps) return;
  constexpr std::int64_t kSamples = 16, kModels = 8, kMost = 128;
  constexpr std::int64_t kMemory = std::int64_t{1} << 30;
  const Phase phase(run_.progress(), "choose steps");
  const auto all = static_cast<std::int64_t>(config_.models.size());
  const std::int64_t count = std::min(all, kModels);
  // As many samples as leave room for the fields of all these models.
  const auto samples_for = [&](std::int64_t steps) {
    const std::int64_t bytes = count * steps * inputs_.inputs[0].numel() * 4;
    return std::clamp<std::int64_t>(kMemory / bytes, 1, std::min(inputs_.inputs.size(0), kSamples));
  };
  FieldOptions& options = config_.field.options;
  // (models, models, samples)
  const auto distances_with = [&](std::int64_t steps) {
    options.steps = steps;
    const std::int64_t samples = samples_for(steps);
    const FieldInputs pilot{
        inputs_.inputs.narrow(0, 0, samples), inputs_.baselines.narrow(0, 0, samples),
        inputs_.classes.defined() ? inputs_.classes.narrow(0, 0, samples) : inputs_.classes};
    std::vector<FieldSource> sources;
    for (std::int64_t m = 0; m < count; ++m) {
      ScriptModel model = load(static_cast<std::size_t>(m * all / count));
      GradientField field(model, options, config_.batch_size.value_or(0));
      sources.push_back(source_of(field.compute(pilot).field));
    }
    return field_distances(sources, config_.distance).per_sample;
  };
  at::Tensor before = distances_with(2);
  std::int64_t steps = 2, samples = 0;
  double change = 0;
  for (;; steps *= 2) {
    const at::Tensor after = distances_with(2 * steps);
    samples = after.size(-1);
    const at::Tensor found = mean_distance(after, config_.distance);
    const at::Tensor former = mean_distance(before.narrow(-1, 0, samples), config_.distance);
    const double size = found.abs().max().item<double>();
    const double moved = (found - former).abs().max().item<double>();
    change = size > 0 ? moved / size : 0;
    steps_tried_.push_back({{"steps", steps}, {"change", change}});
    if (change <= config_.field.steps_tolerance) break;
    if (steps == kMost) {
      run_.progress().warn(
          fmt::format("{} steps, and doubling them still changes distances by "
                      "{:.2g} of the largest; see field.steps_tolerance",
                      steps, change));
      break;
    }
    before = after;
  }
  run_.show(
      fmt::format("{} steps: doubling them changes distances between {} models on {} samples "
                  "by at most {:.2g} of the largest",
                  steps, count, samples, change));
  options.steps = steps;
  config_.field.steps = steps;
}

void GifRun::try_out() {
  read_victims_classes();
  choose_steps();
  Phase phase(run_.progress(), "check models", static_cast<std::int64_t>(config_.models.size()),
              "models");
  const FieldOptions& options = config_.field.options;
  // What the fields of all models depend on.
  Fingerprint common("inputs and settings");
  Dataset seen = *data_;
  seen.labels = inputs_.classes;
  common.add(seen);
  seen.images = inputs_.baselines.cpu();
  seen.on_demand.reset();
  const std::string inputs = common.add(seen).hex();
  std::map<FieldKind, std::string> settings_of;
  for (const FieldKind kind : {FieldKind::kPath, FieldKind::kGradient}) {
    json field = to_config(settings(kind));
    field.erase("steps_tolerance");  // says how `steps` was found, not what they give
    settings_of[kind] = field.dump();
  }
  for (std::size_t i = 0; i < config_.models.size(); ++i) {
    ScriptModel model = load(i);
    Model entry;
    entry.content = Fingerprint("model 1").add(model).hex();
    for (const auto& [name, tensor] : model.parameters())
      entry.architecture += fmt::format("{} [{}] ", name, fmt::join(tensor.sizes(), ", "));
    GradientField field(model, options, config_.batch_size.value_or(0));
    field.check(inputs_);
    for (const auto& [kind, field_settings] : settings_of)
      entry.keys[kind] =
          Fingerprint("field 3").add(entry.content).add(inputs).add(field_settings).hex();
    models_.push_back(std::move(entry));
    phase.update(static_cast<std::int64_t>(i) + 1);
  }
}

FieldConfig GifRun::settings(FieldKind kind) const {
  FieldConfig field = config_.field;
  if (kind == FieldKind::kPath) return field;
  field.options.rule = PathRule::kRiemannRight;  // whose only point is x
  field.options.steps = 1;
  field.steps = 1;
  field.options.subset = StepSubset::kAll;
  field.options.cumulative = true;
  field.options.multiply_by_inputs = true;
  field.store = FieldStorage::kFloat32;
  field.fast = false;
  field.precision = Precision::kFloat32;
  return field;
}

FieldFileWriter::Shape GifRun::field_shape(FieldKind kind) const {
  const at::Tensor& x = inputs_.inputs;
  const FieldOptions o = settings(kind).options;
  const std::int64_t d = x[0].numel() / (o.channel_mean ? x.size(1) : 1);
  return {x.size(0), static_cast<std::int64_t>(kept_steps(o.subset, o.steps).size()), d};
}

json GifRun::plan() const {
  const auto shape = field_shape();
  const std::int64_t value = config_.field.store == FieldStorage::kFloat16 ? 2 : 4;
  std::int64_t missing = 0, gradients = 0;
  for (std::size_t i = 0; i < models_.size(); ++i) {
    if (!holds_field(i)) {
      missing += 1;
      gradients += shape.samples * config_.field.options.steps;
    }
    if (!holds_field(i, FieldKind::kGradient)) gradients += shape.samples;
  }
  return {{"tool", "modelgif-dist"},
          {"dry_run", true},
          {"task", enum_name(config_.task.type)},
          {"models", models_.size()},
          {"samples", shape.samples},
          {"steps", config_.field.options.steps},
          {"fields_to_compute", missing},
          {"gradients", gradients},
          {"field_bytes", shape.samples * shape.steps * shape.dimensions * value}};
}

fs::path GifRun::folder() const {
  return config_.cache.empty() ? run_.settings().out / "fields" : config_.cache;
}

fs::path GifRun::field_path(std::size_t index, FieldKind kind) const {
  const char* name = kind == FieldKind::kPath ? "field-" : "gradient-";
  return folder() / (name + models_[index].keys.at(kind).substr(0, 16) + ".safetensors");
}

FieldFile GifRun::stored_field(std::size_t index, FieldKind kind) const {
  return FieldFile(field_path(index, kind), models_[index].keys.at(kind));
}

bool GifRun::holds_field(std::size_t index, FieldKind kind) const {
  if (!fs::exists(field_path(index, kind))) return false;
  try {
    stored_field(index, kind);
    return true;
  } catch (const Error& e) {
    run_.progress().warn(fmt::format("{}; computing it again", e.what()));
    return false;
  }
}

ScriptModel GifRun::field_network(std::size_t index, ScriptModel& plain) {
  constexpr std::int64_t kSamples = 8, kSteps = 4;
  constexpr double kTolerance = 1e-4;
  const bool half = config_.field.precision == Precision::kBFloat16;
  const std::string& name = config_.models[index].name;
  if (!half && !config_.field.fast) return plain;
  try {
    ScriptModel fast = fast_network(plain, {config_.field.fast, half});
    // Spread over the reference, which may be in the order of classes.
    const std::int64_t samples = std::min(kSamples, inputs_.inputs.size(0));
    const at::Tensor chosen_samples =
        at::floor_divide(at::arange(samples, at::kLong) * inputs_.inputs.size(0), samples);
    const at::Tensor there = chosen_samples.to(inputs_.inputs.device());
    const FieldInputs some{
        inputs_.inputs.index_select(0, there), inputs_.baselines.index_select(0, there),
        inputs_.classes.defined() ? inputs_.classes.index_select(0, chosen_samples)
                                  : inputs_.classes};
    FieldOptions options = config_.field.options;
    options.steps = std::min(options.steps, kSteps);
    options.subset = StepSubset::kAll;
    const std::int64_t batch = config_.batch_size.value_or(0);
    const at::Tensor exact = GradientField(plain, options, batch).compute(some).field;
    const at::Tensor found = GradientField(fast, options, batch).compute(some).field;
    const double size = exact.norm().item<double>();
    const double difference = (found - exact).norm().item<double>();
    const double error = difference == 0 ? 0 : difference / size;
    const double distance =
        field_distances({source_of(exact), source_of(found)}, DistanceKind::kCosine, 0)
            .mean[1]
            .item<double>();
    const bool used = half || error <= kTolerance;
    models_[index].faster = {{"error", error}, {"cosine_distance", distance}, {"used", used}};
    if (half)
      run_.show(fmt::format(
          "{}: bfloat16 changes fields by {:.2g} of their length, {:.2g} in cosine distance", name,
          error, distance));
    else if (!used)
      run_.show(fmt::format(
          "{}: its faster form would change fields by {:.2g} of their length; computed plainly",
          name, error));
    if (used) return fast;
  } catch (const Error& e) {
    if (half) throw;
    run_.show(fmt::format("{}: {}; computed plainly", name, e.what()));
    models_[index].faster = {{"used", false}};
  }
  return plain;
}

std::string GifRun::note(std::size_t index) const {
  const json& faster = models_[index].faster;
  return faster.is_null() ? std::string() : faster.dump();
}

void GifRun::read_note(std::size_t index) {
  const json faster = json::parse(stored_field(index).note(), nullptr,
                                  /*allow_exceptions=*/false);
  if (faster.is_object()) models_[index].faster = faster;
}

void GifRun::compute_field(std::size_t index, FieldKind kind, GradientField& field,
                           FieldFileWriter& writer) {
  const std::string& name = config_.models[index].name;
  const std::int64_t samples = inputs_.inputs.size(0);
  if (writer.done() > 0)
    run_.show(fmt::format("{}: {} samples are there already", name, writer.done()));
  Phase phase(run_.progress(), (kind == FieldKind::kPath ? "field of " : "gradient of ") + name,
              samples, "samples");
  try {
    field.compute(inputs_, writer.done(), [&](FieldChunk chunk) {
      writer.add(chunk);
      phase.update(writer.done());
    });
  } catch (const Interrupted& e) {
    throw Interrupted(e.signal(), fmt::format("{} of {} samples of {} are kept, --resume continues",
                                              writer.done(), samples, name));
  }
  writer.finish();
}

void GifRun::keep_field(std::size_t index, FieldKind kind, ScriptModel& plain) {
  const fs::path path = field_path(index, kind);
  const bool path_kind = kind == FieldKind::kPath;
  if (holds_field(index, kind)) {
    if (path_kind) read_note(index);
  } else {
    ScriptModel network = path_kind ? field_network(index, plain) : plain;
    const FieldConfig field_config = settings(kind);
    GradientField field(network, field_config.options, config_.batch_size.value_or(0));
    FieldFileWriter writer(path, models_[index].keys.at(kind), field_shape(kind),
                           field_config.store, /*resume=*/true,
                           path_kind ? note(index) : std::string());
    // Another run with this cache may have been first.
    if (fs::exists(path) && holds_field(index, kind))
      writer.discard();
    else
      compute_field(index, kind, field, writer);
  }
  if (config_.cache.empty()) run_.wrote(path);
}

void GifRun::compute_fields() {
  selection_overlap();  // refuses before what takes long
  make_folder(folder());
  for (std::size_t i = 0; i < models_.size(); ++i) {
    ScriptModel model = load(i);
    GradientField field(model, config_.field.options, config_.batch_size.value_or(0));
    keep_outputs(i, model, field);
    keep_field(i, FieldKind::kPath, model);
    try {
      keep_field(i, FieldKind::kGradient, model);
    } catch (const Error& e) {
      if (e.kind() != ErrorKind::kNumeric) throw;
      models_[i].has_gradient = false;
      run_.progress().warn(fmt::format("{}: no gradient x input to compare with: {}",
                                       config_.models[i].name, e.what()));
    }
  }
}

json GifRun::write_field(const fs::path& path) {
  if (models_.size() != 1) throw Error(ErrorKind::kConfig, "models", "one model wanted", "");
  ScriptModel plain = load(0);
  ScriptModel model = field_network(0, plain);
  GradientField field(model, config_.field.options, config_.batch_size.value_or(0));
  const auto shape = field_shape();
  // Always anew: the file is the result, not a cache. What has the name keeps it until then.
  FieldFileWriter writer(path, models_[0].keys.at(FieldKind::kPath), shape, config_.field.store,
                         /*resume=*/false, note(0));
  compute_field(0, FieldKind::kPath, field, writer);
  return {{"field", path.string()},
          {"shape", {shape.samples, shape.steps, shape.dimensions}},
          {"completeness_error", FieldFile(path).completeness_error()}};
}

std::vector<std::size_t> GifRun::indices(const std::vector<std::string>& names) const {
  std::vector<std::size_t> list;
  for (const std::string& name : names) list.push_back(config_.index_of(name, "task"));
  return list;
}

FieldDistances GifRun::stored_distances(const std::vector<std::size_t>& models,
                                        std::optional<std::size_t> against, FieldKind kind) const {
  const Phase phase(run_.progress(), "distances");
  std::vector<FieldSource> sources;
  for (const std::size_t m : models) sources.push_back(stored_field(m, kind).source());
  return field_distances(sources, config_.distance, against);
}

at::Tensor GifRun::gradient_distances(const std::vector<std::size_t>& models,
                                      std::size_t from) const {
  at::Tensor found = at::full({static_cast<std::int64_t>(models.size()), inputs_.inputs.size(0)},
                              std::nan(""), at::kDouble);
  if (!models_[from].has_gradient) return found;
  std::vector<std::size_t> compared{from};
  std::vector<std::int64_t> places;
  for (std::size_t i = 0; i < models.size(); ++i)
    if (models_[models[i]].has_gradient) {
      compared.push_back(models[i]);
      places.push_back(static_cast<std::int64_t>(i));
    }
  const at::Tensor values = stored_distances(compared, 0, FieldKind::kGradient).per_sample;
  const auto count = static_cast<std::int64_t>(places.size());
  return found.index_copy_(0, at::tensor(places, at::kLong), values.narrow(0, 1, count));
}

FieldDistances GifRun::distances(const std::vector<std::size_t>& models,
                                 std::optional<std::size_t> against) {
  FieldDistances found = stored_distances(models, against, FieldKind::kPath);
  const auto shape = field_shape();
  zero_norms_.resize(models_.size(), 0);
  for (std::size_t i = 0; i < models.size(); ++i) {
    std::int64_t& count = zero_norms_[models[i]];
    if (count == 0 && found.zero_norms[i] > 0)
      run_.progress().warn(fmt::format(
          "{}: {} of {} steps of its field have no length, and are as far from all others "
          "as can be",
          config_.models[models[i]].name, found.zero_norms[i], shape.samples * shape.steps));
    count = found.zero_norms[i];
  }
  return found;
}

std::vector<std::size_t> GifRun::all_models() const {
  std::vector<std::size_t> all(models_.size());
  std::iota(all.begin(), all.end(), 0);
  return all;
}

json GifRun::model_list() const {
  json list = json::array();
  for (std::size_t i = 0; i < models_.size(); ++i) {
    const double error = stored_field(i).completeness_error();
    list.push_back({{"name", config_.models[i].name},
                    {"content", models_[i].content},
                    {"field", field_path(i).filename().string()},
                    {"completeness_error", error}});
    if (!models_[i].faster.is_null()) list.back()["faster"] = models_[i].faster;
  }
  return list;
}

}  // namespace weightsmith
