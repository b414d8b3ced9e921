#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <utility>
#include <vector>

namespace weightsmith {

class Objective;
class Progress;
class ScriptModel;
struct Dataset;

/// A mean over samples with its 95 % confidence interval, ± 1.96 standard errors (not below 0).
struct MeanError {
  double mean = 0;
  double low = 0;
  double high = 0;
};

/// How far the outputs of a regression are from their targets.
struct RegressionErrors {
  MeanError squared;   ///< mean over samples and elements of (output - target)²
  MeanError absolute;  ///< likewise of |output - target|
  /// 1 - Σ (output - target)² / Σ (target - the element's mean over the set)²: 1 is perfect, 0 what
  /// the mean target would score. NaN where targets do not vary.
  double explained = 0;
};

/// How well scores fit labels, or outputs their targets.
struct Evaluation {
  std::int64_t samples = 0;
  /// Of regressions. Then nothing was `correct`, accuracy and ece mean nothing, and `loss` is the
  /// mean squared error.
  std::optional<RegressionErrors> errors = {};
  std::int64_t correct = 0;  ///< samples whose highest score is their label's (ties: lowest class)
  double accuracy = 0;       ///< correct / samples
  double accuracy_low = 0;   ///< 95 % confidence interval (wilson_interval)
  double accuracy_high = 0;
  double loss = 0;  ///< mean cross-entropy of the scores' softmax, without label smoothing
  double ece = 0;   ///< expected calibration error (CalibrationBins)
};

/// An evaluation from what was counted; fills in accuracy and its interval.
Evaluation make_evaluation(std::int64_t samples, std::int64_t correct, double loss, double ece);

/// {"accuracy", "accuracy_low", "accuracy_high", "loss", "ece", "samples"}; of regressions
/// {"squared_error", "squared_error_low", "squared_error_high", likewise "absolute_error",
/// "explained" (null for NaN), "loss", "samples"}.
nlohmann::json evaluation_json(const Evaluation& evaluation);
/// The inverse. Throws nlohmann::json::exception for anything else.
Evaluation evaluation_from_json(const nlohmann::json& json);

/// Expected calibration error: samples are sorted by their confidence, the largest class
/// probability, into 15 bins ((k - 1) / 15, k / 15] of equal width, and the distances between a
/// bin's accuracy and its mean confidence are averaged, weighted by the samples in it (Guo, Pleiss,
/// Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, equation 3).
class CalibrationBins {
 public:
  static constexpr int kBins = 15;

  /// `confidence` (B) float and `correct` (B) bool, on one device.
  void add(const at::Tensor& confidence, const at::Tensor& correct);
  /// 0 without samples.
  double error() const;

 private:
  std::array<std::int64_t, kBins> samples_{};
  std::array<double, kBins> correct_{};
  std::array<double, kBins> confidence_{};
};

/// The mean of accuracies on several sets, each set with the same weight, and its 95 % interval:
/// distances of the sets' own limits added in squares (the method of variance estimates recovery:
/// Zou and Donner, "Construction of confidence limits about effect measures: a general approach",
/// Statistics in Medicine 27(10), 2008). The sets must share no samples. Only `accuracy`,
/// `accuracy_low` and `accuracy_high` mean something beside `samples`, `correct` and the means of
/// `loss` and `ece`.
Evaluation average_of(const std::vector<Evaluation>& evaluations);

struct EvaluationOptions {
  std::int64_t batch_size = 256;
  at::Device device = at::kCPU;     ///< where the models are
  std::vector<double> shares = {};  ///< of the models of an ensemble, of sum 1; empty: equal
};

/// Scores a network on a whole data set. The network is put into eval mode and stays there.
/// Gradients are off. Throws Error{kNumeric} naming the model and the samples when an output is not
/// finite, Error{kInput} when outputs do not fit the objective, Interrupted when asked to stop.
Evaluation evaluate(ScriptModel& model, const Dataset& dataset, const Objective& objective,
                    const EvaluationOptions& options, Progress& progress);

/// The same for the mean of the models' class probabilities, p = Σ share_m softmax(scores_m), or of
/// a regression's outputs: the reference that a merged network is measured against.
Evaluation evaluate_ensemble(const std::vector<ScriptModel*>& models, const Dataset& dataset,
                             const Objective& objective, const EvaluationOptions& options,
                             Progress& progress);

/// The same for one network whose forward returns a tuple of outputs (merge/partial.h): what the
/// networks of its heads would score together, while what they share is run once. Throws
/// Error{kInput} naming the network when it returns something else.
Evaluation evaluate_heads(ScriptModel& network, const Dataset& dataset, const Objective& objective,
                          const EvaluationOptions& options, Progress& progress);

/// The 95 % score interval of a proportion (Wilson, "Probable inference, the law of succession, and
/// statistical inference", JASA 1927): good for small samples and near 0 and 1.
std::pair<double, double> wilson_interval(std::int64_t successes, std::int64_t trials);

}  // namespace weightsmith
