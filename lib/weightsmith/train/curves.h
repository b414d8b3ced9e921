#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace weightsmith {

/// Panels by epoch, as an SVG document (report/line_plot.h): the losses of training and of what was
/// scored, its accuracy, and the learning rate. `rows`: the rows of metrics.jsonl; wall times are
/// not looked at, so that a run that was stopped and resumed has the picture of one that never was.
std::string training_curves_svg(const std::vector<nlohmann::json>& rows);

/// The runs of one method of a comparison: for each seed the rows of metrics.jsonl, as many of
/// each.
struct MethodCurves {
  std::string name;
  std::vector<std::vector<nlohmann::json>> runs;
};

/// Accuracy and training loss by epoch, a line a method: the mean over the seeds, in a band from
/// the lowest seed to the highest. `scored_on`: "test" or "validation".
std::string comparison_curves_svg(const std::vector<MethodCurves>& methods,
                                  const std::string& scored_on);

}  // namespace weightsmith
