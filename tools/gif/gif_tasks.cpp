// What the tasks make of distances between fields.
#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "gif/gif_run.h"
#include "weightsmith/core/atomic_file.h"
#include "weightsmith/core/rng.h"
#include "weightsmith/data/random_stream.h"
#include "weightsmith/distance/linkage.h"
#include "weightsmith/report/heatmap.h"
#include "weightsmith/report/line_plot.h"
#include "weightsmith/report/table.h"

namespace weightsmith {
namespace {

using nlohmann::json;

std::vector<std::vector<double>> rows_of(const at::Tensor& matrix) {
  std::vector<std::vector<double>> rows;
  for (std::int64_t r = 0; r < matrix.size(0); ++r) rows.push_back(values_of(matrix[r]));
  return rows;
}

}  // namespace

std::string npy(const at::Tensor& values) {
  std::string shape;
  for (const auto size : values.sizes()) shape += std::to_string(size) + ",";
  std::string header = "{'descr': '<f8', 'fortran_order': False, 'shape': (" + shape + "), }";
  header.resize((header.size() + 11 + 63) / 64 * 64 - 11, ' ');
  header += '\n';
  const at::Tensor plain = values.to(at::kDouble).contiguous();
  std::string text("\x93NUMPY\x01\x00", 8);
  text += static_cast<char>(header.size() & 0xff);
  text += static_cast<char>(header.size() >> 8);
  return text + header + std::string(static_cast<const char*>(plain.data_ptr()), plain.nbytes());
}

std::string number(double value) { return fmt::format("{:.4f}", value); }

json GifRun::run_task() {
  json summary = {{"tool", "modelgif-dist"},
                  {"task", enum_name(config_.task.type)},
                  {"distance", enum_name(config_.distance)},
                  {"samples", inputs_.inputs.size(0)},
                  {"steps", config_.field.options.steps},
                  {"models", model_list()},
                  {"out", run_.settings().out.string()}};
  if (!steps_tried_.empty()) summary["steps_tried"] = steps_tried_;
  if (const json overlap = selection_overlap(); !overlap.is_null())
    summary["selection_overlap"] = overlap;
  switch (config_.task.type) {
    case TaskType::kMatrix:
      summary.update(config_.task.against.empty() ? matrix() : against_one());
      break;
    case TaskType::kRelatedness:
      summary.update(relatedness());
      break;
    case TaskType::kOwnership:
      summary.update(ownership());
      break;
    case TaskType::kSelect:
      summary.update(select());
      break;
    case TaskType::kUnlearning:
      summary.update(unlearning());
  }
  summary["zero_norms"] = zero_norms_;
  return summary;
}

json GifRun::selection_overlap() const {
  if (!selection_ || config_.task.type != TaskType::kOwnership) return nullptr;
  std::set<std::string> used;
  for (const json& model : selection_->at("models"))
    used.insert(model.at("content").get<std::string>());
  std::set<std::size_t> judged;
  const auto judge = [&](const std::vector<std::string>& names) {
    for (const std::size_t m : indices(names)) judged.insert(m);
  };
  judge(config_.task.independents);
  for (const ModelGroup& group : config_.task.groups) judge(group.models);
  json overlap = json::array();
  for (const std::size_t m : judged)
    if (used.contains(models_[m].content)) overlap.push_back(config_.models[m].name);
  if (!overlap.empty() && !config_.task.allow_overlap)
    throw Error(ErrorKind::kInput, config_.reference.selection.string(),
                fmt::format("the samples were selected with {}, which are judged here: an AUC "
                            "would flatter itself",
                            overlap.dump()),
                "select with other models, or set task.allow_overlap to mark it");
  return overlap;
}

BootstrapLimits GifRun::limits_of(const at::Tensor& per_sample) const {
  if (config_.bootstrap == 0) return {};
  return bootstrap_limits(per_sample, config_.distance, config_.bootstrap, run_.settings().seed);
}

GifRun::DistanceList GifRun::distances_to(std::size_t from) {
  const std::vector<std::size_t> all = all_models();
  DistanceList list{distances(all, from), {}, gradient_distances(all, from), {}};
  list.limits = limits_of(list.field.per_sample);
  list.cheap =
      cheap_distances(from, all, list.gradient, at::arange(inputs_.inputs.size(0), at::kLong));
  return list;
}

json GifRun::write_list(const DistanceList& list,
                        const std::map<std::string, std::vector<std::string>>& more) {
  const auto& out = run_.settings().out;
  std::vector<std::pair<std::string, std::vector<double>>> columns{
      {"distance", values_of(list.field.mean)}};
  json result = {{"distances", columns.front().second}};
  for (const auto& [name, values] : list.cheap) result[name] = values;
  if (list.limits.low.defined()) {
    columns.emplace_back("low", values_of(list.limits.low));
    columns.emplace_back("high", values_of(list.limits.high));
    result["low"] = columns[1].second;
    result["high"] = columns[2].second;
  }
  for (const std::string& name : cheap_names()) columns.emplace_back(name, list.cheap.at(name));

  std::vector<std::string> header{"model"};
  for (const auto& [name, values] : columns) header.push_back(name);
  for (const auto& [name, values] : more) header.push_back(name);
  Table exact(header), shown(header);
  for (std::size_t m = 0; m < models_.size(); ++m) {
    std::vector<std::string> row{config_.models[m].name}, short_row = row;
    for (const auto& [name, values] : columns) {
      row.push_back(std::isnan(values[m]) ? "" : fmt::format("{}", values[m]));
      short_row.push_back(std::isnan(values[m]) ? "-" : number(values[m]));
    }
    for (const auto& [name, values] : more) {
      row.push_back(values[m]);
      short_row.push_back(values[m]);
    }
    exact.add_row(row);
    shown.add_row(short_row);
  }
  run_.write_text(out / "distances.csv", exact.csv());
  run_.write_text(out / "distances.npy", npy(list.field.mean));
  run_.write_text(out / "per_sample.npy", npy(list.field.per_sample));
  run_.show(shown.markdown());
  return result;
}

json GifRun::against_one() {
  return write_list(distances_to(config_.index_of(config_.task.against, "task.against")));
}

json GifRun::matrix() {
  const FieldDistances found = distances(all_models(), std::nullopt);
  const auto& out = run_.settings().out;
  std::vector<std::string> names;
  for (const ModelRef& ref : config_.models) names.push_back(ref.name);
  const std::vector<std::vector<double>> mean = rows_of(found.mean);

  std::vector<std::string> header{"model"};
  header.insert(header.end(), names.begin(), names.end());
  Table exact(header), shown(header);
  for (std::size_t i = 0; i < names.size(); ++i) {
    std::vector<std::string> row{names[i]}, short_row{names[i]};
    for (const double value : mean[i]) {
      row.push_back(fmt::format("{}", value));
      short_row.push_back(number(value));
    }
    exact.add_row(row);
    shown.add_row(short_row);
  }
  run_.write_text(out / "distances.csv", exact.csv());
  run_.write_text(out / "distances.npy", npy(found.mean));
  run_.write_text(out / "per_sample.npy", npy(found.per_sample));
  run_.show(shown.markdown());

  json result = {{"distances", mean}};
  for (const auto& [name, values] : cheap_matrices()) result[name] = rows_of(values);
  if (const BootstrapLimits limits = limits_of(found.per_sample); limits.low.defined()) {
    result["low"] = rows_of(limits.low);
    result["high"] = rows_of(limits.high);
  }
  if (names.size() < 2 || !at::isfinite(found.mean).all().item<bool>()) return result;
  // Rows of log(1 - D) as the authors cluster them; where some 1 - D has no logarithm, rows of D.
  at::Tensor rows = found.mean.clone();
  rows.fill_diagonal_(0);
  const bool logarithm = rows.lt(1).all().item<bool>();
  if (logarithm) rows = (1 - rows).log();
  const auto points = rows_of(rows);
  const auto merges = optimally_ordered(ward_linkage(points), points);
  run_.write_text(out / "tree.newick", newick(merges, names));
  const auto draw = [&](const char* file, const std::string& title, const std::string& label,
                        const std::vector<std::vector<double>>& values) {
    run_.write_text(out / file, heatmap_svg({title, label, names, values, merges}));
  };
  draw("distances.svg", "distances between models", enum_name(config_.distance), mean);
  if (config_.task.type == TaskType::kRelatedness)
    draw("relatedness.svg", "relatedness", "1 - distance, standardised by column",
         column_scores(rows_of(1 - found.mean)));
  json leaves = json::array();
  for (const std::int64_t leaf : leaves_of(merges)) leaves.push_back(names[leaf]);
  result["tree"] = {{"leaves", leaves}, {"of", logarithm ? "log(1 - distance)" : "distance"}};
  return result;
}

json GifRun::relatedness() {
  json result = matrix();
  const std::size_t models = models_.size();
  // Rank correlations of the columns of a matrix of distances with the affinity's.
  const auto correlations = [&](const json& distances) {
    std::vector<double> found;
    for (std::size_t column = 0; column < models; ++column) {
      std::vector<double> a, b;
      for (std::size_t row = 0; row < models; ++row) {
        a.push_back(row == column ? 0.0 : distances[row][column].get<double>());
        b.push_back(config_.task.affinity[row][column]);
      }
      found.push_back(spearman(a, b));
    }
    return found;
  };
  const auto mean = [](std::vector<double> values) -> json {
    std::erase_if(values, [](double value) { return !std::isfinite(value); });
    if (values.empty()) return nullptr;
    return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
  };
  std::vector<std::string> header{"model", "spearman"};
  std::vector<std::vector<double>> columns{correlations(result["distances"])};
  result["spearman_mean"] = mean(columns.front());
  for (const std::string& name : cheap_names()) {
    if (!result.contains(name)) continue;
    header.push_back(name);
    columns.push_back(correlations(result[name]));
    result["spearman_mean_" + name] = mean(columns.back());
  }
  Table table(header);
  json per_task = json::object();
  for (std::size_t m = 0; m < models; ++m) {
    const std::string& name = config_.models[m].name;
    per_task[name] = std::isfinite(columns[0][m]) ? json(columns[0][m]) : json();
    std::vector<std::string> row{name};
    for (const auto& column : columns) row.push_back(fmt::format("{}", column[m]));
    table.add_row(row);
  }
  result["spearman"] = per_task;
  run_.write_text(run_.settings().out / "spearman.csv", table.csv());
  return result;
}

json GifRun::select() {
  const TaskConfig& task = config_.task;
  const std::size_t victim = config_.index_of(task.victim, "task.victim");
  const DistanceList list = distances_to(victim);
  const auto columns = [&](const std::vector<std::string>& names) {
    std::vector<std::vector<double>> rows(inputs_.inputs.size(0));
    for (const std::size_t m : indices(names)) {
      const std::vector<double> d = values_of(list.field.per_sample[static_cast<std::int64_t>(m)]);
      for (std::size_t s = 0; s < rows.size(); ++s) rows[s].push_back(d[s]);
    }
    return rows;
  };
  const auto order = sample_order(task.rule, task.statistic, columns(task.surrogates),
                                  columns(task.independents), run_.settings().seed);
  json models = json::array();
  std::set<std::string> judged(task.surrogates.begin(), task.surrogates.end());
  judged.insert(task.independents.begin(), task.independents.end());
  // A random order owes the models nothing.
  if (task.rule != SampleRule::kRandom)
    for (std::size_t m = 0; m < models_.size(); ++m)
      if (judged.contains(config_.models[m].name))
        models.push_back({{"name", config_.models[m].name}, {"content", models_[m].content}});
  const json selection = {{"format", "weightsmith selection 1"},
                          {"rule", enum_name(task.rule)},
                          {"statistic", enum_name(task.statistic)},
                          {"data", data_content_},
                          {"models", models},
                          {"order", order}};
  run_.write_text(run_.settings().out / "selection.json", selection.dump(2) + "\n");
  json result = write_list(list);
  result["rule"] = enum_name(task.rule);
  result["order"] = order;
  return result;
}

json GifRun::unlearning() {
  const TaskConfig& task = config_.task;
  const std::vector<std::size_t> reference = indices(task.reference);
  const at::Tensor every_sample = at::arange(inputs_.inputs.size(0), at::kLong);
  // A checkpoint of one sequence, from the reference's.
  struct Point {
    at::Tensor per_sample;  // (S)
    CheapDistances cheap;
  };
  std::map<std::string, std::vector<std::vector<Point>>> steps;  // by name, step: replicates
  std::vector<std::string> order;
  std::vector<at::Tensor> rows;  // of per_sample.npy
  for (const ModelGroup& sequence : task.sequences) {
    auto& points = steps[sequence.name];
    if (points.empty()) order.push_back(sequence.name);
    const std::vector<std::size_t> models = indices(sequence.models);
    if (points.size() < models.size()) points.resize(models.size());
    for (std::size_t t = 0; t < models.size(); ++t) {
      const std::size_t from = reference.size() == 1 ? reference.front() : reference[t];
      const at::Tensor gradient = gradient_distances({models[t]}, from);
      rows.push_back(distances({from, models[t]}, 0).per_sample[1].clone());
      points[t].push_back(
          {rows.back(), cheap_distances(from, {models[t]}, gradient, every_sample)});
    }
  }
  std::vector<std::string> header{"sequence", "step", "distance", "deviation", "low", "high"};
  header.insert(header.end(), cheap_names().begin(), cheap_names().end());
  Table table(header);
  LinePlot plot{"distance to the reference", "checkpoint", enum_name(config_.distance), {}, {}, ""};
  json sequences = json::array();
  for (const std::string& name : order) {
    LineSeries line{name, {}, {}, {}, {}};
    std::vector<double> deviations;
    std::map<std::string, std::vector<double>> cheap;
    for (std::size_t t = 0; t < steps[name].size(); ++t) {
      const std::vector<Point>& replicates = steps[name][t];
      std::vector<at::Tensor> parts;
      for (const Point& point : replicates) parts.push_back(point.per_sample);
      // Over replicates where there are several, else over samples.
      const at::Tensor samples = at::stack(parts);
      const at::Tensor means = mean_distance(samples, config_.distance);
      const bool replicated = samples.size(0) > 1;
      const at::Tensor spread = replicated ? means : samples[0];
      const double mean = means.mean().item<double>();
      const double deviation = spread.numel() > 1 ? spread.std().item<double>() : 0.0;
      double low = mean - deviation, high = mean + deviation;
      if (!replicated && config_.bootstrap > 0) {
        const BootstrapLimits limits = limits_of(samples);
        low = limits.low[0].item<double>();
        high = limits.high[0].item<double>();
      }
      line.x.push_back(static_cast<double>(t));
      line.y.push_back(mean);
      line.low.push_back(low);
      line.high.push_back(high);
      deviations.push_back(deviation);
      std::vector<std::string> row{name, std::to_string(t)};
      for (const double value : {mean, deviation, low, high})
        row.push_back(fmt::format("{}", value));
      for (const std::string& other : cheap_names()) {
        double sum = 0;
        for (const Point& point : replicates) sum += point.cheap.at(other).front();
        cheap[other].push_back(sum / static_cast<double>(replicates.size()));
        row.push_back(std::isnan(sum) ? "" : fmt::format("{}", cheap[other].back()));
      }
      table.add_row(row);
    }
    sequences.push_back({{"name", name},
                         {"replicates", steps[name].front().size()},
                         {"distance", line.y},
                         {"deviation", deviations},
                         {"low", line.low},
                         {"high", line.high}});
    for (const auto& [other, values] : cheap) sequences.back()[other] = values;
    plot.series.push_back(std::move(line));
  }
  run_.write_text(run_.settings().out / "curves.csv", table.csv());
  run_.write_text(run_.settings().out / "curves.svg", line_plot_svg({plot}));
  run_.write_text(run_.settings().out / "per_sample.npy", npy(at::stack(rows)));
  run_.show(table.markdown());
  return {{"sequences", sequences}};
}

}  // namespace weightsmith
