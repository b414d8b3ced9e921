#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <utility>
#include <vector>

namespace weightsmith {

class Objective;
class Progress;
class ScriptModel;
struct Dataset;

/// How well scores fit labels.
struct Evaluation {
  std::int64_t samples = 0;
  std::int64_t correct = 0;  ///< samples whose highest score is their label's (ties: lowest class)
  double accuracy = 0;       ///< correct / samples
  double accuracy_low = 0;   ///< 95 % confidence interval (wilson_interval)
  double accuracy_high = 0;
  double loss = 0;  ///< mean cross-entropy of the scores' softmax, without label smoothing
};

/// {"accuracy", "accuracy_low", "accuracy_high", "loss", "samples"}.
nlohmann::json evaluation_json(const Evaluation& evaluation);

struct EvaluationOptions {
  std::int64_t batch_size = 256;
  at::Device device = at::kCPU;  ///< where the models are
  /// Classes that compete for the highest score; empty: all. With the classes of one task this is
  /// per-task accuracy. Every label must be among them.
  std::vector<std::int64_t> candidates;
};

/// Scores a network on a whole data set. The network is put into eval mode and stays there.
/// Gradients are off. Throws Error{kNumeric} naming the model and the samples when an output is not
/// finite, Error{kInput} when outputs do not fit the objective, Interrupted when asked to stop.
Evaluation evaluate(ScriptModel& model, const Dataset& dataset, const Objective& objective,
                    const EvaluationOptions& options, Progress& progress);

/// The same for the mean of the models' class probabilities, p = (1/M) Σ softmax(scores_m): the
/// reference that a merged network is measured against.
Evaluation evaluate_ensemble(const std::vector<ScriptModel*>& models, const Dataset& dataset,
                             const Objective& objective, const EvaluationOptions& options,
                             Progress& progress);

/// The 95 % score interval of a proportion (Wilson, "Probable inference, the law of succession, and
/// statistical inference", JASA 1927): good for small samples and near 0 and 1.
std::pair<double, double> wilson_interval(std::int64_t successes, std::int64_t trials);

}  // namespace weightsmith
