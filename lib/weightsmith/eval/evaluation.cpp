#include "weightsmith/eval/evaluation.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>
#include <limits>
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

/// 0 for the classes that compete, -infinity for the others: (classes) float32.
at::Tensor barred_classes(const std::vector<std::int64_t>& candidates, std::int64_t classes) {
  if (candidates.empty()) return at::zeros({classes});
  at::Tensor barred = at::full({classes}, -std::numeric_limits<float>::infinity());
  for (const std::int64_t c : candidates) {
    WS_CHECK(c >= 0 && c < classes);
    barred[c] = 0;
  }
  return barred;
}

}  // namespace

nlohmann::json evaluation_json(const Evaluation& e) {
  return {{"accuracy", e.accuracy},
          {"accuracy_low", e.accuracy_low},
          {"accuracy_high", e.accuracy_high},
          {"loss", e.loss},
          {"samples", e.samples}};
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
  const at::Tensor barred = barred_classes(options.candidates, objective.classes());
  Evaluation result;
  double loss = 0;
  Phase phase(progress, "evaluate", dataset.size(), "images");
  for (std::int64_t begin = 0; begin < dataset.size(); begin += options.batch_size) {
    stop_here_if_requested();
    const std::int64_t count = std::min(options.batch_size, dataset.size() - begin);
    const at::Tensor inputs = normalised_batch(dataset, begin, count).to(options.device);
    std::vector<at::Tensor> log_probabilities;  // (B, classes) each
    for (ScriptModel* model : models) {
      const at::Tensor scores = objective.scores(finite_outputs(*model, inputs, dataset, begin));
      log_probabilities.push_back((scores + barred.to(scores.device())).log_softmax(1));
    }
    // Means of probabilities are taken as logarithms, so that the loss of a sure mistake stays
    // finite.
    const at::Tensor combined = models.size() == 1
                                    ? log_probabilities.front()
                                    : at::stack(log_probabilities).logsumexp({0}) -
                                          std::log(static_cast<double>(models.size()));
    const at::Tensor labels = dataset.labels.narrow(0, begin, count).to(combined.device());
    result.correct += combined.argmax(1).eq(labels).sum().item<std::int64_t>();
    loss -= combined.gather(1, labels.unsqueeze(1)).sum(at::kDouble).item<double>();
    result.samples += count;
    phase.update(result.samples);
  }
  const auto n = static_cast<double>(std::max<std::int64_t>(result.samples, 1));
  result.accuracy = static_cast<double>(result.correct) / n;
  result.loss = loss / n;
  std::tie(result.accuracy_low, result.accuracy_high) =
      wilson_interval(result.correct, result.samples);
  return result;
}

}  // namespace weightsmith
