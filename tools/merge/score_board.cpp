#include "merge/score_board.h"

#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>

#include "weightsmith/core/atomic_file.h"
#include "weightsmith/core/error.h"
#include "weightsmith/tensor/tensor_map.h"

namespace weightsmith {

using nlohmann::json;

void ScoreBoard::load() {
  const EvaluationConfig& evaluation = config_.evaluation;
  std::int64_t classes = 0;
  const auto load_set = [&](const EvaluationSet& set, const DataConfig& data) {
    ScoredSet loaded;
    loaded.name = set.name;
    loaded.data = load_dataset(data);
    if (!loaded.data.skipped.empty()) run_.progress().warn(skipped_warning(loaded.data));
    loaded.head = set.head;
    loaded.task = set.task.value_or(set.candidates == Candidates::kData);
    classes = std::max(classes, loaded.data.classes);
    if (!run_.settings().dry_run)
      for (const auto& path : loaded.data.files) run_.record().add_input(path);
    return loaded;
  };
  for (const EvaluationSet& set : evaluation.sets) sets_.push_back(load_set(set, set.data));
  const EvaluationSet* chosen = config_.selection_set();
  if (chosen != nullptr) selection_ = load_set(*chosen, chosen->selection_data().value());
  if (sets_.empty()) return;

  if (!evaluation.objective.embeddings.empty())
    run_.record().add_input(evaluation.objective.embeddings);
  Objective objective(evaluation.objective, classes);
  objective.to(run_.settings().device);
  const auto give_objective = [&](ScoredSet& loaded, const EvaluationSet& set) {
    const Candidates candidates = set.candidates.value_or(evaluation.objective.candidates);
    loaded.objective = candidates == Candidates::kData
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
    for (ScriptModel* model : named)
      set.objective->scores(model->forward(first_samples(set.data, run_.settings().device)));
  };
  for (const ScoredSet& set : sets_) run(set);
  if (selection_) run(*selection_);
}

EvaluationOptions ScoreBoard::options() const {
  return {config_.evaluation.batch_size, run_.settings().device};
}

Evaluation ScoreBoard::score_set(const ScoredSet& set, const std::vector<ScriptModel*>& models) {
  const std::vector<ScriptModel*> named = answering(set, models);
  if (named.empty()) return {};
  return evaluate_ensemble(named, set.data, *set.objective, options(), run_.progress());
}

Scores ScoreBoard::score(const std::vector<ScriptModel*>& models) {
  Scores scores;
  for (const ScoredSet& set : sets_) scores.push_back(score_set(set, models));
  return scores;
}

Evaluation ScoreBoard::score_selection(const std::vector<ScriptModel*>& models) {
  return score_set(selection_.value(), models);
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

Table ScoreBoard::accuracy_table() const {
  std::vector<std::string> header{"accuracy, %"};
  for (const ScoredSet& set : sets_) header.push_back(set.name);
  if (has_task_average()) header.emplace_back("task average");
  Table table(header);
  for (const auto& [name, scores] : rows_) {
    std::vector<std::string> row{name};
    const auto cell = [](const Evaluation& e) {
      return e.samples > 0 ? fmt::format("{:.1f}", 100 * e.accuracy) : "";
    };
    for (const Evaluation& e : scores) row.push_back(cell(e));
    if (has_task_average()) row.push_back(cell(task_average(scores).value_or(Evaluation())));
    table.add_row(row);
  }
  return table;
}

Table ScoreBoard::detail_table(bool exact) const {
  Table table(exact ? std::vector<std::string>{"network", "set", "samples", "accuracy",
                                               "accuracy_low", "accuracy_high", "loss", "ece"}
                    : std::vector<std::string>{"network", "set", "samples", "accuracy, %",
                                               "95 % interval", "loss", "ECE, %"});
  const auto add = [&](const std::string& network, const std::string& set, const Evaluation& e) {
    const std::string samples = std::to_string(e.samples);
    if (exact)
      table.add_row({network, set, samples, fmt::format("{}", e.accuracy),
                     fmt::format("{}", e.accuracy_low), fmt::format("{}", e.accuracy_high),
                     fmt::format("{}", e.loss), fmt::format("{}", e.ece)});
    else
      table.add_row({network, set, samples, fmt::format("{:.1f}", 100 * e.accuracy),
                     fmt::format("{:.1f} to {:.1f}", 100 * e.accuracy_low, 100 * e.accuracy_high),
                     fmt::format("{:.4f}", e.loss), fmt::format("{:.1f}", 100 * e.ece)});
  };
  for (const auto& [name, scores] : rows_) {
    for (std::size_t s = 0; s < sets_.size(); ++s)
      if (scores[s].samples > 0) add(name, sets_[s].name, scores[s]);
    if (const auto average = task_average(scores)) add(name, "task average", *average);
  }
  return table;
}

void ScoreBoard::write(const std::filesystem::path& folder) {
  if (sets_.empty()) return;
  const Table table = accuracy_table();
  run_.write_text(folder / "table.md",
                  table.markdown() + "\n" + detail_table(/*exact=*/false).markdown());
  run_.write_text(folder / "table.csv", table.csv());
  run_.write_text(folder / "scores.csv", detail_table(/*exact=*/true).csv());
  run_.show(table.markdown());
}

}  // namespace weightsmith
