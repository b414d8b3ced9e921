// Distances that cost less than fields, so that one sees whether the field earns its cost.
#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>

#include "gif/gif_run.h"
#include "weightsmith/distance/linear_cka.h"

namespace weightsmith {
namespace {

/// Values of one model's outputs or features, of all samples, that are kept in memory.
constexpr std::int64_t kMostValues = std::int64_t{1} << 25;

/// (S) 1 - cosine of the outputs.
at::Tensor output_distances(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.flatten(1).to(at::kDouble), y = b.flatten(1).to(at::kDouble);
  return 1 - (x * y).sum(1) / (x.norm(2, {1}) * y.norm(2, {1})).clamp_min(1e-8);
}

}  // namespace

const std::vector<std::string>& cheap_names() {
  static const std::vector<std::string> kNames = {"gradient_input", "victim_mistakes",
                                                  "output_cosine", "cka"};
  return kNames;
}

bool GifRun::needs_outputs() const {
  const TaskType type = config_.task.type;
  return type == TaskType::kMatrix || type == TaskType::kRelatedness ||
         type == TaskType::kOwnership;
}

void GifRun::keep_outputs(std::size_t index, ScriptModel& model, GradientField& field) {
  Model& entry = models_[index];
  const std::string& name = config_.models[index].name;
  const std::int64_t samples = inputs_.inputs.size(0);
  const auto too_many = [&](const at::Tensor& row, const char* what) {
    if (row[0].numel() * samples <= kMostValues) return false;
    run_.progress().warn(
        fmt::format("{}: {} {} a sample are too many to compare", name, row[0].numel(), what));
    return true;
  };
  const at::Tensor first = inputs_.inputs.narrow(0, 0, 1);
  if (!too_many(field.outputs(first), "outputs"))
    entry.outputs = field.outputs(inputs_.inputs).cpu();
  const PenultimateFeatures features(model, first, run_.settings().trust);
  if (!features.found()) {
    run_.progress().warn(name + ": no last layer with weights was found, so that it has no CKA");
    return;
  }
  if (too_many(features(first), "features")) return;
  std::vector<at::Tensor> parts;
  const std::int64_t batch = field.batch_points();
  for (std::int64_t begin = 0; begin < samples; begin += batch)
    parts.push_back(features(inputs_.inputs.narrow(0, begin, std::min(batch, samples - begin))));
  entry.features = at::cat(parts);
}

CheapDistances GifRun::cheap_distances(std::size_t from, const at::Tensor& samples) const {
  CheapDistances result;
  for (const std::string& name : cheap_names()) result[name].assign(models_.size(), std::nan(""));
  const Model& to = models_[from];
  const at::Tensor outputs =
      to.outputs.defined() ? to.outputs.index_select(0, samples) : at::Tensor();
  at::Tensor answers, mistakes;
  std::int64_t count = 0;  // of its mistakes
  if (outputs.defined() && outputs.dim() == 2) {
    answers = outputs.argmax(1);
    mistakes = answers.ne(data_->labels.index_select(0, samples));
    count = mistakes.sum().item<std::int64_t>();
  }
  std::vector<at::Tensor> features;
  std::vector<std::size_t> with_features;
  std::optional<std::size_t> place;
  for (std::size_t m = 0; m < models_.size(); ++m) {
    const Model& model = models_[m];
    if (model.gradient_distances.defined())
      result["gradient_input"][m] =
          mean_distance(model.gradient_distances.index_select(0, samples), config_.distance)
              .item<double>();
    if (model.features.defined()) {
      if (m == from) place = features.size();
      features.push_back(model.features.index_select(0, samples));
      with_features.push_back(m);
    }
    if (!outputs.defined() || !model.outputs.defined() ||
        model.outputs.sizes() != to.outputs.sizes())
      continue;
    const at::Tensor other = model.outputs.index_select(0, samples);
    result["output_cosine"][m] = output_distances(outputs, other).mean().item<double>();
    if (count > 0)
      result["victim_mistakes"][m] =
          1 - answers.eq(other.argmax(1)).logical_and(mistakes).sum().item<double>() /
                  static_cast<double>(count);
  }
  if (place) {
    const std::vector<double> cka = values_of(linear_cka(features, place));
    for (std::size_t i = 0; i < cka.size(); ++i) result["cka"][with_features[i]] = 1 - cka[i];
  }
  return result;
}

std::map<std::string, at::Tensor> GifRun::cheap_matrices() const {
  std::map<std::string, at::Tensor> result;
  const auto models = static_cast<std::int64_t>(models_.size());
  std::vector<at::Tensor> features, outputs;
  for (const Model& model : models_) {
    if (model.features.defined()) features.push_back(model.features);
    if (model.outputs.defined() && model.outputs.sizes() == models_.front().outputs.sizes())
      outputs.push_back(model.outputs);
  }
  if (static_cast<std::int64_t>(features.size()) == models)
    result["cka"] = 1 - linear_cka(features);
  if (static_cast<std::int64_t>(outputs.size()) == models) {
    at::Tensor matrix = at::zeros({models, models}, at::kDouble);
    for (std::int64_t a = 0; a < models; ++a)
      for (std::int64_t b = a; b < models; ++b) {
        matrix[a][b] = output_distances(outputs[a], outputs[b]).mean();
        matrix[b][a] = matrix[a][b];
      }
    result["output_cosine"] = matrix;
  }
  return result;
}

}  // namespace weightsmith
