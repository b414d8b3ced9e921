#pragma once

#include <ATen/core/Tensor.h>

#include <array>
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
  double ece = 0;   ///< expected calibration error (CalibrationBins)
};

/// An evaluation from what was counted; fills in accuracy and its interval.
Evaluation make_evaluation(std::int64_t samples, std::int64_t correct, double loss, double ece);

/// {"accuracy", "accuracy_low", "accuracy_high", "loss", "ece", "samples"}.
nlohmann::json evaluation_json(const Evaluation& evaluation);

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
  at::Device device = at::kCPU;  ///< where the models are
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
