#include "weightsmith/train/comparison.h"

#include <spdlog/fmt/fmt.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "weightsmith/core/atomic_file.h"
#include "weightsmith/core/error.h"
#include "weightsmith/core/progress.h"
#include "weightsmith/eval/paired_test.h"
#include "weightsmith/report/table.h"
#include "weightsmith/train/checkpoint.h"

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
  run.seed = seed;
  run.out = config.out / config.compare[method].name / fmt::format("seed-{}", seed);
  return run;
}

/// The result of a run that is finished and was made with this configuration.
std::optional<nlohmann::json> finished_result(const TrainConfig& run) {
  const fs::path path = run.out / kResults;
  std::error_code error;
  if (!fs::exists(path, error)) return std::nullopt;
  const nlohmann::json file = nlohmann::json::parse(read_text(path), nullptr, false);
  if (!file.is_object() || file.value("config", nlohmann::json()) != lasting_config(run))
    return std::nullopt;
  return file.value("result", nlohmann::json());
}

void refuse_finished_runs(const TrainConfig& config) {
  for (std::size_t m = 0; m < config.compare.size(); ++m)
    for (const std::int64_t seed : config.seeds)
      if (const fs::path folder = run_config(config, m, seed).out; fs::exists(folder / kResults))
        throw Error(ErrorKind::kConfig, folder.string(), "holds a finished run",
                    "--resume reuses it, --overwrite begins anew");
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
};

nlohmann::json method_json(const Scores& scores, const Scores& reference) {
  nlohmann::json json = {{"name", scores.name},
                         {"accuracies", scores.accuracy},
                         {"accuracy", moments_json(scores.accuracy)},
                         {"loss", moments_json(scores.loss)}};
  if (&scores == &reference) return json;
  const PairedTest test = paired_test(scores.accuracy, reference.accuracy);
  json["against_first"] = {{"mean_difference", test.mean_difference},
                           {"deviation", or_null(test.deviation)},
                           {"p", or_null(test.p)},
                           {"low", or_null(test.low)},
                           {"high", or_null(test.high)}};
  return json;
}

std::string markdown(const nlohmann::json& comparison) {
  const std::string first = comparison["methods"][0]["name"];
  Table table({"method", "accuracy, %", "loss", "against " + first, "95 % interval", "p"});
  for (const auto& method : comparison["methods"]) {
    std::vector<std::string> cells{method["name"], with_deviation(method["accuracy"]),
                                   fmt::format("{:.4f}", method["loss"]["mean"].get<double>())};
    if (!method.contains("against_first")) {
      cells.insert(cells.end(), {"", "", ""});
    } else {
      const auto& test = method["against_first"];
      cells.push_back(fmt::format("{:+.2f}", 100 * test["mean_difference"].get<double>()));
      if (test["p"].is_null()) {
        cells.insert(cells.end(), {"", ""});
      } else {
        cells.push_back(fmt::format("{:+.2f} to {:+.2f}", 100 * test["low"].get<double>(),
                                    100 * test["high"].get<double>()));
        cells.push_back(fmt::format("{:.3f}", test["p"].get<double>()));
      }
    }
    table.add_row(std::move(cells));
  }
  const auto& compute = comparison["compute"];
  return table.markdown() +
         fmt::format(
             "\nMean ± standard deviation over {} seeds, on the {} data. Each run: {} gradient "
             "evaluations, on the same augmented samples in the same order.\nDifferences, "
             "intervals and p-values: paired by seed (Student's t).\n",
             comparison["seeds"].size(), comparison["scored_on"].get<std::string>(),
             compute["gradient_evaluations"].get<std::int64_t>());
}

}  // namespace

nlohmann::json compare_methods(const TrainConfig& config, const TrainOptions& options,
                               Progress& progress,
                               const std::function<void(const fs::path&)>& wrote) {
  config.validate();
  comparison_plan(config, options);
  if (!options.resume && !options.overwrite) refuse_finished_runs(config);
  const std::string scored_on = config.data.test ? "test" : "validation";
  bool announced = false;
  const auto announce = [&](const std::vector<fs::path>& inputs) {
    announced = true;
    if (options.on_start) options.on_start(inputs);
  };

  Table csv({"method", "seed", "accuracy", "loss", "train_loss", "steps", "reused"});
  std::vector<Scores> all;
  std::optional<std::int64_t> steps;
  std::int64_t reused = 0;
  for (std::size_t m = 0; m < config.compare.size(); ++m) {
    Scores& scores = all.emplace_back();
    scores.name = config.compare[m].name;
    for (const std::int64_t seed : config.seeds) {
      const TrainConfig run = run_config(config, m, seed);
      std::optional<nlohmann::json> result;
      if (options.resume) result = finished_result(run);
      const bool is_reused = result.has_value();
      if (is_reused) {
        ++reused;
      } else {
        TrainOptions own = options;
        own.on_start = announce;
        result = train_result_json(train(run, own, progress));
        write_text_atomically(
            run.out / kResults,
            nlohmann::json{{"config", lasting_config(run)}, {"result", *result}}.dump(2) + "\n");
        remove_checkpoints(run.out);
      }
      for (const char* file : {"model.pt", "model.safetensors", "metrics.jsonl", kResults})
        wrote(run.out / file);
      const auto& score = result->at(scored_on);
      scores.accuracy.push_back(score.at("accuracy"));
      scores.loss.push_back(score.at("loss"));
      const std::int64_t own_steps = result->at("steps");
      WS_CHECK(!steps || *steps == own_steps, "runs of unequal length");
      steps = own_steps;
      csv.add_row({scores.name, std::to_string(seed), fmt::format("{}", scores.accuracy.back()),
                   fmt::format("{}", scores.loss.back()),
                   fmt::format("{}", result->at("train_loss").get<double>()),
                   std::to_string(own_steps), is_reused ? "yes" : "no"});
    }
  }
  if (!announced) announce({});

  nlohmann::json comparison = {
      {"scored_on", scored_on},
      {"seeds", config.seeds},
      {"runs", config.compare.size() * config.seeds.size()},
      {"reused", reused},
      {"compute",
       {{"gradient_evaluations", *steps},
        {"streams", config.views()},
        {"samples", "runs of one seed see the same augmented samples in the same order"}}},
      {"methods", nlohmann::json::array()}};
  for (const Scores& scores : all)
    comparison["methods"].push_back(method_json(scores, all.front()));
  for (const auto& [file, text] : {std::pair{"comparison.json", comparison.dump(2) + "\n"},
                                   {"comparison.csv", csv.csv()},
                                   {"comparison.md", markdown(comparison)}}) {
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
  return plan;
}

}  // namespace weightsmith
