#include "weightsmith/train/trainer.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "weightsmith/config/enum_names.h"
#include "weightsmith/core/atomic_file.h"
#include "weightsmith/core/error.h"
#include "weightsmith/core/progress.h"
#include "weightsmith/core/rng.h"
#include "weightsmith/core/stop.h"
#include "weightsmith/data/random_stream.h"
#include "weightsmith/eval/objective.h"
#include "weightsmith/model/channels_last.h"
#include "weightsmith/model/script_model.h"
#include "weightsmith/report/event_file.h"
#include "weightsmith/tensor/safetensors.h"
#include "weightsmith/train/best_epoch.h"
#include "weightsmith/train/checkpoint.h"
#include "weightsmith/train/curves.h"
#include "weightsmith/train/distillation.h"
#include "weightsmith/train/freeze.h"
#include "weightsmith/train/loss_scale.h"
#include "weightsmith/train/methods.h"
#include "weightsmith/train/norm_statistics.h"
#include "weightsmith/train/parameter_arena.h"
#include "weightsmith/train/parameter_groups.h"
#include "weightsmith/train/schedule.h"
#include "weightsmith/train/train_data.h"
#include "weightsmith/train/training_events.h"
#include "weightsmith/train/training_step.h"
#include "weightsmith/train/unused_keys.h"

namespace weightsmith {
namespace {

ScriptModel load_model(const TrainConfig& config, const TrainOptions& options) {
  LoadOptions load;
  load.device = options.device;
  load.trust = options.trust;
  load.seed = static_cast<std::uint64_t>(config.seed);
  return ScriptModel::load(config.model, load);
}

std::optional<Distillation> teacher_of(const TrainConfig& config, const TrainOptions& options) {
  if (!config.distillation) return std::nullopt;
  return Distillation(*config.distillation, options.device, options.trust);
}

void check_precision(Precision precision, at::Device device) {
  if (precision == Precision::kFloat16 && device.is_cpu())
    throw Error(ErrorKind::kConfig, "precision", "float16 needs a GPU: device is the CPU",
                "use bfloat16 on the CPU, or --device cuda");
}

/// A GPU is to have enough to do while the host reads; a loss that is lost is still told soon.
std::int64_t losses_together(const TrainOptions& options) {
  if (options.losses_together > 0) return options.losses_together;
  return options.device.is_cpu() ? 1 : 16;
}

/// Samples that flow through the network together when batch-norm statistics are recomputed.
constexpr std::int64_t kNormBatch = 256;

class Run {
 public:
  Run(const TrainConfig& config, const TrainOptions& options, Progress& progress)
      : config_(config),
        device_(options.device),
        progress_(progress),
        data_(load_train_data(config.data, config.seed, &progress)),
        objective_(training_objective(config.objective, data_)),
        model_(load_model(config, options)),
        frozen_(freeze_parameters(model_, config.freeze)),
        distillation_(teacher_of(config, options)),
        arena_(std::in_place, model_.parameters(), config.method.trained_heads(), model_.where()),
        batches_(batches_per_epoch(data_.train.size(), config.batch_size)),
        method_(make_method(config, *arena_, batches_)),
        norms_(model_, config.method.norm_mode(), config.method.trained_heads(), norm_decays()),
        loss_scale_(config.precision == Precision::kFloat16 ? std::make_optional<LossScale>()
                                                            : std::nullopt),
        step_(config, {model_, objective_, distillation_ ? &*distillation_ : nullptr, *arena_,
                       *method_, norms_, device_, channels_innermost(), config.precision,
                       loss_scale_ ? &*loss_scale_ : nullptr, losses_together(options)}) {
    method_->set_parameters(parameter_settings(config.optimizer.groups, model_, *arena_));
    check_storable(model_.state_dict(), model_.where());
    objective_.to(device_);
    state_.config = lasting_config(config);
    state_.data = data_keys(data_);
    for (const auto& segment : arena_->segments()) result_.parameters += segment.numel;
    for (const Dataset* set : {&data_.train, data_.test ? &*data_.test : nullptr})
      if (set != nullptr) result_.skipped += static_cast<std::int64_t>(set->skipped.size());
    std::vector<std::filesystem::path> files{config.model.script, config.model.weights,
                                             config.objective.embeddings};
    if (config.distillation)
      files.insert(files.end(),
                   {config.distillation->teacher.script, config.distillation->teacher.weights});
    for (const auto& path : files)
      if (!path.empty()) inputs_.files.push_back(path);
    for (const Dataset* set : data_.all()) inputs_.add(set->inputs());
  }

  nlohmann::json plan() {
    const at::NoGradGuard no_grad;
    try_one_sample();
    // The sizes that pipelines make may differ from the stored one.
    const Batch batch = loader_from({})->next();
    for (std::size_t v = 0; v < batch.views.size(); ++v)
      step_.loss(batch.views[v].narrow(0, 0, 1).to(device_),
                 batch.labels[v].narrow(0, 0, 1).to(device_), {});
    if (config_.flatness) try_flatness();
    nlohmann::json plan = {{"dry_run", true},
                           {"parameters", result_.parameters},
                           {"heads", arena_->heads()},
                           {"training_samples", data_.train.size()},
                           {"validation_samples", data_.validation ? data_.validation->size() : 0},
                           {"test_samples", data_.test ? data_.test->size() : 0},
                           {"batches_per_epoch", batches_},
                           {"augment_on", augments_on_device(config_, data_.train, device_)
                                              ? enum_name(AugmentOn::kDevice)
                                              : enum_name(AugmentOn::kCpu)},
                           {"steps", config_.epochs * batches_ * config_.views()},
                           {"estimated_memory_bytes", estimated_bytes()},
                           {"out", config_.out.string()}};
    for (const std::string& warning : warnings()) plan["warnings"].push_back(warning);
    return plan;
  }

  TrainResult run(const TrainOptions& options) {
    if (options.resume) {
      load_newest_checkpoint();
    } else if (const auto paths = checkpoints_in(config_.out);
               !paths.empty() && !options.overwrite) {
      throw Error(ErrorKind::kConfig, config_.out.string(),
                  fmt::format("holds {} of an earlier run", paths.front().filename().string()),
                  "--resume goes on from it, --overwrite begins anew");
    }
    try_one_sample();
    if (config_.flatness) try_flatness();
    for (const std::string& warning : warnings()) progress_.warn(warning);
    // What it refuses is better known before anything is written or removed, too.
    std::unique_ptr<Loader> loader;
    if (state_.position.epoch < config_.epochs) loader = loader_from(state_.position);
    if (options.on_start) options.on_start(inputs_);
    make_folder(config_.out);
    if (!options.resume) remove_checkpoints(config_.out);
    begin_events();
    if (loader) train_epochs(*loader);
    finish();
    return result_;
  }

 private:
  using Clock = std::chrono::steady_clock;

  /// What the method keeps, one gradient and one average, and the data, also that which a device
  /// keeps; activations come on top.
  std::int64_t estimated_bytes() const {
    auto bytes = 2 * result_.parameters * static_cast<std::int64_t>(sizeof(float));
    for (const auto& [name, tensor] : method_->state())
      bytes += static_cast<std::int64_t>(tensor.nbytes());
    for (const Dataset* set : data_.all()) bytes += set->memory_bytes();
    if (data_.validation)  // the best epoch's
      bytes += result_.parameters * static_cast<std::int64_t>(sizeof(float));
    if (!device_.is_cpu() && augments_on_device(config_, data_.train, device_))
      bytes += data_.train.memory_bytes();  // the CPU shares what is there
    return bytes;
  }

  /// Decided on the initial weights, so that a resumed run decides alike. On a GPU nothing is known
  /// of what it would gain.
  bool channels_innermost() {
    if (!device_.is_cpu()) return false;
    constexpr std::int64_t kSamples = 4;
    return takes_channels_last(
        model_, normalised_batch(data_.train, 0, std::min(kSamples, data_.train.size())));
  }

  /// What it takes to keep the statistics of other modes; empty where they are not asked for.
  std::map<std::string, double> norm_decays() {
    const std::vector<NormMode> scored = config_.method.scored_norm_modes();
    const bool needs_others = std::any_of(scored.begin(), scored.end(), [&](NormMode mode) {
      return mode != NormMode::kRecompute && is_other_kind_of_set(mode, config_.method.norm_mode());
    });
    if (!needs_others || arena_->heads() == 1) return {};
    const std::int64_t samples = std::min<std::int64_t>(2, data_.train.size());
    try {
      return batch_norm_decays(model_, normalised_batch(data_.train, 0, samples).to(device_));
    } catch (const Error& e) {
      if (e.kind() != ErrorKind::kInput) throw;
      throw Error(ErrorKind::kInput, "method.batch_norm_scores", e.what(), "train once a mode");
    }
  }

  /// A network that does not fit the labels or the images is better refused before anything is
  /// written.
  void try_one_sample() {
    const at::NoGradGuard no_grad;
    model_.train(false);
    step_.loss(normalised_batch(data_.train, 0, 1).to(device_),
               data_.train.labels.narrow(0, 0, 1).to(device_), {});
  }

  /// Second derivatives that are missing are better known before than after the training.
  void try_flatness() {
    TrainConfig brief = config_;
    brief.flatness->directions = 0;
    brief.flatness->ascent_steps = std::min<std::int64_t>(brief.flatness->ascent_steps, 1);
    brief.flatness->power_iterations = std::min<std::int64_t>(brief.flatness->power_iterations, 1);
    brief.flatness->samples = 1;
    NoProgress quiet;
    trained_flatness(brief, model_, data_, objective_, device_, quiet);
  }

  std::vector<std::string> warnings() const {
    std::vector<std::string> all = unused_key_warnings(config_);
    for (const Dataset* set : {&data_.train, data_.test ? &*data_.test : nullptr})
      if (set != nullptr && !set->skipped.empty()) all.push_back(skipped_warning(*set));
    if (std::string warning = frozen_norm_warning(model_); !warning.empty())
      all.push_back(std::move(warning));
    if (!model_.untied().empty())
      all.push_back(
          fmt::format("{}: parameters that are views of one another are trained apart: {}",
                      model_.where(), join_some(model_.untied())));
    return all;
  }

  void load_newest_checkpoint() {
    auto found = newest_sound_checkpoint(config_.out, progress_);
    if (!found) return;
    const std::filesystem::path& path = found->first;
    Checkpoint& saved = found->second;
    check_same_config(completed_config(saved.config, state_.config), state_.config, path);
    check_same_data(saved.data, state_.data, path);
    step_.load_state(saved, path.string());
    saved.config = state_.config;  // an older one lacks keys
    saved.data = state_.data;      // and has none
    state_ = std::move(saved);
    result_.resumed_from = state_.position;
  }

  /// Weights that are lost already would push out the last checkpoint that is worth going on from.
  void check_finite() {
    if (arena_->values().isfinite().all().item<bool>()) return;
    throw Error(ErrorKind::kNumeric, model_.where(),
                fmt::format("weights are not finite after {} steps", method_->steps()),
                "lower optimizer.lr or lengthen schedule.warmup_epochs; earlier checkpoints were "
                "kept");
  }

  std::filesystem::path save_checkpoint() {
    add(step_.remaining_losses());
    check_finite();
    step_.save_state(state_);
    return write_checkpoint(config_.out, state_, config_.checkpoint.keep);
  }

  /// With `augment_on: auto` a set that the device has no room for is augmented on the CPU.
  std::unique_ptr<Loader> loader_from(LoaderPosition start) {
    LoaderOptions options = loader_options(config_, data_.train, device_);
    try {
      return std::make_unique<Loader>(data_.train, options, start);
    } catch (const Error& e) {
      if (!options.device || config_.augment_on != AugmentOn::kAuto ||
          e.kind() != ErrorKind::kNumeric)
        throw;
      progress_.warn(fmt::format("{}; the CPU augments instead", e.what()));
    }
    options.device.reset();
    return std::make_unique<Loader>(data_.train, options, start);
  }

  /// Images that heads are shown in the first so many batches of an epoch.
  std::int64_t images_in(std::int64_t batches) const {
    return std::min(batches * config_.batch_size, data_.train.size()) * config_.views();
  }

  /// Up to where the run stands.
  std::int64_t images_shown() const {
    return state_.position.epoch * images_in(batches_) + images_in(state_.position.batch);
  }

  void train_epochs(Loader& loader) {
    images_before_ = images_shown();
    Phase phase(progress_, "train", config_.epochs * images_in(batches_) - images_before_,
                "images");
    const auto began = Clock::now();
    while (state_.position.epoch < config_.epochs) {
      epoch_start_ = Clock::now() - std::chrono::duration_cast<Clock::duration>(
                                        std::chrono::duration<double>(state_.elapsed_s));
      train_epoch(loader, phase);
      score_epoch();
      const bool is_last = state_.position.epoch == config_.epochs;
      if (is_last || state_.position.epoch % config_.checkpoint.every_epochs == 0)
        save_checkpoint();
    }
    const std::chrono::duration<double> elapsed = Clock::now() - began;
    result_.images_per_s =
        static_cast<double>(images_shown() - images_before_) / std::max(elapsed.count(), 1e-9);
  }

  double rate(std::int64_t batch) const {
    return learning_rate(config_, batches_, state_.position.epoch, batch);
  }

  void train_epoch(Loader& loader, Phase& phase) {
    validate_if_wanted();
    while (state_.position.batch < batches_) {
      train_batches(loader, phase);
      validate_if_wanted();
    }
  }

  /// Until the end of the epoch or until a validation is wanted.
  void train_batches(Loader& loader, Phase& phase) {
    model_.train(true);
    do {
      const Batch batch = loader.next();
      const double lr = rate(state_.position.batch);
      for (std::size_t view = 0; view < batch.views.size(); ++view) step(batch, view, lr);
      ++state_.position.batch;
      phase.update(
          images_shown() - images_before_,
          fmt::format("epoch {}/{}{}", state_.position.epoch + 1, config_.epochs,
                      state_.loss_count > 0 ? fmt::format(", loss {:.4f}", mean_loss()) : ""));
      if (stop_requested() != 0) stop();
    } while (state_.position.batch < batches_ && !method_->wants_validation());
  }

  /// Asked before the next step, so that a run that is stopped here does it when it is resumed.
  void validate_if_wanted() {
    if (!method_->wants_validation()) return;
    WS_CHECK(data_.validation.has_value());
    add(step_.remaining_losses());
    try {
      EvaluationOptions options;
      options.device = device_;
      method_->observe_validation(
          evaluate(model_, *data_.validation, objective_, options, progress_).loss);
    } catch (const Interrupted&) {
      stop();
    }
  }

  void step(const Batch& batch, std::size_t view, double lr) {
    add(step_.run(batch, view, lr,
                  fmt::format("epoch {}, batch {}, head {}", state_.position.epoch + 1,
                              state_.position.batch + 1, view)));
  }

  void add(const std::vector<double>& losses) {
    for (const double loss : losses) state_.loss_sum += loss;
    state_.loss_count += static_cast<std::int64_t>(losses.size());
  }

  /// Writes everything and ends the run; a resumed one goes on with the next batch.
  [[noreturn]] void stop() {
    const int signal = stop_requested();
    state_.elapsed_s = std::chrono::duration<double>(Clock::now() - epoch_start_).count();
    const auto path = save_checkpoint();
    throw Interrupted(signal, path.filename().string() + " was written, --resume continues");
  }

  void score_epoch() {
    add(step_.remaining_losses());
    nlohmann::json row = {{"epoch", state_.position.epoch + 1},
                          {"steps", method_->steps()},
                          {"lr", rate(batches_ - 1)},
                          {"train_loss", mean_loss()}};
    try {
      score_result(row);
    } catch (const Interrupted&) {
      stop();
    }
    row["seconds"] = std::chrono::duration<double>(Clock::now() - epoch_start_).count();
    events_->append(event_of_row(row, now()));
    state_.history.push_back(std::move(row));
    ++state_.position.epoch;
    state_.position.batch = 0;
    state_.loss_sum = 0;
    state_.loss_count = 0;
    state_.elapsed_s = 0;
    write_metrics();
  }

  /// What is scored after every epoch.
  void score_result(nlohmann::json& row) {
    if (!data_.validation && !data_.test) return;
    const std::string set = data_.validation ? "validation" : "test";
    const Dataset& dataset = data_.validation ? *data_.validation : *data_.test;
    nlohmann::json by_mode;
    for_other_norm_modes(
        [&](NormMode mode) { by_mode[enum_name(mode)] = evaluation_json(score(dataset)); });
    const NormMode own = config_.method.norm_mode();
    const ShowResult shown(*this, own);
    const Evaluation evaluation = score(dataset);
    row[set] = evaluation_json(evaluation);
    if (is_asked_for(own)) by_mode[enum_name(own)] = row[set];
    if (!by_mode.is_null()) row[set + "_by_batch_norm"] = std::move(by_mode);
    // What may be interrupted comes before: the same epoch is then scored again, alike.
    if (data_.validation) keep_if_best(state_, model_, evaluation);
  }

  bool is_asked_for(NormMode mode) const {
    const auto modes = config_.method.scored_norm_modes();
    return std::find(modes.begin(), modes.end(), mode) != modes.end();
  }

  /// Shows the result with the batch-norm statistics of each mode to be scored beside the run's
  /// own.
  void for_other_norm_modes(const std::function<void(NormMode mode)>& action) {
    for (const NormMode mode : config_.method.scored_norm_modes()) {
      if (mode == config_.method.norm_mode()) continue;
      const ShowResult shown(*this, mode);
      action(mode);
    }
  }

  void show_result(NormMode mode) {
    method_->show_result();
    norms_.show_result(mode, method_->result_is_average(), data_.train, kNormBatch, device_,
                       progress_);
  }

  /// Shows the result for as long as this lives; training goes on after it even when a stop came
  /// in between.
  class ShowResult {
   public:
    ShowResult(Run& run, NormMode mode) : run_(run) {
      try {
        run.show_result(mode);
      } catch (...) {
        back();
        throw;
      }
    }
    ~ShowResult() { back(); }
    ShowResult(const ShowResult&) = delete;
    ShowResult& operator=(const ShowResult&) = delete;

   private:
    void back() {
      run_.norms_.show_training();
      run_.method_->show_training();
    }

    Run& run_;
  };

  Evaluation score(const Dataset& dataset) {
    EvaluationOptions options;
    options.device = device_;
    return evaluate(model_, dataset, objective_, options, progress_);
  }

  /// Seconds since 1970.
  static double now() {
    return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch())
        .count();
  }

  /// The file begins with the epochs that a resumed run has behind it.
  void begin_events() {
    events_.emplace(config_.out / "events.out.tfevents.0.weightsmith",
                    past_events(state_.history.get<std::vector<nlohmann::json>>(), now()));
  }

  void write_metrics() const {
    std::string lines;
    for (const auto& row : state_.history) lines += row.dump() + "\n";
    write_text_atomically(config_.out / "metrics.jsonl", lines);
  }

  void finish() {
    write_metrics();
    result_.curves = config_.out / "curves.svg";
    write_text_atomically(result_.curves,
                          training_curves_svg(state_.history.get<std::vector<nlohmann::json>>()));
    const auto add_scores = [this](NormMode mode) {
      NormScores& scores = result_.by_batch_norm.emplace_back();
      scores.mode = mode;
      if (data_.validation) scores.validation = score(*data_.validation);
      if (data_.test) scores.test = score(*data_.test);
    };
    for_other_norm_modes(add_scores);
    const NormMode own = config_.method.norm_mode();
    show_result(own);
    add_scores(own);
    result_.validation = result_.by_batch_norm.back().validation;
    result_.test = result_.by_batch_norm.back().test;
    if (!is_asked_for(own)) result_.by_batch_norm.pop_back();
    result_.epochs = state_.position.epoch;
    result_.steps = method_->steps();
    result_.train_loss = state_.history.back().at("train_loss").get<double>();
    for (const auto& row : state_.history) result_.seconds += row.at("seconds").get<double>();
    result_.model = config_.out / "model.pt";
    result_.weights = config_.out / "model.safetensors";
    result_.metrics = config_.out / "metrics.jsonl";

    method_.reset();
    arena_.reset();  // the archive would hold every head otherwise: parameters are views of them
    model_.metadata()["training"] = state_.config;
    save(result_.model);
    write_safetensors(result_.weights, model_.state_dict());
    if (config_.flatness)
      result_.flatness = trained_flatness(config_, model_, data_, objective_, device_, progress_);
    if (!state_.best.is_null()) finish_best();
  }

  /// Whoever loads the network may train what was frozen here.
  void save(const std::filesystem::path& path) {
    model_.train(false);
    for (const at::Tensor& parameter : frozen_) parameter.set_requires_grad(true);
    model_.save(path);
    for (const at::Tensor& parameter : frozen_) parameter.set_requires_grad(false);
  }

  /// Shows the network of the best epoch from now on.
  void finish_best() {
    BestEpoch& best = result_.best.emplace(show_best(state_, model_));
    if (data_.test) best.test = score(*data_.test);
    best.model = config_.out / "model-best.pt";
    save(best.model);
  }

  double mean_loss() const {
    return state_.loss_sum / static_cast<double>(std::max<std::int64_t>(state_.loss_count, 1));
  }

  const TrainConfig& config_;
  at::Device device_;
  Progress& progress_;
  TrainData data_;
  Objective objective_;
  ScriptModel model_;
  std::vector<at::Tensor> frozen_;  // for this run; the saved network can be trained on
  std::optional<Distillation> distillation_;
  std::optional<ParameterArena> arena_;
  std::int64_t batches_;  // an epoch
  std::unique_ptr<TrainingMethod> method_;
  NormStatistics norms_;
  std::optional<LossScale> loss_scale_;
  TrainingStep step_;
  Checkpoint state_;
  std::optional<EventFile> events_;
  TrainResult result_;
  RunInputs inputs_;
  Clock::time_point epoch_start_;
  std::int64_t images_before_ = 0;  // shown when this process began to train
};

}  // namespace

TrainResult train(const TrainConfig& config, const TrainOptions& options, Progress& progress) {
  config.validate();
  check_precision(config.precision, options.device);
  return Run(config, options, progress).run(options);
}

Flatness trained_flatness(const TrainConfig& config, ScriptModel& model, const TrainData& data,
                          const Objective& objective, at::Device device, Progress& progress) {
  const auto seed = static_cast<std::uint64_t>(config.seed);
  Rng rng(seed, {kFlatnessStream});
  std::vector<std::int64_t> chosen = random_permutation(data.train.size(), rng);
  chosen.resize(std::min(chosen.size(), static_cast<std::size_t>(config.flatness->samples)));
  std::sort(chosen.begin(), chosen.end());
  EvaluationOptions options;
  options.device = device;
  return measure_flatness(model, subset(data.train, chosen), objective, *config.flatness,
                          rng.next(), options, progress);
}

nlohmann::json training_plan(const TrainConfig& config, const TrainOptions& options) {
  config.validate();
  check_precision(config.precision, options.device);
  NoProgress progress;
  return Run(config, options, progress).plan();
}

}  // namespace weightsmith
