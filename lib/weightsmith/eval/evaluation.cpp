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
#include "weightsmith/eval/channel_moments.h"
#include "weightsmith/eval/objective.h"
#include "weightsmith/model/script_model.h"

namespace weightsmith {
namespace {

void check_finite(const at::Tensor& outputs, const ScriptModel& model, const Dataset& dataset,
                  std::int64_t begin) {
  if (!at::isfinite(outputs).all().item<bool>())
    throw Error(ErrorKind::kNumeric, model.where(),
                fmt::format("outputs that are not finite for samples {} to {} of {}", begin,
                            begin + outputs.size(0) - 1, dataset.where),
                "check the weights and the data's normalisation");
}

/// One a head.
std::vector<at::Tensor> head_outputs(ScriptModel& network, const at::Tensor& inputs) {
  const c10::IValue result = network.module().forward({network.preprocessed(inputs)});
  std::vector<at::Tensor> outputs;
  if (result.isTuple())
    for (const c10::IValue& output : result.toTuple()->elements())
      if (output.isTensor()) outputs.push_back(output.toTensor());
  if (outputs.empty() || outputs.size() != result.toTupleRef().elements().size())
    throw Error(ErrorKind::kInput, network.where(), "does not return a tuple of tensors",
                "give a network of several heads");
  return outputs;
}

constexpr double kZ = 1.959963984540054;  // 97.5 % quantile of the normal distribution

/// Sums over samples, each of which has one value.
class SampleSums {
 public:
  void add(const at::Tensor& values) {  // (B)
    const at::Tensor own = values.to(at::kCPU, at::kDouble).contiguous();
    const auto* v = own.data_ptr<double>();
    // Welford's update: the variance does not cancel where the errors are nearly equal.
    for (std::int64_t i = 0; i < own.numel(); ++i) {
      ++count_;
      const double before = v[i] - mean_;
      mean_ += before / static_cast<double>(count_);
      squares_ += before * (v[i] - mean_);
    }
  }

  MeanError error() const {
    const auto n = static_cast<double>(count_);
    const double half = count_ > 1 ? kZ * std::sqrt(squares_ / (n - 1) / n) : 0.0;
    return {mean_, std::max(0.0, mean_ - half), mean_ + half};
  }
  double sum() const { return mean_ * static_cast<double>(count_); }

 private:
  std::int64_t count_ = 0;
  double mean_ = 0;
  double squares_ = 0;
};

/// What is added up over batches of a classification.
class ClassificationSums {
 public:
  /// `log_probabilities` (B, classes) on any device, `labels` (B) on the CPU.
  void add(const at::Tensor& log_probabilities, const at::Tensor& labels) {
    const at::Tensor here = log_probabilities.to(at::kCPU);  // once: each number waits for a GPU
    const at::Tensor right = here.argmax(1).eq(labels);
    samples_ += labels.size(0);
    correct_ += right.sum().item<std::int64_t>();
    loss_ -= here.gather(1, labels.unsqueeze(1)).sum(at::kDouble).item<double>();
    calibration_.add(here.amax({1}).exp(), right);
  }

  Evaluation result() const {
    const auto n = static_cast<double>(std::max<std::int64_t>(samples_, 1));
    return make_evaluation(samples_, correct_, loss_ / n, calibration_.error());
  }

 private:
  std::int64_t samples_ = 0;
  std::int64_t correct_ = 0;
  double loss_ = 0;
  CalibrationBins calibration_;
};

/// And of a regression.
class RegressionSums {
 public:
  /// Both (B, D).
  void add(const at::Tensor& residuals, const at::Tensor& targets) {
    samples_ += residuals.size(0);
    elements_ = residuals.size(1);
    squared_.add(residuals.to(at::kDouble).square().mean(1));
    absolute_.add(residuals.to(at::kDouble).abs().mean(1));
    targets_.add(ChannelMoments::of(targets, 1));
  }

  Evaluation result() const {
    Evaluation result;
    result.samples = samples_;
    RegressionErrors& errors = result.errors.emplace();
    errors.squared = squared_.error();
    errors.absolute = absolute_.error();
    result.loss = errors.squared.mean;
    const double scatter = targets_.variance().sum().item<double>() * static_cast<double>(samples_);
    const double squares = squared_.sum() * static_cast<double>(elements_);
    errors.explained =
        scatter > 0 ? 1 - squares / scatter : std::numeric_limits<double>::quiet_NaN();
    return result;
  }

 private:
  std::int64_t samples_ = 0;
  std::int64_t elements_ = 0;
  SampleSums squared_;
  SampleSums absolute_;
  ChannelMoments targets_;
};

double share_of(const EvaluationOptions& options, std::size_t model, std::size_t models) {
  WS_CHECK(options.shares.empty() || options.shares.size() == models);
  return options.shares.empty() ? 1.0 / static_cast<double>(models) : options.shares[model];
}

}  // namespace

nlohmann::json evaluation_json(const Evaluation& e) {
  if (e.errors)
    return {{"squared_error", e.errors->squared.mean},
            {"squared_error_low", e.errors->squared.low},
            {"squared_error_high", e.errors->squared.high},
            {"absolute_error", e.errors->absolute.mean},
            {"absolute_error_low", e.errors->absolute.low},
            {"absolute_error_high", e.errors->absolute.high},
            {"explained", e.errors->explained},
            {"loss", e.loss},
            {"samples", e.samples}};
  return {{"accuracy", e.accuracy},
          {"accuracy_low", e.accuracy_low},
          {"accuracy_high", e.accuracy_high},
          {"loss", e.loss},
          {"ece", e.ece},
          {"samples", e.samples}};
}

Evaluation evaluation_from_json(const nlohmann::json& json) {
  if (!json.contains("squared_error")) {
    const std::int64_t samples = json.at("samples");
    const double correct = json.at("accuracy").get<double>() * static_cast<double>(samples);
    return make_evaluation(samples, std::llround(correct), json.at("loss"), json.at("ece"));
  }
  Evaluation result;
  result.samples = json.at("samples");
  result.loss = json.at("loss");
  RegressionErrors& errors = result.errors.emplace();
  errors.squared = {json.at("squared_error"), json.at("squared_error_low"),
                    json.at("squared_error_high")};
  errors.absolute = {json.at("absolute_error"), json.at("absolute_error_low"),
                     json.at("absolute_error_high")};
  const nlohmann::json& explained = json.at("explained");
  errors.explained =
      explained.is_null() ? std::numeric_limits<double>::quiet_NaN() : explained.get<double>();
  return result;
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

namespace {

/// `outputs_of(inputs, begin)`: the outputs that are scored as one, one a network.
template <class OutputsOf>
Evaluation evaluate_outputs(const OutputsOf& outputs_of, const Dataset& dataset,
                            const Objective& objective, const EvaluationOptions& options,
                            Progress& progress) {
  WS_CHECK(options.batch_size > 0);
  // No InferenceMode: a network that keeps a tensor between calls could not be trained afterwards.
  const at::NoGradGuard no_grad;
  std::int64_t samples = 0;
  ClassificationSums classification;
  RegressionSums regression;
  Phase phase(progress, "evaluate", dataset.size(), "images");
  for (std::int64_t begin = 0; begin < dataset.size(); begin += options.batch_size) {
    stop_here_if_requested();
    const std::int64_t count = std::min(options.batch_size, dataset.size() - begin);
    const at::Tensor inputs = normalised_batch(dataset, begin, count).to(options.device);
    const std::vector<at::Tensor> outputs = outputs_of(inputs, begin);
    if (objective.is_regression()) {
      at::Tensor residuals;  // of the mean output
      for (std::size_t m = 0; m < outputs.size(); ++m) {
        const at::Tensor part =
            objective.residuals(outputs[m], inputs) * share_of(options, m, outputs.size());
        residuals = m == 0 ? part : residuals + part;
      }
      regression.add(residuals, objective.targets(inputs).flatten(1));
    } else {
      // Means of probabilities are taken as logarithms, so that the loss of a sure mistake stays
      // finite.
      std::vector<at::Tensor> log_probabilities;  // (B, classes) each
      for (std::size_t m = 0; m < outputs.size(); ++m)
        log_probabilities.push_back(objective.scores(outputs[m]).log_softmax(1) +
                                    std::log(share_of(options, m, outputs.size())));
      classification.add(outputs.size() == 1 ? log_probabilities.front()
                                             : at::stack(log_probabilities).logsumexp({0}),
                         dataset.labels.narrow(0, begin, count));
    }
    samples += count;
    phase.update(samples);
  }
  return objective.is_regression() ? regression.result() : classification.result();
}

}  // namespace

Evaluation evaluate_ensemble(const std::vector<ScriptModel*>& models, const Dataset& dataset,
                             const Objective& objective, const EvaluationOptions& options,
                             Progress& progress) {
  WS_CHECK(!models.empty());
  for (ScriptModel* model : models) model->train(false);
  const auto outputs_of = [&](const at::Tensor& inputs, std::int64_t begin) {
    std::vector<at::Tensor> outputs;
    for (ScriptModel* model : models) {
      outputs.push_back(model->forward(inputs));
      check_finite(outputs.back(), *model, dataset, begin);
    }
    return outputs;
  };
  return evaluate_outputs(outputs_of, dataset, objective, options, progress);
}

Evaluation evaluate_heads(ScriptModel& network, const Dataset& dataset, const Objective& objective,
                          const EvaluationOptions& options, Progress& progress) {
  network.train(false);
  const auto outputs_of = [&](const at::Tensor& inputs, std::int64_t begin) {
    std::vector<at::Tensor> outputs = head_outputs(network, inputs);
    for (const at::Tensor& output : outputs) check_finite(output, network, dataset, begin);
    return outputs;
  };
  return evaluate_outputs(outputs_of, dataset, objective, options, progress);
}

}  // namespace weightsmith
