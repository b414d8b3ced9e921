// Which models were derived from a victim: AUC of distances to it, verdicts, and curves.
#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "gif/gif_run.h"
#include "weightsmith/core/rng.h"
#include "weightsmith/data/random_stream.h"
#include "weightsmith/report/line_plot.h"
#include "weightsmith/report/table.h"

namespace weightsmith {
namespace {

using nlohmann::json;

json auc_json(const std::vector<double>& derived, const std::vector<double>& independent) {
  const double value = auc(derived, independent);
  const Interval interval = auc_interval(value, static_cast<std::int64_t>(derived.size()),
                                         static_cast<std::int64_t>(independent.size()));
  return {{"auc", value},
          {"auc_low", interval.low},
          {"auc_high", interval.high},
          {"p_value", mann_whitney_p(derived, independent)}};
}

/// Null where a distance is missing.
json auc_or_null(const std::vector<double>& derived, const std::vector<double>& independent) {
  for (const auto* values : {&derived, &independent})
    for (const double value : *values)
      if (std::isnan(value)) return nullptr;
  return auc(derived, independent);
}

json null_if_nan(double value) { return std::isnan(value) ? json() : json(value); }

/// Mean and central 95 % of draws, without those that gave nothing.
struct Band {
  double mean, low, high;
};
Band band_of(std::vector<double> values) {
  std::erase_if(values, [](double value) { return std::isnan(value); });
  if (values.empty()) return {std::nan(""), std::nan(""), std::nan("")};
  std::sort(values.begin(), values.end());
  const auto quantile = [&](double share) {
    return values[static_cast<std::size_t>(share * static_cast<double>(values.size() - 1) + 0.5)];
  };
  return {std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size()),
          quantile(0.025), quantile(0.975)};
}

}  // namespace

std::vector<double> GifRun::chosen(const std::vector<double>& distances,
                                   const std::vector<std::string>& names) const {
  std::vector<double> values;
  for (const std::size_t m : indices(names)) values.push_back(distances[m]);
  return values;
}

json GifRun::group_entry(const ModelGroup& group, const Distances& measured, double threshold,
                         const BootstrapLimits& limits) const {
  const std::vector<std::string>& others = config_.task.independents;
  const std::vector<double>& mean = measured.at("");
  json entry = auc_json(chosen(mean, group.models), chosen(mean, others));
  entry["name"] = group.name;
  // Pairs of one architecture alone: architecture by itself moves fields apart.
  double wins = 0, pairs = 0;
  for (const std::size_t m : indices(group.models))
    for (const std::size_t i : indices(others))
      if (models_[m].architecture == models_[i].architecture) {
        wins += auc({mean[m]}, {mean[i]});
        pairs += 1;
      }
  entry["auc_same_architecture"] = pairs > 0 ? json(wins / pairs) : json();
  entry["pairs_same_architecture"] = pairs;
  for (const std::string& name : cheap_names())
    entry["auc_" + name] =
        auc_or_null(chosen(measured.at(name), group.models), chosen(measured.at(name), others));
  entry["models"] = json::array();
  for (const std::size_t m : indices(group.models)) {
    entry["models"].push_back(
        {{"name", config_.models[m].name},
         {"distance", mean[m]},
         {"derived", std::isnan(threshold) ? json() : json(mean[m] < threshold)}});
    if (!limits.low.defined()) continue;
    const auto row = static_cast<std::int64_t>(m);
    entry["models"].back()["low"] = limits.low[row].item<double>();
    entry["models"].back()["high"] = limits.high[row].item<double>();
  }
  return entry;
}

std::map<std::string, json> GifRun::curves(
    const std::function<Distances(const at::Tensor& samples)>& measured) {
  const TaskConfig& task = config_.task;
  const std::int64_t samples = inputs_.inputs.size(0);
  std::vector<std::int64_t> counts = task.counts;
  if (counts.empty())
    for (std::int64_t c = 8; c < samples; c *= 2) counts.push_back(c);
  std::erase_if(counts, [&](std::int64_t c) { return c > samples; });
  if (counts.empty() || counts.back() != samples) counts.push_back(samples);

  std::map<std::string, json> result;
  std::map<std::string, LineSeries> series;
  std::vector<std::string> header{"group", "samples", "auc", "low", "high"};
  for (const std::string& name : cheap_names()) header.push_back("auc_" + name);
  Table table(header);
  for (const std::int64_t count : counts) {
    // A selection's first samples, or random subsets.
    const std::int64_t draws = selection_ || count == samples ? 1 : task.draws;
    std::map<std::string, std::map<std::string, std::vector<double>>> drawn;  // by group, distance
    Rng rng(run_.settings().seed, {kBootstrapStream, static_cast<std::uint64_t>(count)});
    for (std::int64_t draw = 0; draw < draws; ++draw) {
      std::vector<std::int64_t> order(samples);
      std::iota(order.begin(), order.end(), 0);
      if (draws > 1) order = random_permutation(samples, rng);
      order.resize(count);
      for (const auto& [by, distances] : measured(at::tensor(order, at::kLong)))
        for (const ModelGroup& group : task.groups) {
          const json found =
              auc_or_null(chosen(distances, group.models), chosen(distances, task.independents));
          drawn[group.name][by].push_back(found.is_null() ? std::nan("") : found.get<double>());
        }
    }
    for (const ModelGroup& group : task.groups) {
      const Band band = band_of(drawn[group.name][""]);
      LineSeries& line = series[group.name];
      line.name = group.name;
      line.x.push_back(static_cast<double>(count));
      line.y.push_back(band.mean);
      line.low.push_back(band.low);
      line.high.push_back(band.high);
      std::vector<std::string> row{group.name, std::to_string(count)};
      for (const double value : {band.mean, band.low, band.high})
        row.push_back(fmt::format("{}", value));
      json& curve = result[group.name];
      curve["samples"].push_back(count);
      curve["auc"].push_back(band.mean);
      for (const std::string& name : cheap_names()) {
        const double value = band_of(drawn[group.name][name]).mean;
        curve["auc_" + name].push_back(null_if_nan(value));
        row.push_back(std::isnan(value) ? "" : fmt::format("{}", value));
      }
      table.add_row(row);
    }
  }
  LinePlot plot{
      "AUC of derived against independent models", "reference samples", "AUC", {}, {}, ""};
  for (auto& [name, line] : series) plot.series.push_back(line);
  run_.write_text(run_.settings().out / "curve.csv", table.csv());
  run_.write_text(run_.settings().out / "curve.svg", line_plot_svg({plot}));
  return result;
}

json GifRun::ownership() {
  const TaskConfig& task = config_.task;
  const std::size_t victim = config_.index_of(task.victim, "task.victim");
  const DistanceList list = distances_to(victim);
  const at::Tensor& per_sample = list.field.per_sample;
  const std::vector<std::size_t> every_model = all_models();
  const auto measured = [&](const at::Tensor& samples) {
    Distances distances = cheap_distances(victim, every_model, list.gradient, samples);
    distances[""] = values_of(mean_distance(per_sample.index_select(1, samples), config_.distance));
    return distances;
  };
  Distances all = list.cheap;
  all[""] = values_of(list.field.mean);
  const std::vector<double>& mean = all.at("");
  const std::vector<double> far = chosen(mean, task.independents);
  const double threshold = distance_threshold(far, task.false_positive_rate);
  if (std::isnan(threshold))
    run_.progress().warn(
        fmt::format("{} independent models are too few for verdicts at a false-positive rate of {}",
                    far.size(), task.false_positive_rate));

  json result = {{"victim", task.victim},
                 {"threshold", null_if_nan(threshold)},
                 {"false_positive_rate", task.false_positive_rate},
                 {"independents", far},
                 {"groups", json::array()}};
  Table table({"group", "models", "AUC", "low", "high", "p", "AUC same architecture",
               "AUC gradient x input", "AUC victim's mistakes", "AUC output cosine", "AUC CKA"});
  auto curve = curves(measured);
  for (const ModelGroup& group : task.groups) {
    json entry = group_entry(group, all, threshold, list.limits);
    entry["curve"] = curve.at(group.name);
    std::vector<std::string> row{group.name, std::to_string(group.models.size())};
    for (const char* key :
         {"auc", "auc_low", "auc_high", "p_value", "auc_same_architecture", "auc_gradient_input",
          "auc_victim_mistakes", "auc_output_cosine", "auc_cka"})
      row.push_back(entry[key].is_null() ? "-" : number(entry[key].get<double>()));
    table.add_row(row);
    result["groups"].push_back(std::move(entry));
  }
  run_.write_text(run_.settings().out / "ownership.csv", table.csv());
  run_.show(table.markdown());
  std::vector<std::string> derived;
  for (const double distance : mean)
    derived.push_back(std::isnan(threshold) ? "" : distance < threshold ? "1" : "0");
  result.update(write_list(list, {{"derived", derived}}));
  return result;
}

}  // namespace weightsmith
