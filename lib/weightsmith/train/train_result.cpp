#include "weightsmith/train/train_result.h"

#include <spdlog/fmt/fmt.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "weightsmith/config/enum_names.h"
#include "weightsmith/report/table.h"

namespace weightsmith {
namespace {

std::string in_percent(double share) { return fmt::format("{:.2f}", 100 * share); }

std::vector<std::string> score_titles(bool is_regression) {
  if (is_regression) return {"squared error", "95 % interval", "absolute error", "explained"};
  return {"accuracy, %", "95 % interval", "loss", "ECE"};
}

std::vector<std::string> score_cells(const Evaluation& e) {
  if (e.errors) {
    const RegressionErrors& errors = *e.errors;
    return {fmt::format("{:.4g}", errors.squared.mean),
            fmt::format("{:.4g} to {:.4g}", errors.squared.low, errors.squared.high),
            fmt::format("{:.4g}", errors.absolute.mean), fmt::format("{:.3f}", errors.explained)};
  }
  return {in_percent(e.accuracy),
          fmt::format("{} to {}", in_percent(e.accuracy_low), in_percent(e.accuracy_high)),
          fmt::format("{:.4f}", e.loss), fmt::format("{:.4f}", e.ece)};
}

/// "1 h 02 min", "12 min", "3.4 s".
std::string rough_duration(double seconds) {
  const auto minutes = static_cast<std::int64_t>(seconds / 60 + 0.5);
  if (minutes >= 60) return fmt::format("{} h {:02} min", minutes / 60, minutes % 60);
  return seconds >= 120 ? fmt::format("{} min", minutes) : fmt::format("{:.1f} s", seconds);
}

}  // namespace

nlohmann::json train_result_json(const TrainResult& r, const TrainConfig& config) {
  nlohmann::json json = {{"epochs", r.epochs},         {"steps", r.steps},
                         {"parameters", r.parameters}, {"train_loss", r.train_loss},
                         {"model", r.model.string()},  {"weights", r.weights.string()}};
  if (r.validation) json["validation"] = evaluation_json(*r.validation);
  if (r.test) json["test"] = evaluation_json(*r.test);
  for (const NormScores& scores : r.by_batch_norm) {
    const std::string mode(enum_name(scores.mode));
    if (scores.validation)
      json["validation_by_batch_norm"][mode] = evaluation_json(*scores.validation);
    if (scores.test) json["test_by_batch_norm"][mode] = evaluation_json(*scores.test);
  }
  if (r.best) {
    json["best"] = {{"epoch", r.best->epoch},
                    {"validation", evaluation_json(r.best->validation)},
                    {"model", r.best->model.string()}};
    if (r.best->test) json["best"]["test"] = evaluation_json(*r.best->test);
  }
  if (r.flatness) json["flatness"] = flatness_json(*r.flatness, *config.flatness);
  if (r.skipped > 0) json["skipped_images"] = r.skipped;
  if (r.resumed_from)
    json["resumed_from"] = {{"epoch", r.resumed_from->epoch}, {"batch", r.resumed_from->batch}};
  return json;
}

std::string train_result_table(const TrainResult& r) {
  std::vector<std::pair<std::string, Evaluation>> scores;
  if (r.validation) scores.emplace_back("validation", *r.validation);
  if (r.test) scores.emplace_back("test", *r.test);
  for (const NormScores& by_norm : r.by_batch_norm) {
    const std::string mode = fmt::format(", batch norm {}", enum_name(by_norm.mode));
    if (by_norm.validation) scores.emplace_back("validation" + mode, *by_norm.validation);
    if (by_norm.test) scores.emplace_back("test" + mode, *by_norm.test);
  }
  if (r.best) {
    const std::string epoch = fmt::format(", epoch {} (the best)", r.best->epoch);
    scores.emplace_back("validation" + epoch, r.best->validation);
    if (r.best->test) scores.emplace_back("test" + epoch, *r.best->test);
  }
  std::string text;
  if (!scores.empty()) {
    std::vector<std::string> header = score_titles(scores.front().second.errors.has_value());
    header.insert(header.begin(), "scored on");
    header.emplace_back("samples");
    Table table(header);
    for (const auto& [name, evaluation] : scores) {
      std::vector<std::string> cells = score_cells(evaluation);
      cells.insert(cells.begin(), name);
      cells.push_back(std::to_string(evaluation.samples));
      table.add_row(std::move(cells));
    }
    text = table.markdown() + "\n";
  }
  text += fmt::format("{} epochs, {} steps in {}", r.epochs, r.steps, rough_duration(r.seconds));
  if (r.images_per_s > 0) text += fmt::format(", {:.0f} images/s", r.images_per_s);
  text += fmt::format("; training loss of the last epoch {:.4f}\n", r.train_loss);
  return text;
}

}  // namespace weightsmith
