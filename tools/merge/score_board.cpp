#include "merge/score_board.h"

#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <string_view>

#include "weightsmith/core/atomic_file.h"
#include "weightsmith/core/error.h"
#include "weightsmith/tensor/tensor_map.h"

namespace weightsmith {

using nlohmann::json;

void ScoreBoard::load() {
  const EvaluationConfig& evaluation = config_.evaluation;
  const auto load_set = [&](std::size_t index, const DataConfig& data, std::string_view key) {
    const EvaluationSet& set = evaluation.sets[index];
    ScoredSet loaded;
    loaded.name = set.name;
    loaded.key = fmt::format("evaluation.sets[{}].{}", index, key);
    loaded.data = load_dataset(data, &run_.progress());
    if (!loaded.data.skipped.empty()) run_.progress().warn(skipped_warning(loaded.data));
    loaded.head = set.head;
    loaded.task = set.task.value_or(set.candidates == Candidates::kData);
    classes_ = std::max(classes_, loaded.data.classes);
    if (!run_.settings().dry_run) run_.record().add_inputs(loaded.data.inputs());
    return loaded;
  };
  for (std::size_t s = 0; s < evaluation.sets.size(); ++s)
    sets_.push_back(load_set(s, evaluation.sets[s].data, "data"));
  const EvaluationSet* chosen = config_.selection_set();
  for (std::size_t s = 0; s < evaluation.sets.size(); ++s)
    if (chosen == &evaluation.sets[s])
      selection_ =
          load_set(s, chosen->selection_data().value(), chosen->selection ? "selection" : "data");
  if (sets_.empty()) return;

  const auto give_objective = [&](ScoredSet& loaded, const EvaluationSet& set) {
    const ObjectiveConfig own = evaluation.objective_of(set);
    if (!own.embeddings.empty()) run_.record().add_input(own.embeddings);
    Objective objective(own, classes_);
    objective.to(run_.settings().device);
    loaded.objective = own.candidates == Candidates::kData
                           ? objective.restricted_to(classes_in(loaded.data))
                           : objective;
  };
  for (std::size_t s = 0; s < sets_.size(); ++s) give_objective(sets_[s], evaluation.sets[s]);
  if (selection_) give_objective(*selection_, *chosen);
}

at::Tensor first_samples(const Dataset& data, at::Device device) {
  constexpr std::int64_t kSamples = 2;  // a network in training mode cannot do with one
  return normalised_batch(data, 0, std::min(kSamples, data.size())).to(device);
}

void try_samples(const std::string& key, const Dataset& data, at::Device device,
                 const std::function<void(const at::Tensor& samples)>& run) {
  const at::Tensor samples = first_samples(data, device);
  try {
    run(samples);
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::kInput) throw;
    throw Error(
        ErrorKind::kInput, fmt::format("{}: {}", key, data.where),
        fmt::format("samples of shape [{}]: {}", fmt::join(data.sample_shape(), ", "), e.what()));
  }
}

namespace {

/// Those of the networks that answer for a set.
std::vector<ScriptModel*> answering(const ScoredSet& set, const std::vector<ScriptModel*>& models) {
  if (!set.head) return models;
  std::vector<ScriptModel*> named;
  for (ScriptModel* model : models)
    if (model->name() == *set.head) named.push_back(model);
  return named;
}

}  // namespace

void ScoreBoard::try_out(const std::vector<ScriptModel*>& models) const {
  const at::NoGradGuard no_grad;
  const auto run = [&](const ScoredSet& set) {
    const std::vector<ScriptModel*> named = answering(set, models);
    if (named.empty()) {
      std::vector<std::string> names;
      for (const ScriptModel* model : models) names.push_back(model->name());
      throw Error(ErrorKind::kConfig, "evaluation.sets",
                  fmt::format("\"{}\" names the head \"{}\", but no model is called so", set.name,
                              *set.head),
                  "known: " + join_some(names));
    }
    try_samples(set.key, set.data, run_.settings().device, [&](const at::Tensor& samples) {
      for (ScriptModel* model : named)
        set.objective->check_outputs(model->forward(samples), samples);
    });
  };
  std::vector<const ScoredSet*> all;
  for (const ScoredSet& set : sets_) all.push_back(&set);
  if (selection_) all.push_back(&*selection_);
  // All share the label space of the set with the most classes: too many of them are its doing.
  std::stable_sort(all.begin(), all.end(), [](const ScoredSet* a, const ScoredSet* b) {
    return a->data.classes > b->data.classes;
  });
  for (const ScoredSet* set : all) run(*set);
}

EvaluationOptions ScoreBoard::options() const {
  return {config_.evaluation.batch_size, run_.settings().device};
}

Evaluation ScoreBoard::score_set(const ScoredSet& set, const ScoredNetworks& networks) {
  const std::vector<ScriptModel*> named = answering(set, networks.models);
  if (named.empty()) return {};
  EvaluationOptions own = options();
  if (set.head) return evaluate_ensemble(named, set.data, *set.objective, own, run_.progress());
  own.shares = networks.shares;
  return networks.together != nullptr
             ? evaluate_heads(*networks.together, set.data, *set.objective, own, run_.progress())
             : evaluate_ensemble(named, set.data, *set.objective, own, run_.progress());
}

Scores ScoreBoard::score(const ScoredNetworks& networks) {
  Scores scores;
  for (const ScoredSet& set : sets_) scores.push_back(score_set(set, networks));
  return scores;
}

Evaluation ScoreBoard::score_selection(const ScoredNetworks& networks) {
  return score_set(selection_.value(), networks);
}

json ScoreBoard::add(const std::string& name, const Scores& scores) {
  rows_.emplace_back(name, scores);
  json object = json::object();
  for (std::size_t s = 0; s < sets_.size(); ++s)
    if (scores[s].samples > 0) object[sets_[s].name] = evaluation_json(scores[s]);
  if (const auto average = task_average(scores)) object["task_average"] = evaluation_json(*average);
  return object;
}

bool ScoreBoard::has_task_average() const {
  return std::count_if(sets_.begin(), sets_.end(), [](const auto& s) { return s.task; }) > 1;
}

std::optional<Evaluation> ScoreBoard::task_average(const Scores& scores) const {
  if (!has_task_average()) return std::nullopt;
  Scores tasks;
  for (std::size_t s = 0; s < sets_.size(); ++s)
    if (sets_[s].task) {
      if (scores[s].samples == 0) return std::nullopt;
      tasks.push_back(scores[s]);
    }
  return average_of(tasks);
}

Table ScoreBoard::score_table() const {
  const bool has_errors = std::any_of(sets_.begin(), sets_.end(), [](const ScoredSet& set) {
    return set.objective->is_regression();
  });
  std::vector<std::string> header{has_errors ? "accuracy, % (or mean squared error)"
                                             : "accuracy, %"};
  for (const ScoredSet& set : sets_) header.push_back(set.name);
  if (has_task_average()) header.emplace_back("task average");
  Table table(header);
  for (const auto& [name, scores] : rows_) {
    std::vector<std::string> row{name};
    const auto cell = [](const Evaluation& e) {
      if (e.samples == 0) return std::string();
      return e.errors ? fmt::format("({:.4g})", e.errors->squared.mean)
                      : fmt::format("{:.1f}", 100 * e.accuracy);
    };
    for (const Evaluation& e : scores) row.push_back(cell(e));
    if (has_task_average()) row.push_back(cell(task_average(scores).value_or(Evaluation())));
    table.add_row(row);
  }
  return table;
}

void ScoreBoard::each_score(const std::function<void(const std::string&, const std::string&,
                                                     const Evaluation&)>& visit) const {
  for (const auto& [name, scores] : rows_) {
    for (std::size_t s = 0; s < sets_.size(); ++s)
      if (scores[s].samples > 0) visit(name, sets_[s].name, scores[s]);
    if (const auto average = task_average(scores)) visit(name, "task average", *average);
  }
}

std::string ScoreBoard::detail_tables() const {
  Table accuracies({"network", "set", "samples", "accuracy, %", "95 % interval", "loss", "ECE, %"});
  Table errors({"network", "set", "samples", "squared error", "95 % interval", "absolute error",
                "95 % interval", "explained, %"});
  bool has_accuracies = false;
  bool has_errors = false;
  each_score([&](const std::string& network, const std::string& set, const Evaluation& e) {
    const std::string samples = std::to_string(e.samples);
    const auto interval = [](const MeanError& m) {
      return fmt::format("{:.4g} to {:.4g}", m.low, m.high);
    };
    if (e.errors) {
      has_errors = true;
      errors.add_row({network, set, samples, fmt::format("{:.4g}", e.errors->squared.mean),
                      interval(e.errors->squared), fmt::format("{:.4g}", e.errors->absolute.mean),
                      interval(e.errors->absolute),
                      fmt::format("{:.1f}", 100 * e.errors->explained)});
      return;
    }
    has_accuracies = true;
    accuracies.add_row(
        {network, set, samples, fmt::format("{:.1f}", 100 * e.accuracy),
         fmt::format("{:.1f} to {:.1f}", 100 * e.accuracy_low, 100 * e.accuracy_high),
         fmt::format("{:.4f}", e.loss), fmt::format("{:.1f}", 100 * e.ece)});
  });
  return (has_accuracies ? accuracies.markdown() : "") +
         (has_accuracies && has_errors ? "\n" : "") + (has_errors ? errors.markdown() : "");
}

Table ScoreBoard::exact_table() const {
  Table table({"network", "set", "samples", "accuracy", "accuracy_low", "accuracy_high", "loss",
               "ece", "squared_error", "squared_error_low", "squared_error_high", "absolute_error",
               "absolute_error_low", "absolute_error_high", "explained"});
  each_score([&](const std::string& network, const std::string& set, const Evaluation& e) {
    std::vector<std::string> row{network, set, std::to_string(e.samples)};
    const auto add = [&row](bool known, std::initializer_list<double> values) {
      for (const double value : values) row.push_back(known ? fmt::format("{}", value) : "");
    };
    const RegressionErrors r = e.errors.value_or(RegressionErrors());
    const bool is_regression = e.errors.has_value();
    add(!is_regression, {e.accuracy, e.accuracy_low, e.accuracy_high});
    add(true, {e.loss});
    add(!is_regression, {e.ece});
    for (const MeanError& m : {r.squared, r.absolute}) add(is_regression, {m.mean, m.low, m.high});
    add(is_regression, {r.explained});
    table.add_row(row);
  });
  return table;
}

void ScoreBoard::write(const std::filesystem::path& folder) {
  if (sets_.empty()) return;
  const Table table = score_table();
  run_.write_text(folder / "table.md", table.markdown() + "\n" + detail_tables());
  run_.write_text(folder / "table.csv", table.csv());
  run_.write_text(folder / "scores.csv", exact_table().csv());
  run_.show(table.markdown());
}

}  // namespace weightsmith
