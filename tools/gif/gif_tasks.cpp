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
    case TaskType::kMatrix: {
      std::optional<std::size_t> against;
      if (!config_.task.against.empty())
        against = config_.index_of(config_.task.against, "task.against");
      summary.update(matrix(against));
      break;
    }
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
  const std::string victim = models_[config_.index_of(config_.task.victim, "task.victim")].content;
  json overlap = json::array();
  for (std::size_t i = 0; i < models_.size(); ++i)
    if (models_[i].content != victim && used.contains(models_[i].content))
      overlap.push_back(config_.models[i].name);
  if (!overlap.empty() && !config_.task.allow_overlap)
    throw Error(ErrorKind::kInput, config_.reference.selection.string(),
                fmt::format("the samples were selected with {}, which are judged here: an AUC "
                            "would flatter itself",
                            overlap.dump()),
                "select with other models, or set task.allow_overlap to mark it");
  return overlap;
}

json GifRun::matrix(std::optional<std::size_t> against) {
  const FieldDistances found = distances_of_all(against);
  const auto& out = run_.settings().out;
  std::vector<std::string> names;
  for (const ModelRef& ref : config_.models) names.push_back(ref.name);

  json result = json::object();
  std::optional<BootstrapLimits> limits;
  if (config_.bootstrap > 0)
    limits = bootstrap_limits(found.per_sample, config_.distance, config_.bootstrap,
                              run_.settings().seed);
  std::vector<std::string> header{"model"};
  CheapDistances cheap;
  if (against) {
    for (const char* column : {"distance", "low", "high"}) header.emplace_back(column);
    header.insert(header.end(), cheap_names().begin(), cheap_names().end());
    cheap = cheap_distances(*against, at::arange(inputs_.inputs.size(0), at::kLong));
  } else {
    header.insert(header.end(), names.begin(), names.end());
  }
  Table exact(header), shown(header);
  for (std::size_t i = 0; i < names.size(); ++i) {
    std::vector<std::string> row{names[i]}, short_row{names[i]};
    const auto add = [&](double value) {
      row.push_back(fmt::format("{}", value));
      short_row.push_back(number(value));
    };
    const auto r = static_cast<std::int64_t>(i);
    if (against) {
      add(found.mean[r].item<double>());
      add(limits ? limits->low[r].item<double>() : std::nan(""));
      add(limits ? limits->high[r].item<double>() : std::nan(""));
      for (const std::string& name : cheap_names()) add(cheap.at(name)[i]);
    } else {
      for (const double value : values_of(found.mean[r])) add(value);
    }
    exact.add_row(row);
    shown.add_row(short_row);
  }
  run_.write_text(out / "distances.csv", exact.csv());
  run_.write_text(out / "distances.npy", npy(found.mean));
  run_.show(shown.markdown());
  if (against) {
    result["distances"] = values_of(found.mean);
    for (const auto& [name, values] : cheap) result[name] = values;
    if (limits) {
      result["low"] = values_of(limits->low);
      result["high"] = values_of(limits->high);
    }
    return result;
  }
  result["distances"] = rows_of(found.mean);
  for (const auto& [name, values] : cheap_matrices()) result[name] = rows_of(values);
  if (limits) {
    result["low"] = rows_of(limits->low);
    result["high"] = rows_of(limits->high);
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
  const auto show = [&](const char* file, const std::string& title, const std::string& label,
                        const std::vector<std::vector<double>>& values) {
    run_.write_text(out / file, heatmap_svg({title, label, names, values, merges}));
  };
  show("distances.svg", "distances between models", enum_name(config_.distance),
       rows_of(found.mean));
  if (config_.task.type == TaskType::kRelatedness)
    show("relatedness.svg", "relatedness", "1 - distance, standardised by column",
         column_scores(rows_of(1 - found.mean)));
  json leaves = json::array();
  for (const std::int64_t leaf : leaves_of(merges)) leaves.push_back(names[leaf]);
  result["tree"] = {{"leaves", leaves}, {"of", logarithm ? "log(1 - distance)" : "distance"}};
  return result;
}

json GifRun::relatedness() {
  json result = matrix(std::nullopt);
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
  for (const char* name : {"output_cosine", "cka"}) {
    if (!result.contains(name)) continue;
    header.emplace_back(name);
    columns.push_back(correlations(result[name]));
    result[std::string("spearman_mean_") + name] = mean(columns.back());
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
  const FieldDistances found = distances_of_all(victim);
  const auto columns = [&](const std::vector<std::string>& names) {
    std::vector<std::vector<double>> rows(inputs_.inputs.size(0));
    for (const std::size_t m : indices(names)) {
      const std::vector<double> d = values_of(found.per_sample[static_cast<std::int64_t>(m)]);
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
  return {{"rule", enum_name(task.rule)}, {"order", order}};
}

json GifRun::unlearning() {
  const TaskConfig& task = config_.task;
  const std::vector<std::size_t> reference = indices(task.reference);
  std::map<std::string, std::vector<std::vector<at::Tensor>>> steps;  // by name, step: replicates
  std::vector<std::string> order;
  for (const ModelGroup& sequence : task.sequences) {
    auto& points = steps[sequence.name];
    if (points.empty()) order.push_back(sequence.name);
    const std::vector<std::size_t> models = indices(sequence.models);
    if (points.size() < models.size()) points.resize(models.size());
    for (std::size_t t = 0; t < models.size(); ++t) {
      const std::size_t from = reference.size() == 1 ? reference.front() : reference[t];
      points[t].push_back(distances({from, models[t]}, 0).per_sample[1].clone());
    }
  }
  Table table({"sequence", "step", "distance", "deviation", "low", "high"});
  LinePlot plot{"distance to the reference", "checkpoint", enum_name(config_.distance), {}, {}, ""};
  json sequences = json::array();
  for (const std::string& name : order) {
    LineSeries line{name, {}, {}, {}, {}};
    std::vector<double> deviations;
    for (std::size_t t = 0; t < steps[name].size(); ++t) {
      // Over replicates where there are several, else over samples.
      const at::Tensor samples = at::stack(steps[name][t]);
      const at::Tensor means = mean_distance(samples, config_.distance);
      const bool replicated = samples.size(0) > 1;
      const at::Tensor spread = replicated ? means : samples[0];
      const double mean = means.mean().item<double>();
      const double deviation = spread.numel() > 1 ? spread.std().item<double>() : 0.0;
      double low = mean - deviation, high = mean + deviation;
      if (!replicated && config_.bootstrap > 0) {
        const auto limits = bootstrap_limits(samples[0].unsqueeze(0), config_.distance,
                                             config_.bootstrap, run_.settings().seed);
        low = limits.low[0].item<double>();
        high = limits.high[0].item<double>();
      }
      line.x.push_back(static_cast<double>(t));
      line.y.push_back(mean);
      line.low.push_back(low);
      line.high.push_back(high);
      deviations.push_back(deviation);
      table.add_row({name, std::to_string(t), fmt::format("{}", mean), fmt::format("{}", deviation),
                     fmt::format("{}", low), fmt::format("{}", high)});
    }
    sequences.push_back({{"name", name},
                         {"replicates", steps[name].front().size()},
                         {"distance", line.y},
                         {"deviation", deviations},
                         {"low", line.low},
                         {"high", line.high}});
    plot.series.push_back(std::move(line));
  }
  run_.write_text(run_.settings().out / "curves.csv", table.csv());
  run_.write_text(run_.settings().out / "curves.svg", line_plot_svg({plot}));
  run_.show(table.markdown());
  return {{"sequences", sequences}};
}

}  // namespace weightsmith
