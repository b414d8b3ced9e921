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
  field.in_batches(samples, [&](std::int64_t first_of_batch, std::int64_t count) {
    parts.push_back(features(inputs_.inputs.narrow(0, first_of_batch, count)));
  });
  entry.features = at::cat(parts);
}

CheapDistances GifRun::cheap_distances(std::size_t from, const std::vector<std::size_t>& models,
                                       const at::Tensor& gradient,
                                       const at::Tensor& samples) const {
  CheapDistances result;
  for (const std::string& name : cheap_names()) result[name].assign(models.size(), std::nan(""));
  result["gradient_input"] =
      values_of(mean_distance(gradient.index_select(1, samples), config_.distance));
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
  std::optional<std::size_t> place;  // of `from` among them
  for (std::size_t i = 0; i < models.size(); ++i) {
    const Model& model = models_[models[i]];
    if (model.features.defined()) {
      if (models[i] == from) place = features.size();
      features.push_back(model.features.index_select(0, samples));
      with_features.push_back(i);
    }
    if (!outputs.defined() || !model.outputs.defined() ||
        model.outputs.sizes() != to.outputs.sizes())
      continue;
    const at::Tensor other = model.outputs.index_select(0, samples);
    result["output_cosine"][i] = output_distances(outputs, other).mean().item<double>();
    if (count > 0)
      result["victim_mistakes"][i] =
          1 - answers.eq(other.argmax(1)).logical_and(mistakes).sum().item<double>() /
                  static_cast<double>(count);
  }
  if (to.features.defined()) {
    if (!place) {
      place = features.size();
      features.push_back(to.features.index_select(0, samples));
    }
    const std::vector<double> cka = values_of(linear_cka(features, place));
    for (std::size_t i = 0; i < with_features.size(); ++i)
      result["cka"][with_features[i]] = 1 - cka[i];
  }
  return result;
}

std::map<std::string, at::Tensor> GifRun::cheap_matrices() const {
  std::map<std::string, at::Tensor> result;
  const std::vector<std::size_t> all = all_models();
  const auto models = static_cast<std::int64_t>(all.size());
  if (std::all_of(models_.begin(), models_.end(), [](const Model& m) { return m.has_gradient; }))
    result["gradient_input"] = stored_distances(all, std::nullopt, FieldKind::kGradient).mean;
  std::vector<at::Tensor> features, outputs;
  for (const Model& model : models_) {
    if (model.features.defined()) features.push_back(model.features);
    if (model.outputs.defined() && model.outputs.sizes() == models_.front().outputs.sizes())
      outputs.push_back(model.outputs);
  }
  if (features.size() == all.size()) result["cka"] = 1 - linear_cka(features);
  if (outputs.size() != all.size()) return result;
  at::Tensor cosine = at::zeros({models, models}, at::kDouble);
  for (std::int64_t a = 0; a < models; ++a)
    for (std::int64_t b = a; b < models; ++b) {
      cosine[a][b] = output_distances(outputs[a], outputs[b]).mean();
      cosine[b][a] = cosine[a][b];
    }
  result["output_cosine"] = cosine;
  if (outputs.front().dim() != 2) return result;
  // Row: the model whose mistakes they are; NaN where it makes none.
  std::vector<at::Tensor> answers;
  for (const at::Tensor& each : outputs) answers.push_back(each.argmax(1));
  const at::Tensor said = at::stack(answers);  // (models, S)
  const at::Tensor wrong = said.ne(data_->labels).to(at::kDouble);
  at::Tensor likewise = at::zeros({models, models}, at::kDouble);
  for (std::int64_t a = 0; a < models; ++a)
    likewise[a] = at::mv(said.eq(said[a]).to(at::kDouble), wrong[a]) / wrong[a].sum();
  result["victim_mistakes"] = 1 - likewise;
  return result;
}

}  // namespace weightsmith
