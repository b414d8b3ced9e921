#include "merge/survey.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>

#include "weightsmith/core/atomic_file.h"
#include "weightsmith/merge/networks.h"
#include "weightsmith/merge/transform.h"
#include "weightsmith/report/contour_plot.h"
#include "weightsmith/report/line_plot.h"

namespace weightsmith {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

/// A network so far out that it computes nothing finite.
Evaluation no_score() {
  Evaluation e;
  e.accuracy = e.accuracy_low = e.accuracy_high = e.loss = e.ece = kNone;
  return e;
}

json scores_json(const Scores& scores) {
  json list = json::array();
  for (const Evaluation& e : scores)
    list.push_back(std::isnan(e.loss) ? json()
                                      : json{{"samples", e.samples},
                                             {"correct", e.correct},
                                             {"loss", e.loss},
                                             {"ece", e.ece}});
  return list;
}

Scores scores_from(const json& list) {
  Scores scores;
  for (const json& e : list)
    scores.push_back(
        e.is_null() ? no_score()
                    : make_evaluation(e.at("samples"), e.at("correct"), e.at("loss"), e.at("ece")));
  return scores;
}

std::map<std::string, Scores> read_points(const fs::path& file, const std::string& key) {
  if (!fs::exists(file)) return {};
  try {
    const json stored = json::parse(read_text(file));
    if (stored.at("key") != key) return {};
    std::map<std::string, Scores> points;
    for (const auto& [name, scores] : stored.at("points").items())
      points[name] = scores_from(scores);
    return points;
  } catch (const json::exception&) {
    return {};  // scoring again costs less than asking what to do
  }
}

void write_points(const fs::path& file, const std::string& key,
                  const std::map<std::string, Scores>& points) {
  json stored = {{"key", key}, {"points", json::object()}};
  for (const auto& [name, scores] : points) stored["points"][name] = scores_json(scores);
  write_text_atomically(file, stored.dump() + "\n");
}

double share_at(std::int64_t step, std::int64_t points) {
  return static_cast<double>(step) / static_cast<double>(points - 1);
}

}  // namespace

std::int64_t survey_size(const MergeConfig& config) {
  if (!config.landscape) return 0;
  const auto lines = static_cast<std::int64_t>(config.models.size()) - 1;
  return 2 * lines * config.landscape->line + config.landscape->plane * config.landscape->plane;
}

Survey::Survey(const MergeConfig& config, Run& run, const ScoreBoard& board, const Subject& subject)
    : config_(config),
      landscape_(*config.landscape),
      run_(run),
      subject_(subject),
      options_(board.options()) {
  for (std::size_t s = 0; s < board.sets().size(); ++s)
    if (config.landscape_shows(config.evaluation.sets[s])) sets_.push_back(&board.sets()[s]);
}

json Survey::run(const fs::path& folder) {
  const fs::path to = folder / "landscape";
  make_folder(to);
  list_line_points();
  list_plane_points();
  score_points(to);
  json summary = json::object();
  if (landscape_.line > 0) summary["lines"] = write_lines(to);
  if (plane_) summary["plane"] = write_plane(to);
  return summary;
}

std::string Survey::line_point(std::size_t model, bool matched, std::int64_t step) const {
  return fmt::format("line/{}/{}/{}", model, matched ? "matched" : "as they came", step);
}

std::string Survey::plane_point(std::int64_t row, std::int64_t column) const {
  return fmt::format("plane/{}/{}", row, column);
}

void Survey::list_line_points() {
  const auto count = static_cast<std::int64_t>(subject_.models.size());
  std::vector<Matching> apart;
  for (const UnitGroup& group : subject_.groups.groups)
    apart.push_back(identity_matching(count, group.units));
  for (std::size_t i = 1; i < subject_.models.size(); ++i) {
    for (const bool matched : {false, true}) {
      for (std::int64_t step = 0; step < landscape_.line; ++step) {
        // A merge with all the weight on two models: for permutations their blend.
        ModelShares shares(subject_.models.size(), 0.0);
        shares[i] = share_at(step, landscape_.line);
        shares[0] = 1 - shares[i];
        const std::vector<Matching>& matchings = matched ? subject_.matchings : apart;
        points_.push_back({line_point(i, matched, step),
                           [this, shares, matchings] {
                             return merge_states(states_of(subject_.models).models, subject_.groups,
                                                 matchings, shares);
                           },
                           [this, shares, matchings] { return moments_of(matchings, shares); }});
      }
    }
  }
}

void Survey::list_plane_points() {
  if (landscape_.plane == 0) return;
  const auto states = states_of(subject_.models);
  const auto matched = [&](std::size_t i) {
    return reordered_state(states.models[i], subject_.groups, subject_.matchings,
                           static_cast<std::int64_t>(i));
  };
  if (subject_.models.size() == 2) {
    corners_ = {states.models[0], states.models[1], matched(1)};
    corner_names_ = {subject_.models[0].name(), subject_.models[1].name(),
                     subject_.models[1].name() + ", matched"};
  } else {
    corners_ = {states.models[0], matched(1), matched(2)};
    for (const ScriptModel& model : subject_.models) corner_names_.push_back(model.name());
  }
  std::vector<OutputMoments> corner_moments;
  if (!subject_.moments.empty()) {
    // The moments of one model alone, in the order of the slots.
    const auto matched_moments = [&](std::size_t i) {
      ModelShares alone(subject_.models.size(), 0.0);
      alone[i] = 1;
      return moments_of(subject_.matchings, alone);
    };
    corner_moments = subject_.models.size() == 2
                         ? std::vector{subject_.moments[0], subject_.moments[1], matched_moments(1)}
                         : std::vector{subject_.moments[0], matched_moments(1), matched_moments(2)};
  }
  plane_ = ModelPlane::through(corners_[0], corners_[1], corners_[2], states.buffers);
  if (!plane_) {
    run_.progress().warn(
        "landscape: the three networks lie on a line, so there is no plane through them "
        "(a matching that moves no unit leaves the second one where it is)");
    return;
  }
  x_ = plane_->grid(0, landscape_.plane, landscape_.margin);
  y_ = plane_->grid(1, landscape_.plane, landscape_.margin);
  for (std::int64_t r = 0; r < landscape_.plane; ++r)
    for (std::int64_t c = 0; c < landscape_.plane; ++c)
      points_.push_back({plane_point(r, c),
                         [this, r, c] {
                           const auto w = plane_->weights(x_[c], y_[r]);
                           return blended_state(corners_, {w[0], w[1], w[2]});
                         },
                         [this, r, c, corner_moments]() -> OutputMoments {
                           if (corner_moments.empty()) return {};
                           const auto w = plane_->weights(x_[c], y_[r]);
                           return blended_moments(corner_moments, {w[0], w[1], w[2]});
                         }});
}

OutputMoments Survey::moments_of(const std::vector<Matching>& matchings,
                                 const ModelShares& shares) const {
  if (subject_.moments.empty()) return {};
  return merged_moments(subject_.layers, subject_.moments, subject_.groups, matchings, shares);
}

Scores Survey::score(ScriptModel& network, const Point& point) const {
  NoProgress quiet;
  Scores scores;
  try {
    subject_.prepare(network, point.moments());
    for (const ScoredSet* set : sets_)
      scores.push_back(evaluate(network, set->data, *set->objective, options_, quiet));
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::kNumeric) throw;
    scores.assign(sets_.size(), no_score());
  }
  return scores;
}

void Survey::score_points(const fs::path& folder) {
  const fs::path file = folder / "points.json";
  if (run_.settings().resume) scored_ = read_points(file, subject_.key);
  std::vector<const Point*> missing;
  for (const Point& point : points_)
    if (!scored_.contains(point.name)) missing.push_back(&point);
  Phase phase(run_.progress(), "landscape", static_cast<std::int64_t>(missing.size()), "networks");
  const int threads = run_.settings().device.is_cpu() ? run_.settings().threads : 1;
  auto written = std::chrono::steady_clock::now();
  std::int64_t finished = 0;
  try {
    score_networks(
        subject_.models.front(), static_cast<std::int64_t>(missing.size()), threads,
        [&](std::int64_t k) { return missing[k]->state(); },
        [&](std::int64_t k, ScriptModel& network) { return score(network, *missing[k]); },
        [&](std::int64_t k, const Scores& scores) {
          scored_[missing[k]->name] = scores;
          phase.update(++finished);
          const auto now = std::chrono::steady_clock::now();
          if (now - written < std::chrono::seconds(1)) return;
          write_points(file, subject_.key, scored_);
          written = now;
        });
  } catch (...) {
    write_points(file, subject_.key, scored_);
    throw;
  }
  write_points(file, subject_.key, scored_);
  run_.wrote(file);
}

json Survey::write_lines(const fs::path& folder) const {
  Table table({"from", "to", "matched", "share", "set", "accuracy", "loss", "ece"});
  json lines = json::array();
  std::vector<LinePlot> panels;
  for (const ScoredSet* set : sets_)
    panels.push_back(
        {"Between the models: " + set->name, "share of the second model", "loss", {}, {}, ""});
  for (std::size_t i = 1; i < subject_.models.size(); ++i) {
    const std::string& from = subject_.models.front().name();
    const std::string& to = subject_.models[i].name();
    json line = {{"from", from}, {"to", to}, {"sets", json::object()}};
    for (std::size_t s = 0; s < sets_.size(); ++s) {
      for (const bool matched : {false, true}) {
        LineSeries series{fmt::format("{}{}", subject_.models.size() > 2 ? to + ", " : "",
                                      matched ? "matched" : "as they came"),
                          {},
                          {},
                          {},
                          {}};
        for (std::int64_t step = 0; step < landscape_.line; ++step) {
          const Evaluation& e = scored_.at(line_point(i, matched, step))[s];
          series.x.push_back(share_at(step, landscape_.line));
          series.y.push_back(e.loss);
          table.add_row({from, to, matched ? "1" : "0", fmt::format("{}", series.x.back()),
                         sets_[s]->name, fmt::format("{}", e.accuracy), fmt::format("{}", e.loss),
                         fmt::format("{}", e.ece)});
        }
        line["sets"][sets_[s]->name][matched ? "barrier_matched" : "barrier"] =
            loss_barrier(series.x, series.y);
        panels[s].series.push_back(std::move(series));
      }
    }
    lines.push_back(std::move(line));
  }
  run_.write_text(folder / "line.csv", table.csv());
  run_.write_text(folder / "line.svg", line_plot_svg(panels));
  return lines;
}

json Survey::write_plane(const fs::path& folder) const {
  Table table({"x", "y", "set", "accuracy", "loss", "ece"});
  std::vector<ContourPlot> losses;
  std::vector<ContourPlot> accuracies;
  for (std::size_t s = 0; s < sets_.size(); ++s) {
    ContourPlot plot{sets_[s]->name, "distance", "distance", "", x_, y_, {}, {}};
    for (int i = 0; i < 3; ++i)
      plot.marks.push_back({corner_names_[i], plane_->place(i)[0], plane_->place(i)[1]});
    ContourPlot& loss = losses.emplace_back(plot);
    ContourPlot& accuracy = accuracies.emplace_back(plot);
    loss.value_label = "loss";
    accuracy.value_label = "accuracy";
    for (std::int64_t r = 0; r < landscape_.plane; ++r) {
      for (std::int64_t c = 0; c < landscape_.plane; ++c) {
        const Evaluation& e = scored_.at(plane_point(r, c))[s];
        loss.values.push_back(e.loss);
        accuracy.values.push_back(e.accuracy);
        table.add_row({fmt::format("{}", x_[c]), fmt::format("{}", y_[r]), sets_[s]->name,
                       fmt::format("{}", e.accuracy), fmt::format("{}", e.loss),
                       fmt::format("{}", e.ece)});
      }
    }
  }
  run_.write_text(folder / "plane.csv", table.csv());
  run_.write_text(folder / "plane-loss.svg", contour_plot_svg(losses));
  run_.write_text(folder / "plane-accuracy.svg", contour_plot_svg(accuracies));
  json corners = json::array();
  for (int i = 0; i < 3; ++i)
    corners.push_back(
        {{"name", corner_names_[i]}, {"x", plane_->place(i)[0]}, {"y", plane_->place(i)[1]}});
  return {{"corners", corners}};
}

}  // namespace weightsmith
