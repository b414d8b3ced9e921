// The search for the best balance.
#include <spdlog/fmt/fmt.h>

#include <algorithm>

#include "merge/merge_run.h"
#include "weightsmith/core/atomic_file.h"
#include "weightsmith/eval/fingerprint.h"
#include "weightsmith/report/line_plot.h"

namespace weightsmith {
namespace {

using nlohmann::json;

Table sweep_table(const std::vector<SweepPoint>& points, std::size_t best) {
  std::vector<std::string> header{
      "balance",        "chosen", "objective", "weight_agreement", "activation_agreement",
      "dual_objective", "sweeps"};
  const bool by_labels = points.front().selection.has_value();
  std::vector<std::string> scores;
  if (by_labels) {
    const json figures = evaluation_json(*points.front().selection);
    for (const auto& [name, value] : figures.items()) scores.push_back(name);
  }
  for (const std::string& name : scores) header.push_back("selection_" + name);
  Table table(header);
  const std::vector<double> objective = dual_objective(points);
  for (std::size_t i = 0; i < points.size(); ++i) {
    const SweepPoint& p = points[i];
    std::vector<std::string> row{fmt::format("{}", p.balance),
                                 i == best ? "1" : "0",
                                 fmt::format("{}", p.matched.objective),
                                 fmt::format("{}", p.agreement.weight),
                                 fmt::format("{}", p.agreement.activation),
                                 fmt::format("{}", objective[i]),
                                 std::to_string(p.matched.objective_history.size())};
    if (by_labels) {
      const json figures = evaluation_json(*p.selection);
      for (const std::string& name : scores) row.push_back(figures[name].dump());
    }
    table.add_row(row);
  }
  return table;
}

std::string sweep_svg(const std::vector<SweepPoint>& points, std::size_t best,
                      const std::string& label, const std::string& select_on) {
  std::vector<std::size_t> order(points.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return points[a].balance < points[b].balance; });
  const std::vector<double> objective = dual_objective(points);
  LineSeries score{select_on, {}, {}, {}, {}};
  bool is_error = false;
  LineSeries weight{"weights", {}, {}, {}, {}};
  LineSeries activation{"activations", {}, {}, {}, {}};
  LineSeries dual{"both spaces", {}, {}, {}, {}};
  for (const std::size_t i : order) {
    const SweepPoint& p = points[i];
    if (p.selection) {
      const Evaluation& e = *p.selection;
      is_error = e.errors.has_value();
      const MeanError shown =
          is_error ? e.errors->squared : MeanError{e.accuracy, e.accuracy_low, e.accuracy_high};
      score.x.push_back(p.balance);
      score.y.push_back(shown.mean);
      score.low.push_back(shown.low);
      score.high.push_back(shown.high);
    }
    for (LineSeries* series : {&weight, &activation, &dual}) series->x.push_back(p.balance);
    weight.y.push_back(p.agreement.weight);
    activation.y.push_back(p.agreement.activation);
    dual.y.push_back(objective[i]);
  }
  const std::string axis = "balance (share of weight space)";
  const std::optional<double> mark = points[best].balance;
  std::vector<LinePlot> panels;
  const std::string measure = is_error ? "mean squared error" : "accuracy";
  if (!score.x.empty())
    panels.push_back(
        {label + ": " + measure + " on held-out data", axis, measure, {score}, mark, "chosen"});
  panels.push_back({label + ": similarity of matched units",
                    axis,
                    "mean similarity",
                    {weight, activation},
                    mark,
                    "chosen"});
  panels.push_back(
      {label + ": normalised dual objective", axis, "share of the best", {dual}, mark, "chosen"});
  return line_plot_svg(panels);
}

}  // namespace

std::string MergeRun::sweep_key() {
  Fingerprint fingerprint("sweep point 4");
  fingerprint.add(statistics_key_).add(to_config(config_.align).dump());
  fingerprint.add(std::string(enum_name(config_.attention_heads)));
  fingerprint.add(to_config(config_.zip).dump()).add(to_config(config_.iterations).dump());
  if (board_.selection()) {
    fingerprint.add(enum_name(config_.normalization.mode)).add(json(config_.shares()).dump());
    fingerprint.add(std::to_string(config_.normalization.batch_size));
    if (normalization_data_) fingerprint.add(*normalization_data_);
    for (const ScriptModel& head : heads_) fingerprint.add(head);
    const EvaluationSet& set = *config_.selection_set();
    fingerprint.add(set.head.value_or(""));
    fingerprint.add(board_.selection()->data).add(std::to_string(board_.classes()));
    fingerprint.add(to_config(config_.evaluation.objective_of(set)).dump());
  }
  return fingerprint.hex();
}

SweepPoint MergeRun::sweep_point(const MergeVariant& candidate) {
  SweepPoint point{candidate.balance, match_candidate(candidate), {}, {}};
  point.agreement = space_agreement(
      states_of(models_), groups_, activation_, point.matched.matchings, config_.similarity,
      similarity_scope(candidate.method, config_.align.reference, models_.size()), run_.progress());
  if (board_.selection()) {
    ScriptModel merged = apply(point.matched);
    renormalise(merged, point.matched);
    attach_heads(merged, point.matched);
    std::vector<ScriptModel> tasks = tasks_of(merged);
    point.selection = board_.score_selection(scored_networks(merged, tasks));
  }
  return point;
}

MatchResult MergeRun::sweep(const VariantConfig& variant) {
  const auto folder = folder_of(variant) / "sweep";
  const std::string key = sweep_key();
  const auto models = static_cast<std::int64_t>(models_.size());
  std::vector<SweepPoint> points;
  for (const MergeVariant& candidate : variant.candidates()) {
    const auto file = folder / (candidate.label() + ".safetensors");
    const std::string own_key = key + " " + candidate.label();
    std::optional<SweepPoint> stored;
    if (run_.settings().resume) stored = read_sweep_point(file, groups_, models, own_key);
    if (stored) {
      run_.show(fmt::format("{}: taken from {}", candidate.label(), file.string()));
    } else {
      stored = sweep_point(candidate);
      make_folder(folder);
      write_sweep_point(file, groups_, *stored, own_key);
    }
    run_.wrote(file);
    points.push_back(std::move(*stored));
  }
  const std::size_t best = best_point(points);
  write_sweep(variant, points, best);
  return points[best].matched;
}

void MergeRun::write_sweep(const VariantConfig& variant, const std::vector<SweepPoint>& points,
                           std::size_t best) {
  const Table table = sweep_table(points, best);
  const auto folder = folder_of(variant);
  for (const auto& [name, text] :
       {std::pair{"sweep.csv", table.csv()},
        {"sweep.svg", sweep_svg(points, best, variant.label(), config_.select_on)}}) {
    write_text_atomically(folder / name, text);
    run_.wrote(folder / name);
  }
  json list = json::array();
  const std::vector<double> objective = dual_objective(points);
  for (std::size_t i = 0; i < points.size(); ++i) {
    json point = {{"balance", points[i].balance},
                  {"objective", points[i].matched.objective},
                  {"weight_agreement", points[i].agreement.weight},
                  {"activation_agreement", points[i].agreement.activation},
                  {"dual_objective", objective[i]}};
    if (points[i].selection) point["selection"] = evaluation_json(*points[i].selection);
    list.push_back(std::move(point));
  }
  json& entry = entry_of(variant);
  entry["balance"] = points[best].balance;
  entry["select_on"] = config_.select_on;
  entry["sweep"] = std::move(list);
}

}  // namespace weightsmith
