#include "weightsmith/eval/evaluation.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "weightsmith/core/error.h"
#include "weightsmith/core/progress.h"
#include "weightsmith/core/stop.h"
#include "weightsmith/data/dataset.h"
#include "weightsmith/eval/objective.h"
#include "weightsmith/model/script_model.h"

namespace weightsmith {
namespace {

at::Tensor finite_outputs(ScriptModel& model, const at::Tensor& inputs, const Dataset& dataset,
                          std::int64_t begin) {
  at::Tensor outputs = model.forward(inputs);
  if (!at::isfinite(outputs).all().item<bool>())
    throw Error(ErrorKind::kNumeric, model.where(),
                fmt::format("outputs that are not finite for samples {} to {} of {}", begin,
                            begin + inputs.size(0) - 1, dataset.where),
                "check the weights and the data's normalisation");
  return outputs;
}

}  // namespace

nlohmann::json evaluation_json(const Evaluation& e) {
  return {{"accuracy", e.accuracy},
          {"accuracy_low", e.accuracy_low},
          {"accuracy_high", e.accuracy_high},
          {"loss", e.loss},
          {"ece", e.ece},
          {"samples", e.samples}};
}

Evaluation make_evaluation(std::int64_t samples, std::int64_t correct, double loss, double ece) {
  Evaluation result;
  result.samples = samples;
  result.correct = correct;
  result.accuracy =
      static_cast<double>(correct) / static_cast<double>(std::max<std::int64_t>(samples, 1));
  std::tie(result.accuracy_low, result.accuracy_high) = wilson_interval(correct, samples);
  result.loss = loss;
  result.ece = ece;
  return result;
}

void CalibrationBins::add(const at::Tensor& confidence, const at::Tensor& correct) {
  const at::Tensor sure = confidence.to(at::kCPU, at::kDouble).contiguous();
  const at::Tensor right = correct.to(at::kCPU, at::kBool).contiguous();
  WS_CHECK(sure.numel() == right.numel());
  const auto* p = sure.data_ptr<double>();
  const auto* is_right = right.data_ptr<bool>();
  for (std::int64_t i = 0; i < sure.numel(); ++i) {
    const int bin = std::clamp(static_cast<int>(std::ceil(p[i] * kBins)) - 1, 0, kBins - 1);
    ++samples_[bin];
    confidence_[bin] += p[i];
    if (is_right[i]) correct_[bin] += 1;
  }
}

double CalibrationBins::error() const {
  std::int64_t samples = 0;
  double gap = 0;
  for (int b = 0; b < kBins; ++b) {
    samples += samples_[b];
    gap += std::abs(correct_[b] - confidence_[b]);
  }
  return samples > 0 ? gap / static_cast<double>(samples) : 0.0;
}

Evaluation average_of(const std::vector<Evaluation>& evaluations) {
  WS_CHECK(!evaluations.empty());
  Evaluation mean;
  double below = 0;
  double above = 0;
  const auto n = static_cast<double>(evaluations.size());
  for (const Evaluation& e : evaluations) {
    mean.samples += e.samples;
    mean.correct += e.correct;
    mean.accuracy += e.accuracy / n;
    mean.loss += e.loss / n;
    mean.ece += e.ece / n;
    below += (e.accuracy - e.accuracy_low) * (e.accuracy - e.accuracy_low);
    above += (e.accuracy_high - e.accuracy) * (e.accuracy_high - e.accuracy);
  }
  mean.accuracy_low = std::max(0.0, mean.accuracy - std::sqrt(below) / n);
  mean.accuracy_high = std::min(1.0, mean.accuracy + std::sqrt(above) / n);
  return mean;
}

std::pair<double, double> wilson_interval(std::int64_t successes, std::int64_t trials) {
  if (trials == 0) return {0.0, 1.0};
  constexpr double kZ = 1.959963984540054;  // 97.5 % quantile of the normal distribution
  const auto n = static_cast<double>(trials);
  const double p = static_cast<double>(successes) / n;
  const double centre = (p + kZ * kZ / (2 * n)) / (1 + kZ * kZ / n);
  const double half = kZ / (1 + kZ * kZ / n) * std::sqrt(p * (1 - p) / n + kZ * kZ / (4 * n * n));
  return {std::max(0.0, centre - half), std::min(1.0, centre + half)};
}

Evaluation evaluate(ScriptModel& model, const Dataset& dataset, const Objective& objective,
                    const EvaluationOptions& options, Progress& progress) {
  return evaluate_ensemble({&model}, dataset, objective, options, progress);
}

Evaluation evaluate_ensemble(const std::vector<ScriptModel*>& models, const Dataset& dataset,
                             const Objective& objective, const EvaluationOptions& options,
                             Progress& progress) {
  WS_CHECK(!models.empty() && options.batch_size > 0);
  // No InferenceMode: a network that keeps a tensor between calls could not be trained afterwards.
  const at::NoGradGuard no_grad;
  for (ScriptModel* model : models) model->train(false);
  std::int64_t samples = 0;
  std::int64_t correct = 0;
  double loss = 0;
  CalibrationBins calibration;
  Phase phase(progress, "evaluate", dataset.size(), "images");
  for (std::int64_t begin = 0; begin < dataset.size(); begin += options.batch_size) {
    stop_here_if_requested();
    const std::int64_t count = std::min(options.batch_size, dataset.size() - begin);
    const at::Tensor inputs = normalised_batch(dataset, begin, count).to(options.device);
    std::vector<at::Tensor> log_probabilities;  // (B, classes) each
    for (ScriptModel* model : models) {
      const at::Tensor outputs = finite_outputs(*model, inputs, dataset, begin);
      log_probabilities.push_back(objective.scores(outputs).log_softmax(1));
    }
    // Means of probabilities are taken as logarithms, so that the loss of a sure mistake stays
    // finite.
    const at::Tensor combined = models.size() == 1
                                    ? log_probabilities.front()
                                    : at::stack(log_probabilities).logsumexp({0}) -
                                          std::log(static_cast<double>(models.size()));
    const at::Tensor labels = dataset.labels.narrow(0, begin, count).to(combined.device());
    const at::Tensor right = combined.argmax(1).eq(labels);
    correct += right.sum().item<std::int64_t>();
    loss -= combined.gather(1, labels.unsqueeze(1)).sum(at::kDouble).item<double>();
    calibration.add(combined.amax({1}).exp(), right);
    samples += count;
    phase.update(samples);
  }
  const auto n = static_cast<double>(std::max<std::int64_t>(samples, 1));
  return make_evaluation(samples, correct, loss / n, calibration.error());
}

}  // namespace weightsmith
