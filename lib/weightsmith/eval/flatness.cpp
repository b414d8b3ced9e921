#include "weightsmith/eval/flatness.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <spdlog/fmt/fmt.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "weightsmith/config/fields.h"
#include "weightsmith/core/error.h"
#include "weightsmith/core/progress.h"
#include "weightsmith/core/rng.h"
#include "weightsmith/core/stop.h"
#include "weightsmith/data/dataset.h"
#include "weightsmith/eval/objective.h"
#include "weightsmith/eval/paired_test.h"
#include "weightsmith/model/jit_runtime.h"
#include "weightsmith/model/script_model.h"

namespace weightsmith {
namespace {

/// A network's mean loss on a data set as a function of one flat vector, the offset from the
/// weights it came with.
class LossAround {
 public:
  LossAround(ScriptModel& model, const Dataset& dataset, const Objective& objective,
             const EvaluationOptions& options)
      : model_(model), dataset_(dataset), objective_(objective), options_(options) {
    std::set<const void*> seen;
    for (const auto& [name, tensor] : model.parameters())
      if (tensor.requires_grad() && seen.insert(tensor.unsafeGetTensorImpl()).second)
        parameters_.push_back(tensor);
    if (parameters_.empty())
      throw Error(ErrorKind::kInput, model.where(), "no parameter requires gradients",
                  "flatness is measured around trainable weights");
    for (const at::Tensor& p : parameters_)
      if (p.scalar_type() != at::kFloat)
        throw Error(ErrorKind::kInput, model.where(), "has trainable weights that are not float32",
                    "flatness is measured in float32");
    origin_ = flat(parameters_).detach().clone();
    model.train(false);
  }
  ~LossAround() { move_to(std::nullopt); }
  LossAround(const LossAround&) = delete;
  LossAround& operator=(const LossAround&) = delete;

  std::int64_t size() const { return origin_.numel(); }

  /// (size) float32: what a unit of each value is worth (PerturbationScale).
  at::Tensor units(PerturbationScale scale) const {
    if (scale == PerturbationScale::kAbsolute) return at::ones_like(origin_);
    std::vector<at::Tensor> norms;
    for (const at::Tensor& p : parameters_) norms.push_back(p.detach().norm().expand({p.numel()}));
    return at::cat(norms);
  }

  /// Infinity where the loss is not finite.
  double loss(const at::Tensor& offset) {
    move_to(offset);
    const at::NoGradGuard no_grad;
    double sum = 0;
    for_each_batch([&](const at::Tensor& share) { sum += share.item<double>(); });
    return std::isfinite(sum) ? sum : std::numeric_limits<double>::infinity();
  }

  /// The loss, and its gradient (size) float32.
  std::pair<double, at::Tensor> gradient(const at::Tensor& offset) {
    move_to(offset);
    const at::AutoGradMode with_grad(true);
    double sum = 0;
    at::Tensor total = at::zeros_like(origin_);
    for_each_batch([&](const at::Tensor& share) {
      sum += share.item<double>();
      total += derivative(share, /*create_graph=*/false);
    });
    return {std::isfinite(sum) ? sum : std::numeric_limits<double>::infinity(), total};
  }

  /// The Hessian at the original weights times `direction` (size).
  at::Tensor hessian_times(const at::Tensor& direction) {
    move_to(std::nullopt);
    const at::AutoGradMode with_grad(true);
    at::Tensor total = at::zeros_like(origin_);
    for_each_batch([&](const at::Tensor& share) {
      const at::Tensor along = derivative(share, /*create_graph=*/true).dot(direction);
      // A loss that is piecewise linear in the weights has no second derivative to follow.
      if (along.requires_grad()) total += derivative(along, /*create_graph=*/false);
    });
    return total;
  }

 private:
  static at::Tensor flat(const std::vector<at::Tensor>& tensors) {
    std::vector<at::Tensor> rows;
    for (const at::Tensor& tensor : tensors) rows.push_back(tensor.reshape({-1}));
    return at::cat(rows);
  }

  /// Without an offset back to the very bits.
  void move_to(const std::optional<at::Tensor>& offset) {
    const at::NoGradGuard no_grad;
    const at::Tensor target = offset ? origin_ + *offset : origin_;
    std::int64_t begin = 0;
    for (const at::Tensor& p : parameters_) {
      p.copy_(target.narrow(0, begin, p.numel()).view(p.sizes()));
      begin += p.numel();
    }
  }

  /// Calls `use` with each batch's part of the mean loss.
  template <class Use>
  void for_each_batch(const Use& use) {
    for (std::int64_t begin = 0; begin < dataset_.size(); begin += options_.batch_size) {
      stop_here_if_requested();
      const std::int64_t count = std::min(options_.batch_size, dataset_.size() - begin);
      try {
        const at::Tensor inputs = normalised_batch(dataset_, begin, count).to(options_.device);
        const at::Tensor labels = dataset_.labels.narrow(0, begin, count).to(options_.device);
        use(objective_.loss(model_.forward(inputs), labels) *
            (static_cast<double>(count) / static_cast<double>(dataset_.size())));
      } catch (...) {
        throw_jit_error(ErrorKind::kInput, model_.where(), "flatness could not be measured",
                        "leave out \"flatness\", or set flatness.power_iterations to 0 where only "
                        "second derivatives are missing");
      }
    }
  }

  at::Tensor derivative(const at::Tensor& scalar, bool create_graph) const {
    std::vector<at::Tensor> found = torch::autograd::grad({scalar}, parameters_, {}, create_graph,
                                                          create_graph, /*allow_unused=*/true);
    for (std::size_t i = 0; i < found.size(); ++i)
      if (!found[i].defined()) found[i] = at::zeros_like(parameters_[i]);
    return flat(found);
  }

  ScriptModel& model_;
  const Dataset& dataset_;
  const Objective& objective_;
  const EvaluationOptions& options_;
  std::vector<at::Tensor> parameters_;
  at::Tensor origin_;  // (size) float32
};

double inner_product(const at::Tensor& a, const at::Tensor& b) {
  return (a * b).sum(at::kDouble).item<double>();
}
double length_of(const at::Tensor& a) { return std::sqrt(inner_product(a, a)); }

/// Normal directions of length one.
class Directions {
 public:
  Directions(std::uint64_t seed, std::int64_t size, at::Device device)
      : generator_(at::detail::createCPUGenerator(seed)), size_(size), device_(device) {}
  at::Tensor next() {
    const at::Tensor normal = at::randn({size_}, generator_, at::kFloat);
    return (normal / length_of(normal)).to(device_);
  }

 private:
  at::Generator generator_;
  std::int64_t size_;
  at::Device device_;
};

/// The largest loss met on the sphere.
double worst_loss(LossAround& around, const at::Tensor& units, const FlatnessConfig& config,
                  Directions& directions, Phase& phase) {
  at::Tensor gradient = around.gradient(at::zeros_like(units)).second;
  double worst = -std::numeric_limits<double>::infinity();
  for (std::int64_t step = 0; step < config.ascent_steps; ++step) {
    at::Tensor upwards = units * gradient;
    double length = length_of(upwards);
    if (!(length > 0) || !std::isfinite(length)) {
      upwards = directions.next();
      length = 1;
    }
    double loss = 0;
    std::tie(loss, gradient) = around.gradient(units * upwards * (config.worst_radius / length));
    worst = std::max(worst, loss);
    phase.update(step + 1);
  }
  return worst;
}

/// What power iteration found.
struct Eigenvalue {
  double value = 0;
  std::int64_t iterations = 0;
  bool converged = false;
};

/// The eigenvalue of largest magnitude of the Hessian less `shift` times the identity.
Eigenvalue dominant_eigenvalue(LossAround& around, double shift, const FlatnessConfig& config,
                               at::Tensor direction, Phase& phase) {
  Eigenvalue found;
  while (found.iterations < config.power_iterations) {
    at::Tensor image = around.hessian_times(direction);
    if (shift != 0) image.sub_(direction, shift);
    ++found.iterations;
    phase.update(found.iterations);
    const double value = inner_product(direction, image);
    const double length = length_of(image);
    const double change = std::abs(value - found.value);
    found.value = value;
    if (!std::isfinite(length)) return found;
    // The value's error is of second order in the residual. Without it two eigenvalues of opposite
    // sign would look like one in between.
    const double residual = length_of(image - direction * value);
    if (length == 0 || (found.iterations > 1 && change <= config.tolerance * std::abs(value) &&
                        residual <= std::sqrt(config.tolerance) * std::abs(value))) {
      found.converged = true;
      return found;
    }
    direction = image / length;
  }
  return found;
}

Eigenvalue largest_eigenvalue(LossAround& around, const FlatnessConfig& config,
                              Directions& directions, Progress& progress) {
  const at::Tensor start = directions.next();
  Phase phase(progress, "power iteration", config.power_iterations, "products");
  Eigenvalue first = dominant_eigenvalue(around, 0, config, start, phase);
  if (first.value >= 0 || !first.converged) return first;
  Eigenvalue second = dominant_eigenvalue(around, first.value, config, start, phase);
  second.value += first.value;
  second.iterations += first.iterations;
  return second;
}

nlohmann::json finite_or_null(double value) {
  return std::isfinite(value) ? nlohmann::json(value) : nlohmann::json();
}

}  // namespace

EnumNames<PerturbationScale> enum_names(PerturbationScale) {
  return {{PerturbationScale::kRelative, "relative"}, {PerturbationScale::kAbsolute, "absolute"}};
}

template <class Fields>
void fields(Fields& f, FlatnessConfig& c) {
  f("random_radius", c.random_radius);
  f("worst_radius", c.worst_radius);
  f("scale", c.scale);
  f("directions", c.directions);
  f("ascent_steps", c.ascent_steps);
  f("power_iterations", c.power_iterations);
  f("tolerance", c.tolerance);
  f("samples", c.samples);
}

void from_config(const ConfigNode& node, FlatnessConfig& c) { read_fields(node, c); }
nlohmann::json to_config(const FlatnessConfig& c) { return write_fields(c); }

void FlatnessConfig::validate() const {
  const auto require = [](bool holds, const char* key, const char* what) {
    if (!holds) throw Error(ErrorKind::kConfig, key, what, "see --print-schema");
  };
  require(std::isfinite(random_radius) && random_radius > 0, "flatness.random_radius",
          "must be positive");
  require(std::isfinite(worst_radius) && worst_radius > 0, "flatness.worst_radius",
          "must be positive");
  require(directions >= 0, "flatness.directions", "must not be negative");
  require(ascent_steps >= 0, "flatness.ascent_steps", "must not be negative");
  require(power_iterations >= 0, "flatness.power_iterations", "must not be negative");
  require(tolerance > 0 && tolerance < 1, "flatness.tolerance", "must lie between 0 and 1");
  require(samples >= 1, "flatness.samples", "must be at least 1");
}

nlohmann::json flatness_json(const Flatness& f, const FlatnessConfig& config) {
  nlohmann::json json = {{"samples", f.samples}, {"loss", f.loss}};
  if (config.directions > 0) {
    json["random_loss"] = finite_or_null(f.random_loss);
    json["random_deviation"] = finite_or_null(f.random_deviation);
  }
  if (config.ascent_steps > 0) json["worst_loss"] = finite_or_null(f.worst_loss);
  if (config.power_iterations > 0) {
    json["top_eigenvalue"] = finite_or_null(f.top_eigenvalue);
    json["iterations"] = f.iterations;
    json["converged"] = f.converged;
  }
  return json;
}

Flatness measure_flatness(ScriptModel& model, const Dataset& dataset, const Objective& objective,
                          const FlatnessConfig& config, std::uint64_t seed,
                          const EvaluationOptions& options, Progress& progress) {
  WS_CHECK(options.batch_size > 0 && dataset.size() > 0);
  LossAround around(model, dataset, objective, options);
  const at::Tensor units = around.units(config.scale);
  Directions directions(Rng(seed).next(), around.size(), options.device);
  Flatness result;
  result.samples = dataset.size();
  result.loss = around.loss(at::zeros_like(units));
  if (!std::isfinite(result.loss))
    throw Error(ErrorKind::kNumeric, model.where(), "the loss is not finite on " + dataset.where,
                "check the weights and the data's normalisation");
  if (config.directions > 0) {
    Phase phase(progress, "random directions", config.directions, "directions");
    std::vector<double> losses;
    while (static_cast<std::int64_t>(losses.size()) < config.directions) {
      losses.push_back(around.loss(units * directions.next() * config.random_radius));
      phase.update(static_cast<std::int64_t>(losses.size()));
    }
    const SampleMoments moments = sample_moments(losses);
    result.random_loss = moments.mean;
    result.random_deviation = moments.deviation.value_or(0);
  }
  if (config.ascent_steps > 0) {
    Phase phase(progress, "worst direction", config.ascent_steps, "steps");
    result.worst_loss = worst_loss(around, units, config, directions, phase);
  }
  if (config.power_iterations > 0) {
    const Eigenvalue top = largest_eigenvalue(around, config, directions, progress);
    result.top_eigenvalue = top.value;
    result.iterations = top.iterations;
    result.converged = top.converged;
  }
  return result;
}

}  // namespace weightsmith
