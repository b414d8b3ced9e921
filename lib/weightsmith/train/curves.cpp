#include "weightsmith/train/curves.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>

#include "weightsmith/core/error.h"
#include "weightsmith/report/line_plot.h"

namespace weightsmith {
namespace {

using Row = nlohmann::json;

/// A number that is not finite stands as null in a checkpoint.
double number_or_nan(const nlohmann::json& value) {
  return value.is_number() ? value.get<double>() : NAN;
}

/// NaN where a row lacks it.
double score_of(const Row& row, const std::string& set, const char* score) {
  if (!row.contains(set) || !row.at(set).contains(score)) return NAN;
  return number_or_nan(row.at(set).at(score));
}

using Figure = std::function<double(const Row&)>;

LineSeries series_of(const std::string& name, const std::vector<Row>& rows, const Figure& figure) {
  LineSeries series{name, {}, {}, {}, {}};
  for (const Row& row : rows) {
    series.x.push_back(row.at("epoch").get<double>());
    series.y.push_back(figure(row));
  }
  return series;
}

/// The mean over runs of one length, between the lowest and the highest of them.
LineSeries mean_series(const MethodCurves& method, const Figure& figure) {
  LineSeries mean{method.name, {}, {}, {}, {}};
  for (const auto& rows : method.runs) {
    const LineSeries run = series_of(method.name, rows, figure);
    if (mean.x.empty()) {
      mean = run;
      mean.low = mean.high = run.y;
      continue;
    }
    WS_CHECK(run.x == mean.x, "runs of unequal length");
    for (std::size_t i = 0; i < run.y.size(); ++i) {
      mean.y[i] += run.y[i];
      mean.low[i] = std::min(mean.low[i], run.y[i]);
      mean.high[i] = std::max(mean.high[i], run.y[i]);
    }
  }
  for (double& y : mean.y) y /= static_cast<double>(method.runs.size());
  if (method.runs.size() == 1) mean.low = mean.high = {};
  return mean;
}

bool has_points(const LineSeries& series) {
  return std::any_of(series.y.begin(), series.y.end(), [](double y) { return std::isfinite(y); });
}

LinePlot panel(const std::string& title, const std::string& y_label) {
  return {title, "epoch", y_label, {}, std::nullopt, ""};
}

}  // namespace

std::string training_curves_svg(const std::vector<Row>& rows) {
  LinePlot loss = panel("Loss", "loss");
  LinePlot accuracy = panel("Accuracy", "accuracy, %");
  loss.series.push_back(
      series_of("training", rows, [](const Row& r) { return number_or_nan(r.at("train_loss")); }));
  for (const char* set : {"validation", "test"}) {
    const auto add = [&](LinePlot& plot, const char* score, double unit) {
      LineSeries scored =
          series_of(set, rows, [&](const Row& r) { return unit * score_of(r, set, score); });
      if (has_points(scored)) plot.series.push_back(std::move(scored));
    };
    add(loss, "loss", 1);
    add(accuracy, "accuracy", 100);
  }
  LinePlot rate = panel("Learning rate", "learning rate");
  rate.series.push_back(series_of("at the epoch's end", rows,
                                  [](const Row& r) { return number_or_nan(r.at("lr")); }));
  std::vector<LinePlot> panels{std::move(loss)};
  if (!accuracy.series.empty()) panels.push_back(std::move(accuracy));
  panels.push_back(std::move(rate));
  return line_plot_svg(panels);
}

std::string comparison_curves_svg(const std::vector<MethodCurves>& methods,
                                  const std::string& scored_on) {
  LinePlot accuracy = panel("Accuracy on the " + scored_on + " data", "accuracy, %");
  LinePlot loss = panel("Training loss", "loss");
  for (const MethodCurves& method : methods) {
    accuracy.series.push_back(mean_series(
        method, [&](const Row& r) { return 100 * score_of(r, scored_on, "accuracy"); }));
    loss.series.push_back(
        mean_series(method, [](const Row& r) { return number_or_nan(r.at("train_loss")); }));
  }
  return line_plot_svg({accuracy, loss});
}

}  // namespace weightsmith
