#include "weightsmith/train/comparison.h"

#include <spdlog/fmt/fmt.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <sstream>
#include <utility>

#include "weightsmith/core/atomic_file.h"
#include "weightsmith/core/error.h"
#include "weightsmith/core/json_text.h"
#include "weightsmith/core/progress.h"
#include "weightsmith/eval/paired_test.h"
#include "weightsmith/report/table.h"
#include "weightsmith/train/checkpoint.h"
#include "weightsmith/train/curves.h"
#include "weightsmith/train/freeze.h"
#include "weightsmith/train/unused_keys.h"

namespace weightsmith {
namespace fs = std::filesystem;
namespace {

constexpr const char* kResults = "results.json";

/// One run of the comparison, as a configuration of its own.
TrainConfig run_config(const TrainConfig& config, std::size_t method, std::int64_t seed) {
  TrainConfig run = config;
  run.compare.clear();
  run.seeds.clear();
  run.method = config.compared_method(method);
  // What has no effect is said once, of the comparison.
  run.method.given.clear();
  run.optimizer.given.clear();
  run.schedule.given.clear();
  run.seed = seed;
  run.out = config.out / config.compare[method].name / fmt::format("seed-{}", seed);
  return run;
}

/// The result of a run that is finished and was made with this configuration, its flatness apart.
std::optional<nlohmann::json> finished_result(const TrainConfig& run) {
  const fs::path path = run.out / kResults;
  std::error_code error;
  if (!fs::exists(path, error)) return std::nullopt;
  const nlohmann::json file = nlohmann::json::parse(read_text(path), nullptr, false);
  if (!file.is_object() || !file.contains("config")) return std::nullopt;
  const nlohmann::json present = lasting_config(run);
  if (completed_config(file["config"], present) != present) return std::nullopt;
  return file.value("result", nlohmann::json());
}

void refuse_finished_runs(const TrainConfig& config) {
  for (std::size_t m = 0; m < config.compare.size(); ++m)
    for (const std::int64_t seed : config.seeds)
      if (const fs::path folder = run_config(config, m, seed).out; fs::exists(folder / kResults))
        throw Error(ErrorKind::kConfig, folder.string(), "holds a finished run",
                    "--resume reuses it, --overwrite begins anew");
}

void write_result(const TrainConfig& run, const nlohmann::json& result) {
  write_text_atomically(
      run.out / kResults,
      nlohmann::json{{"config", lasting_config(run)},
                     {"flatness", run.flatness ? to_config(*run.flatness) : nlohmann::json()},
                     {"result", result}}
              .dump(2) +
          "\n");
}

/// Whether a finished run lacks the flatness that is asked for now.
bool lacks_flatness(const TrainConfig& run) {
  if (!run.flatness) return false;
  const nlohmann::json file = nlohmann::json::parse(read_text(run.out / kResults));
  return file.value("flatness", nlohmann::json()) != to_config(*run.flatness);
}

/// What a run's own network is loaded as.
ScriptModel trained_network(const TrainConfig& run, const TrainOptions& options) {
  LoadOptions load;
  load.device = options.device;
  load.trust = options.trust;
  ModelRef ref;
  ref.script = run.out / "model.pt";
  ref.preprocess = run.model.preprocess;
  return ScriptModel::load(ref, load);
}

/// Measured around the network of a finished run, without training it again.
nlohmann::json flatness_afterwards(const TrainConfig& run, const TrainOptions& options,
                                   Progress& progress) {
  ScriptModel network = trained_network(run, options);
  freeze_parameters(network, run.freeze);
  const TrainData data = load_train_data(run.data, run.seed);
  Objective objective = training_objective(run.objective, data);
  objective.to(options.device);
  return flatness_json(trained_flatness(run, network, data, objective, options.device, progress),
                       *run.flatness);
}

/// What a run comes to, and whether it was there already.
std::pair<nlohmann::json, bool> run_result(const TrainConfig& run, const TrainOptions& options,
                                           const std::function<void(const RunInputs&)>& on_start,
                                           Progress& progress) {
  if (std::optional<nlohmann::json> result; options.resume && (result = finished_result(run))) {
    if (lacks_flatness(run)) {
      (*result)["flatness"] = flatness_afterwards(run, options, progress);
      write_result(run, *result);
    }
    return {std::move(*result), true};
  }
  TrainOptions own = options;
  own.on_start = on_start;
  nlohmann::json result = train_result_json(train(run, own, progress), run);
  write_result(run, result);
  remove_checkpoints(run.out);
  return {std::move(result), false};
}

/// The rows of a run's metrics.jsonl.
std::vector<nlohmann::json> rows_of(const TrainConfig& run) {
  const fs::path path = run.out / "metrics.jsonl";
  std::istringstream lines(read_text(path));
  std::vector<nlohmann::json> rows;
  for (std::string line; std::getline(lines, line);)
    rows.push_back(parse_json(line, ErrorKind::kInput, path.string(),
                              "remove the run's folder to make it again"));
  return rows;
}

/// The networks of all seeds together.
Evaluation ensemble_score(const TrainConfig& config, std::size_t method, const Dataset& test,
                          const Objective& objective, const TrainOptions& options,
                          Progress& progress) {
  std::vector<ScriptModel> networks;
  std::vector<ScriptModel*> pointers;
  networks.reserve(config.seeds.size());
  for (const std::int64_t seed : config.seeds)
    pointers.push_back(
        &networks.emplace_back(trained_network(run_config(config, method, seed), options)));
  EvaluationOptions evaluation;
  evaluation.device = options.device;
  return evaluate_ensemble(pointers, test, objective, evaluation, progress);
}

nlohmann::json or_null(const std::optional<double>& value) {
  return value ? nlohmann::json(*value) : nlohmann::json();
}

nlohmann::json moments_json(const std::vector<double>& values) {
  const SampleMoments moments = sample_moments(values);
  return {{"mean", moments.mean}, {"deviation", or_null(moments.deviation)}};
}

std::string percent(double value) { return fmt::format("{:.2f}", 100 * value); }

std::string with_deviation(const nlohmann::json& moments) {
  const std::string mean = percent(moments["mean"].get<double>());
  if (moments["deviation"].is_null()) return mean;
  return mean + " ± " + percent(moments["deviation"].get<double>());
}

/// The scores of one method over the seeds.
struct Scores {
  std::string name;
  std::vector<double> accuracy;
  std::vector<double> loss;
  std::map<std::string, std::vector<double>> by_batch_norm;  // accuracies with other statistics
  std::vector<nlohmann::json> flatness;                      // one a run, where it is measured
  std::optional<Evaluation> ensemble;
};

/// Fills in what the networks of all seeds of a method score together on the test data.
void score_ensembles(const TrainConfig& config, const TrainOptions& options, Progress& progress,
                     std::vector<Scores>& all) {
  const TrainData data = load_train_data(config.data, config.seeds.front());
  Objective objective = training_objective(config.objective, data);
  objective.to(options.device);
  for (std::size_t m = 0; m < all.size(); ++m)
    all[m].ensemble = ensemble_score(config, m, *data.test, objective, options, progress);
}

/// Means of the runs' figures; null where a run's is.
nlohmann::json mean_flatness(const std::vector<nlohmann::json>& runs) {
  nlohmann::json means = nlohmann::json::object();
  for (const char* key :
       {"loss", "random_loss", "random_deviation", "worst_loss", "top_eigenvalue"}) {
    if (!runs.front().contains(key)) continue;
    double sum = 0;
    for (const nlohmann::json& run : runs)
      sum += run.at(key).is_null() ? NAN : run.at(key).get<double>();
    if (std::isnan(sum)) {
      means[key] = nullptr;
    } else {
      means[key] = sum / static_cast<double>(runs.size());
    }
  }
  return means;
}

nlohmann::json method_json(const Scores& scores, const Scores& reference) {
  nlohmann::json json = {{"name", scores.name},
                         {"accuracies", scores.accuracy},
                         {"accuracy", moments_json(scores.accuracy)},
                         {"loss", moments_json(scores.loss)}};
  for (const auto& [mode, accuracies] : scores.by_batch_norm)
    json["by_batch_norm"][mode] = moments_json(accuracies);
  if (scores.ensemble) json["ensemble"] = evaluation_json(*scores.ensemble);
  if (!scores.flatness.empty()) json["flatness"] = mean_flatness(scores.flatness);
  if (&scores == &reference) return json;
  const PairedTest test = paired_test(scores.accuracy, reference.accuracy);
  json["against_first"] = {{"mean_difference", test.mean_difference},
                           {"deviation", or_null(test.deviation)},
                           {"p", or_null(test.p)},
                           {"low", or_null(test.low)},
                           {"high", or_null(test.high)}};
  return json;
}

/// "0.1234", "-" where a figure is not finite.
std::string figure(const nlohmann::json& value) {
  return value.is_null() ? "-" : fmt::format("{:.4g}", value.get<double>());
}

/// Cells that compare with the first method.
std::vector<std::string> paired_cells(const nlohmann::json& method) {
  if (!method.contains("against_first")) return {"", "", ""};
  const auto& test = method["against_first"];
  std::vector<std::string> cells{
      fmt::format("{:+.2f}", 100 * test["mean_difference"].get<double>())};
  if (test["p"].is_null()) {
    cells.insert(cells.end(), {"", ""});
  } else {
    cells.push_back(fmt::format("{:+.2f} to {:+.2f}", 100 * test["low"].get<double>(),
                                100 * test["high"].get<double>()));
    cells.push_back(fmt::format("{:.3f}", test["p"].get<double>()));
  }
  return cells;
}

/// What all runs of one seed see alike.
std::string streams_of(const TrainConfig& config) {
  std::string what = "the same augmented samples in the same order";
  if (config.data.draw == DrawMode::kIndependent) what += ", which is another one in each stream";
  return what;
}

std::string markdown(const nlohmann::json& comparison, const TrainConfig& config) {
  const nlohmann::json& first = comparison["methods"][0];
  std::vector<std::string> header{"method",        "accuracy, %",
                                  "loss",          "against " + first["name"].get<std::string>(),
                                  "95 % interval", "p"};
  if (first.contains("ensemble")) header.push_back("ensemble, %");
  std::set<std::string> modes;  // that any method was scored with
  for (const auto& method : comparison["methods"])
    if (method.contains("by_batch_norm"))
      for (const auto& [mode, moments] : method["by_batch_norm"].items()) modes.insert(mode);
  for (const std::string& mode : modes) header.push_back(fmt::format("batch norm {}, %", mode));
  std::vector<std::pair<const char*, const char*>> measured;
  if (first.contains("flatness"))
    for (const auto& [key, title] : {std::pair{"loss", "training loss"},
                                     {"random_loss", "perturbed"},
                                     {"worst_loss", "worst perturbed"},
                                     {"top_eigenvalue", "top eigenvalue"}})
      if (first["flatness"].contains(key)) measured.emplace_back(key, title);
  for (const auto& [key, title] : measured) header.emplace_back(title);
  Table table(header);
  for (const auto& method : comparison["methods"]) {
    std::vector<std::string> cells{method["name"], with_deviation(method["accuracy"]),
                                   fmt::format("{:.4f}", method["loss"]["mean"].get<double>())};
    for (std::string& cell : paired_cells(method)) cells.push_back(std::move(cell));
    if (method.contains("ensemble"))
      cells.push_back(percent(method["ensemble"]["accuracy"].get<double>()));
    for (const std::string& mode : modes)
      cells.push_back(method.contains("by_batch_norm") && method["by_batch_norm"].contains(mode)
                          ? with_deviation(method["by_batch_norm"][mode])
                          : "");
    for (const auto& [key, title] : measured) cells.push_back(figure(method["flatness"][key]));
    table.add_row(std::move(cells));
  }
  const auto& compute = comparison["compute"];
  return table.markdown() +
         fmt::format(
             "\nMean ± standard deviation over {} seeds, on the {} data. Each run: {} gradient "
             "evaluations, on {}.\nDifferences, intervals and p-values: paired by seed (Student's "
             "t).\n",
             comparison["seeds"].size(), comparison["scored_on"].get<std::string>(),
             compute["gradient_evaluations"].get<std::int64_t>(), streams_of(config));
}

}  // namespace

nlohmann::json compare_methods(const TrainConfig& config, const TrainOptions& options,
                               Progress& progress,
                               const std::function<void(const fs::path&)>& wrote) {
  config.validate();
  comparison_plan(config, options);
  if (!options.resume && !options.overwrite) refuse_finished_runs(config);
  for (const std::string& warning : unused_key_warnings(config)) progress.warn(warning);
  const std::string scored_on = config.data.test ? "test" : "validation";
  const std::string by_epoch = config.data.validation > 0 ? "validation" : "test";
  bool announced = false;
  const auto announce = [&](const RunInputs& inputs) {
    announced = true;
    if (options.on_start) options.on_start(inputs);
  };

  Table csv({"method", "seed", "accuracy", "loss", "train_loss", "steps", "reused"});
  std::vector<Scores> all;
  std::vector<MethodCurves> curves;
  std::optional<std::int64_t> steps;
  std::int64_t reused = 0;
  for (std::size_t m = 0; m < config.compare.size(); ++m) {
    Scores& scores = all.emplace_back();
    scores.name = config.compare[m].name;
    curves.push_back({scores.name, {}});
    for (const std::int64_t seed : config.seeds) {
      const TrainConfig run = run_config(config, m, seed);
      const auto [result, is_reused] = run_result(run, options, announce, progress);
      if (is_reused) ++reused;
      for (const char* file :
           {"model.pt", "model.safetensors", "metrics.jsonl", "curves.svg", kResults})
        if (fs::exists(run.out / file)) wrote(run.out / file);
      if (result.contains("best")) wrote(run.out / "model-best.pt");
      curves.back().runs.push_back(rows_of(run));
      const auto& score = result.at(scored_on);
      scores.accuracy.push_back(score.at("accuracy"));
      scores.loss.push_back(score.at("loss"));
      const nlohmann::json by_norm =
          result.value(scored_on + "_by_batch_norm", nlohmann::json::object());
      for (const auto& [mode, own] : by_norm.items())
        scores.by_batch_norm[mode].push_back(own.at("accuracy"));
      if (run.flatness) scores.flatness.push_back(result.at("flatness"));
      const std::int64_t own_steps = result.at("steps");
      WS_CHECK(!steps || *steps == own_steps, "runs of unequal length");
      steps = own_steps;
      csv.add_row({scores.name, std::to_string(seed), fmt::format("{}", scores.accuracy.back()),
                   fmt::format("{}", scores.loss.back()),
                   fmt::format("{}", result.at("train_loss").get<double>()),
                   std::to_string(own_steps), is_reused ? "yes" : "no"});
    }
  }
  if (!announced) announce({});
  if (config.data.test && config.seeds.size() > 1) score_ensembles(config, options, progress, all);

  nlohmann::json comparison = {{"scored_on", scored_on},
                               {"seeds", config.seeds},
                               {"runs", config.compare.size() * config.seeds.size()},
                               {"reused", reused},
                               {"compute",
                                {{"gradient_evaluations", *steps},
                                 {"streams", config.views()},
                                 {"samples", "runs of one seed see " + streams_of(config)}}},
                               {"methods", nlohmann::json::array()}};
  for (const Scores& scores : all)
    comparison["methods"].push_back(method_json(scores, all.front()));
  for (const auto& [file, text] : {std::pair{"comparison.json", comparison.dump(2) + "\n"},
                                   {"comparison.csv", csv.csv()},
                                   {"comparison.svg", comparison_curves_svg(curves, by_epoch)},
                                   {"comparison.md", markdown(comparison, config)}}) {
    write_text_atomically(config.out / file, text);
    wrote(config.out / file);
  }
  return comparison;
}

nlohmann::json comparison_plan(const TrainConfig& config, const TrainOptions& options) {
  config.validate();
  nlohmann::json plan = {{"dry_run", true},
                         {"runs", config.compare.size() * config.seeds.size()},
                         {"seeds", config.seeds},
                         {"methods", nlohmann::json::object()}};
  for (std::size_t m = 0; m < config.compare.size(); ++m)
    plan["methods"][config.compare[m].name] =
        training_plan(run_config(config, m, config.seeds.front()), options);
  for (const std::string& warning : unused_key_warnings(config))
    plan["warnings"].push_back(warning);
  return plan;
}

}  // namespace weightsmith
