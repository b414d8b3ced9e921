#include "weightsmith/merge/sweep.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "weightsmith/core/error.h"
#include "weightsmith/merge/networks.h"

namespace weightsmith {
namespace {

using nlohmann::json;

json point_json(const SweepPoint& point) {
  const MatchResult& m = point.matched;
  json figures = {{"balance", point.balance},
                  {"objective", m.objective},
                  {"objective_history", m.objective_history},
                  {"groups_matched", m.groups_matched},
                  {"groups_skipped", m.groups_skipped},
                  {"weight_agreement", point.agreement.weight},
                  {"activation_agreement", point.agreement.activation}};
  if (point.selection) figures["selection"] = evaluation_json(*point.selection);
  return figures;
}

SweepPoint point_from(const json& figures) {
  SweepPoint point;
  point.balance = figures.at("balance");
  MatchResult& m = point.matched;
  m.objective = figures.at("objective");
  m.objective_history = figures.at("objective_history").get<std::vector<double>>();
  m.groups_matched = figures.at("groups_matched");
  m.groups_skipped = figures.at("groups_skipped");
  point.agreement = {figures.at("weight_agreement"), figures.at("activation_agreement")};
  if (const auto it = figures.find("selection"); it != figures.end())
    point.selection = evaluation_from_json(*it);
  return point;
}

}  // namespace

std::vector<double> dual_objective(const std::vector<SweepPoint>& points) {
  double weight = 0;
  double activation = 0;
  for (const SweepPoint& p : points) {
    weight = std::max(weight, p.agreement.weight);
    activation = std::max(activation, p.agreement.activation);
  }
  std::vector<double> objective;
  for (const SweepPoint& p : points) {
    double sum = 0;
    int spaces = 0;
    for (const auto& [value, largest] :
         {std::pair{p.agreement.weight, weight}, std::pair{p.agreement.activation, activation}}) {
      if (!(largest > 0)) continue;
      sum += value / largest;
      ++spaces;
    }
    objective.push_back(spaces > 0 ? sum / spaces : 0.0);
  }
  return objective;
}

std::size_t best_point(const std::vector<SweepPoint>& points) {
  WS_CHECK(!points.empty());
  const bool by_labels = points.front().selection.has_value();
  const std::vector<double> objective = dual_objective(points);
  std::size_t best = 0;
  for (std::size_t i = 1; i < points.size(); ++i) {
    WS_CHECK(points[i].selection.has_value() == by_labels);
    if (!by_labels) {
      if (objective[i] > objective[best]) best = i;
      continue;
    }
    const Evaluation& a = *points[i].selection;
    const Evaluation& b = *points[best].selection;
    if (a.correct > b.correct || (a.correct == b.correct && a.loss < b.loss)) best = i;
  }
  return best;
}

void write_sweep_point(const std::filesystem::path& path, const UnitGroups& groups,
                       const SweepPoint& point, const std::string& key) {
  write_matchings(path, groups, point.matched.matchings,
                  {{"key", key}, {"figures", point_json(point).dump()}});
}

std::optional<SweepPoint> read_sweep_point(const std::filesystem::path& path,
                                           const UnitGroups& groups, std::int64_t models,
                                           const std::string& key) {
  if (!std::filesystem::exists(path)) return std::nullopt;
  try {
    MatchingFile file = read_matchings(path, groups, models);
    if (file.metadata["key"] != key) return std::nullopt;
    SweepPoint point = point_from(json::parse(file.metadata["figures"]));
    point.matched.matchings = std::move(file.matchings);
    return point;
  } catch (const Error&) {
    return std::nullopt;  // computing it again costs less than asking what to do
  } catch (const json::exception&) {
    return std::nullopt;
  }
}

}  // namespace weightsmith
