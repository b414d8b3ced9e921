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

/// NumPy's format 1.0: a float64 array in C order.
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

json auc_json(const std::vector<double>& derived, const std::vector<double>& independent) {
  const double value = auc(derived, independent);
  const Interval interval = auc_interval(value, static_cast<std::int64_t>(derived.size()),
                                         static_cast<std::int64_t>(independent.size()));
  return {{"auc", value},
          {"auc_low", interval.low},
          {"auc_high", interval.high},
          {"p_value", mann_whitney_p(derived, independent)}};
}

}  // namespace

json GifRun::run_task() {
  json summary = {{"tool", "modelgif-dist"},
                  {"task", enum_name(config_.task.type)},
                  {"distance", enum_name(config_.distance)},
                  {"samples", inputs_.inputs.size(0)},
                  {"steps", config_.field.options.steps},
                  {"models", model_list()},
                  {"out", run_.settings().out.string()}};
  if (!steps_tried_.empty()) summary["steps_tried"] = steps_tried_;
  check_overlap(summary);
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
  return summary;
}

json GifRun::cheap_distances(std::size_t victim, std::size_t model) const {
  const at::Tensor &a = models_[victim].outputs, &b = models_[model].outputs;
  json result = json::object();
  if (models_[model].gradient_distance)
    result["gradient_input"] = *models_[model].gradient_distance;
  if (a.dim() != 2 || a.sizes() != b.sizes()) return result;
  const at::Tensor cosine = (a * b).sum(1) / (a.norm(2, {1}) * b.norm(2, {1})).clamp_min(1e-8);
  result["output_cosine"] = 1 - cosine.mean().item<double>();
  const at::Tensor mistakes = a.argmax(1).ne(data_->labels);
  const auto count = mistakes.sum().item<std::int64_t>();
  if (count > 0)
    result["victim_mistakes"] =
        1 - a.argmax(1).eq(b.argmax(1)).logical_and(mistakes).sum().item<double>() /
                static_cast<double>(count);
  return result;
}

void GifRun::check_overlap(json& summary) const {
  if (!selection_ || config_.task.type != TaskType::kOwnership) return;
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
  summary["selection_overlap"] = overlap;
}

json GifRun::matrix(std::optional<std::size_t> against) {
  const FieldDistances found = distances_of_all(against);
  const auto& out = run_.settings().out;
  std::vector<std::string> names;
  for (const ModelRef& ref : config_.models) names.push_back(ref.name);

  json result = {{"zero_norms", found.zero_norms}};
  std::optional<BootstrapLimits> limits;
  if (config_.bootstrap > 0)
    limits = bootstrap_limits(found.per_sample, config_.distance, config_.bootstrap,
                              run_.settings().seed);
  std::vector<std::string> header{"model"};
  if (against)
    for (const char* column :
         {"distance", "low", "high", "gradient_input", "output_cosine", "victim_mistakes"})
      header.emplace_back(column);
  else
    header.insert(header.end(), names.begin(), names.end());
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
      const json cheap = cheap_distances(*against, i);
      for (const char* key : {"gradient_input", "output_cosine", "victim_mistakes"})
        add(cheap.value(key, std::nan("")));
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
    result["gradient_input"] = json::array();
    for (const Model& model : models_)
      result["gradient_input"].push_back(model.gradient_distance.value());
    if (limits) {
      result["low"] = values_of(limits->low);
      result["high"] = values_of(limits->high);
    }
    return result;
  }
  result["distances"] = rows_of(found.mean);
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
  const auto d = result["distances"].get<std::vector<std::vector<double>>>();
  json per_task = json::object();
  double sum = 0;
  std::size_t counted = 0;
  Table table({"model", "spearman"});
  for (std::size_t column = 0; column < d.size(); ++column) {
    std::vector<double> a, b;
    for (std::size_t row = 0; row < d.size(); ++row) {
      a.push_back(row == column ? 0.0 : d[row][column]);
      b.push_back(config_.task.affinity[row][column]);
    }
    const double rho = spearman(a, b);
    per_task[config_.models[column].name] = std::isfinite(rho) ? json(rho) : json();
    if (std::isfinite(rho)) {
      sum += rho;
      ++counted;
    }
    table.add_row({config_.models[column].name, fmt::format("{}", rho)});
  }
  run_.write_text(run_.settings().out / "spearman.csv", table.csv());
  result["spearman"] = per_task;
  result["spearman_mean"] = counted > 0 ? json(sum / static_cast<double>(counted)) : json();
  return result;
}

json GifRun::ownership() {
  const TaskConfig& task = config_.task;
  const std::size_t victim = config_.index_of(task.victim, "task.victim");
  const FieldDistances found = distances_of_all(victim);
  const std::vector<double> mean = values_of(found.mean);
  const auto pick = [&](const std::vector<double>& d, const std::vector<std::string>& names) {
    std::vector<double> chosen;
    for (const std::size_t m : indices(names)) chosen.push_back(d[m]);
    return chosen;
  };
  const std::vector<double> far = pick(mean, task.independents);
  const double threshold = distance_threshold(far, task.false_positive_rate);
  if (std::isnan(threshold))
    run_.progress().warn(
        fmt::format("{} independent models are too few for verdicts at a false-positive rate of {}",
                    far.size(), task.false_positive_rate));

  json result = {{"victim", task.victim},
                 {"zero_norms", found.zero_norms},
                 {"threshold", std::isnan(threshold) ? json() : json(threshold)},
                 {"false_positive_rate", task.false_positive_rate}};
  Table table({"group", "models", "AUC", "low", "high", "p", "AUC same architecture",
               "AUC gradient x input", "AUC victim's mistakes", "AUC output cosine"});
  json groups = json::array();
  const auto baseline = [&](const std::vector<std::string>& names, const char* key) -> json {
    std::vector<double> near, others;
    for (const auto& [list, into] : {std::pair{&names, &near}, {&task.independents, &others}})
      for (const std::size_t m : indices(*list)) {
        const json cheap = cheap_distances(victim, m);
        if (!cheap.contains(key)) return nullptr;
        into->push_back(cheap[key].get<double>());
      }
    return auc(near, others);
  };
  for (const ModelGroup& group : task.groups) {
    const std::vector<double> near = pick(mean, group.models);
    json entry = auc_json(near, far);
    entry["name"] = group.name;
    // Pairs of one architecture alone: architecture by itself moves fields apart.
    double wins = 0, pairs = 0;
    for (const std::size_t m : indices(group.models))
      for (const std::size_t i : indices(task.independents))
        if (models_[m].architecture == models_[i].architecture) {
          wins += auc({mean[m]}, {mean[i]});
          pairs += 1;
        }
    entry["auc_same_architecture"] = pairs > 0 ? json(wins / pairs) : json();
    entry["pairs_same_architecture"] = pairs;
    entry["auc_gradient_input"] = baseline(group.models, "gradient_input");
    entry["auc_victim_mistakes"] = baseline(group.models, "victim_mistakes");
    entry["auc_output_cosine"] = baseline(group.models, "output_cosine");
    entry["models"] = json::array();
    for (const std::size_t m : indices(group.models))
      entry["models"].push_back(
          {{"name", config_.models[m].name},
           {"distance", mean[m]},
           {"derived", std::isnan(threshold) ? json() : json(mean[m] < threshold)}});
    const auto cell = [&](const char* key) {
      return entry[key].is_null() ? std::string("-") : number(entry[key].get<double>());
    };
    table.add_row({group.name, std::to_string(near.size()), cell("auc"), cell("auc_low"),
                   cell("auc_high"), cell("p_value"), cell("auc_same_architecture"),
                   cell("auc_gradient_input"), cell("auc_victim_mistakes"),
                   cell("auc_output_cosine")});
    groups.push_back(std::move(entry));
  }
  result["independents"] = far;

  // The curve: the selection's first samples, or random subsets.
  const std::int64_t samples = inputs_.inputs.size(0);
  std::vector<std::int64_t> counts = task.counts;
  if (counts.empty())
    for (std::int64_t c = 8; c < samples; c *= 2) counts.push_back(c);
  std::erase_if(counts, [&](std::int64_t c) { return c > samples; });
  if (counts.empty() || counts.back() != samples) counts.push_back(samples);
  std::map<std::string, LineSeries> series;
  Table curve({"group", "samples", "auc", "low", "high"});
  for (const std::int64_t count : counts) {
    const std::int64_t draws = selection_ || count == samples ? 1 : task.draws;
    std::map<std::string, std::vector<double>> drawn;
    Rng rng(run_.settings().seed, {kBootstrapStream, static_cast<std::uint64_t>(count)});
    for (std::int64_t draw = 0; draw < draws; ++draw) {
      std::vector<std::int64_t> order(samples);
      std::iota(order.begin(), order.end(), 0);
      if (draws > 1) order = random_permutation(samples, rng);
      order.resize(count);
      const at::Tensor part = found.per_sample.index_select(1, at::tensor(order, at::kLong));
      const std::vector<double> d = values_of(mean_distance(part, config_.distance));
      for (const ModelGroup& group : task.groups)
        drawn[group.name].push_back(auc(pick(d, group.models), pick(d, task.independents)));
    }
    for (auto& [name, values] : drawn) {
      std::sort(values.begin(), values.end());
      const auto quantile = [&](double share) {
        return values[static_cast<std::size_t>(share * static_cast<double>(values.size() - 1) +
                                               0.5)];
      };
      LineSeries& line = series[name];
      line.name = name;
      line.x.push_back(static_cast<double>(count));
      line.y.push_back(std::accumulate(values.begin(), values.end(), 0.0) /
                       static_cast<double>(values.size()));
      line.low.push_back(quantile(0.025));
      line.high.push_back(quantile(0.975));
      curve.add_row({name, std::to_string(count), fmt::format("{}", line.y.back()),
                     fmt::format("{}", line.low.back()), fmt::format("{}", line.high.back())});
    }
  }
  LinePlot plot{
      "AUC of derived against independent models", "reference samples", "AUC", {}, {}, ""};
  for (auto& [name, line] : series) {
    for (json& entry : groups)
      if (entry["name"] == name) entry["curve"] = {{"samples", line.x}, {"auc", line.y}};
    plot.series.push_back(line);
  }
  const auto& out = run_.settings().out;
  run_.write_text(out / "curve.csv", curve.csv());
  run_.write_text(out / "curve.svg", line_plot_svg({plot}));
  run_.write_text(out / "ownership.csv", table.csv());
  run_.show(table.markdown());
  Table distance_table({"model", "distance", "derived"});
  for (std::size_t m = 0; m < mean.size(); ++m)
    distance_table.add_row({config_.models[m].name, fmt::format("{}", mean[m]),
                            std::isnan(threshold) ? ""
                            : mean[m] < threshold ? "1"
                                                  : "0"});
  run_.write_text(out / "distances.csv", distance_table.csv());
  run_.write_text(out / "distances.npy", npy(found.mean));
  result["groups"] = std::move(groups);
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
  return {{"rule", enum_name(task.rule)}, {"order", order}, {"zero_norms", found.zero_norms}};
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
