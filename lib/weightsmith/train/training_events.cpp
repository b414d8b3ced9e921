#include "weightsmith/train/training_events.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>

namespace weightsmith {
namespace {

/// A number that is not finite stands as null in a checkpoint.
void add_number(ScalarEvent& event, const std::string& tag, const nlohmann::json& value) {
  if (value.is_number()) event.values.emplace_back(tag, value.get<double>());
}

void add_scores(ScalarEvent& event, const std::string& set, const nlohmann::json& scores) {
  for (const char* score :
       {"accuracy", "loss", "ece", "squared_error", "absolute_error", "explained"})
    if (scores.contains(score))
      add_number(event, fmt::format("{}/{}", set, score), scores.at(score));
}

}  // namespace

ScalarEvent event_of_row(const nlohmann::json& row, double wall_time) {
  ScalarEvent event{row.at("steps").get<std::int64_t>(), wall_time, {}};
  add_number(event, "epoch", row.at("epoch"));
  add_number(event, "lr", row.at("lr"));
  add_number(event, "train/loss", row.at("train_loss"));
  for (const std::string set : {"validation", "test"}) {
    if (row.contains(set)) add_scores(event, set, row.at(set));
    const std::string by_mode = set + "_by_batch_norm";
    if (!row.contains(by_mode)) continue;
    for (const auto& [mode, scores] : row.at(by_mode).items())
      add_scores(event, fmt::format("{}/{}", set, mode), scores);
  }
  return event;
}

std::vector<ScalarEvent> past_events(const std::vector<nlohmann::json>& rows, double now) {
  std::vector<ScalarEvent> events;
  for (auto row = rows.rbegin(); row != rows.rend(); ++row) {
    events.push_back(event_of_row(*row, now));
    now -= row->at("seconds").get<double>();
  }
  std::reverse(events.begin(), events.end());
  return events;
}

}  // namespace weightsmith
