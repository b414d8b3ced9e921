#include "weightsmith/distance/gradient_field.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <numeric>

#include "weightsmith/core/error.h"
#include "weightsmith/core/stop.h"
#include "weightsmith/model/jit_runtime.h"
#include "weightsmith/tensor/first_row.h"

namespace weightsmith {

EnumNames<FieldTarget> enum_names(FieldTarget) {
  return {{FieldTarget::kLabel, "label"},
          {FieldTarget::kPrediction, "prediction"},
          {FieldTarget::kVictimPrediction, "victim_prediction"},
          {FieldTarget::kAllClasses, "all_classes"},
          {FieldTarget::kFeatureMapMax, "featuremap_max"},
          {FieldTarget::kChannelMax, "channel_max"},
          {FieldTarget::kSum, "sum"},
          {FieldTarget::kSegmentation, "segmentation"}};
}

EnumNames<StepSubset> enum_names(StepSubset) {
  return {{StepSubset::kAll, "all"},
          {StepSubset::kLastHalf, "last_half"},
          {StepSubset::kFirstHalf, "first_half"},
          {StepSubset::kOdd, "odd"}};
}

std::vector<std::int64_t> kept_steps(StepSubset subset, std::int64_t steps) {
  std::vector<std::int64_t> kept;
  for (std::int64_t t = 0; t < steps; ++t)
    if (subset == StepSubset::kAll || (subset == StepSubset::kLastHalf && t >= steps / 2) ||
        (subset == StepSubset::kFirstHalf && t < steps / 2) ||
        (subset == StepSubset::kOdd && t % 2 == 1))
      kept.push_back(t);
  return kept;
}

namespace {

// On a CPU larger batches gain nothing.
constexpr std::int64_t kPointsAtFirst = 25;

bool needs_classes(FieldTarget target) {
  return target == FieldTarget::kLabel || target == FieldTarget::kVictimPrediction;
}

bool is_dense_target(FieldTarget target) {
  return target == FieldTarget::kFeatureMapMax || target == FieldTarget::kChannelMax ||
         target == FieldTarget::kSum || target == FieldTarget::kSegmentation;
}

/// (B, 1, ...) beside `points` (B, ...).
at::Tensor beside(const at::Tensor& values, const at::Tensor& points) {
  std::vector<std::int64_t> shape(points.dim(), 1);
  shape[0] = values.size(0);
  return values.view(shape);
}

bool says_out_of_memory(const std::exception& error) {
  return dynamic_cast<const std::bad_alloc*>(&error) != nullptr || is_out_of_memory(error.what());
}

}  // namespace

/// The outputs that make up F, chosen at x.
struct GradientField::Mask {
  /// (S, 1, ...) or (S, K, 1): indices to gather along `axis`; undefined: everything.
  at::Tensor index;
  std::int64_t axis = 1;
};

GradientField::GradientField(ScriptModel& model, const FieldOptions& options,
                             std::int64_t batch_points)
    : model_(model),
      options_(options),
      path_(path_points(options.rule, options.steps)),
      kept_(kept_steps(options.subset, options.steps)),
      batch_(batch_points > 0 ? batch_points : kPointsAtFirst),
      automatic_(batch_points <= 0) {
  WS_CHECK(!kept_.empty());
  model_.train(false);
  for (auto& [name, tensor] : model_.parameters()) tensor.set_requires_grad(false);
}

bool GradientField::fits(std::int64_t points, std::int64_t least,
                         const std::function<void()>& action) const {
  try {
    action();
    return true;
  } catch (const std::exception& error) {
    if (!says_out_of_memory(error)) throw;
    if (!automatic_ || points <= least)
      throw Error(ErrorKind::kNumeric, model_.where(),
                  fmt::format("out of memory for a batch of {} points", points),
                  automatic_ ? "use a machine or device with more" : "use a smaller batch_size");
    return false;
  }
}

void GradientField::in_batches(std::int64_t total,
                               const std::function<void(std::int64_t, std::int64_t)>& action) {
  for (std::int64_t first = 0; first < total;) {
    stop_here_if_requested();
    const std::int64_t count = std::min(batch_, total - first);
    if (fits(count, 1, [&] { action(first, count); }))
      first += count;
    else
      batch_ = count / 2;
  }
}

void GradientField::check_rows(const at::Tensor& output, std::int64_t samples) const {
  if (output.dim() == 0 || output.size(0) != samples)
    throw Error(ErrorKind::kInput, model_.where(),
                fmt::format("the output's shape [{}] has no row for each of {} samples",
                            fmt::join(output.sizes(), ", "), samples),
                "export a network whose output begins with the batch");
}

at::Tensor GradientField::outputs(const at::Tensor& inputs) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> parts;
  in_batches(inputs.size(0), [&](std::int64_t first, std::int64_t count) {
    parts.push_back(model_.forward(inputs.narrow(0, first, count).clone()));
    check_rows(parts.back(), count);
  });
  return at::cat(parts);
}

void GradientField::check_classes(const at::Tensor& classes, std::int64_t outputs,
                                  std::int64_t first) const {
  const auto* c = classes.data_ptr<std::int64_t>();
  for (std::int64_t s = 0; s < classes.size(0); ++s)
    if (c[s] < 0 || c[s] >= outputs)
      throw Error(ErrorKind::kInput, model_.where(),
                  fmt::format("sample {} has class {}, the network has {} outputs", first + s, c[s],
                              outputs),
                  "set field.target to prediction, or use data of the model's classes");
}

GradientField::Mask GradientField::mask_at(const at::Tensor& output, const at::Tensor& classes,
                                           std::int64_t first) const {
  const bool dense = is_dense_target(options_.target);
  if (output.dim() != 2 && !(dense && output.dim() == 4))
    throw Error(ErrorKind::kInput, model_.where(),
                fmt::format("outputs of shape [{}], the target {} needs {}",
                            fmt::join(output.sizes(), ", "), enum_name(options_.target),
                            dense ? "(B, K) or (B, K, H, W)" : "(B, K)"),
                dense ? "export a network with such an output"
                      : "set field.target to sum, featuremap_max or channel_max");
  if (!output.is_floating_point())
    throw Error(
        ErrorKind::kInput, model_.where(),
        fmt::format("outputs are {}, which has no gradient", c10::toString(output.scalar_type())),
        "export the network's logits");
  Mask mask;
  switch (options_.target) {
    case FieldTarget::kLabel:
    case FieldTarget::kVictimPrediction:
      WS_CHECK(classes.defined() && classes.size(0) == output.size(0));
      check_classes(classes, output.size(1), first);
      mask.index = classes.to(output.device()).unsqueeze(1);
      break;
    case FieldTarget::kPrediction:
    case FieldTarget::kChannelMax:
    case FieldTarget::kSegmentation:
      mask.index = output.argmax(1, /*keepdim=*/true);
      break;
    case FieldTarget::kFeatureMapMax:
      if (output.dim() == 4) {
        mask.index = output.flatten(2).argmax(2, /*keepdim=*/true);
        mask.axis = 2;
      }
      break;
    case FieldTarget::kAllClasses:
    case FieldTarget::kSum:
      break;
  }
  return mask;
}

at::Tensor GradientField::scalars(const at::Tensor& output, const Mask& mask,
                                  const at::Tensor& sample) const {
  if (!mask.index.defined()) return output.flatten(1).sum(1);
  const at::Tensor values = mask.axis == 2 ? output.flatten(2) : output;
  return values.gather(mask.axis, mask.index.index_select(0, sample)).flatten(1).sum(1);
}

at::Tensor GradientField::gradients(const at::Tensor& points, const Mask& mask,
                                    const at::Tensor& sample) {
  const auto fail = [&] {
    throw Error(ErrorKind::kInput, model_.where(),
                "the outputs have no gradient to the inputs: an operator in between cuts it",
                "export the network without detach, rounding or integer operators");
  };
  const at::Tensor leaf = points.detach().requires_grad_(true);
  // A network may change its input in place, which a leaf does not allow.
  const at::Tensor total = scalars(model_.forward(leaf.clone()), mask, sample).sum();
  if (!total.requires_grad()) fail();
  try {
    const auto found = torch::autograd::grad({total}, {leaf}, {}, /*retain_graph=*/false,
                                             /*create_graph=*/false, /*allow_unused=*/true);
    if (!found.front().defined()) fail();
    return found.front();
  } catch (...) {
    throw_jit_error(ErrorKind::kInput, model_.where(), "the gradient cannot be computed");
  }
}

void GradientField::refuse_outputs(std::int64_t sample) const {
  throw Error(ErrorKind::kNumeric, model_.where(),
              fmt::format("the outputs at sample {} or its baseline are not finite", sample),
              "check the weights and the data's normalisation");
}

FieldChunk GradientField::chunk(const FieldInputs& all, std::int64_t begin, std::int64_t count) {
  const at::Tensor x = all.inputs.narrow(0, begin, count);
  const at::Tensor base = all.baselines.narrow(0, begin, count);
  const at::Tensor delta = x - base;
  const std::int64_t n = options_.steps;
  const auto index_options = at::TensorOptions().dtype(at::kLong).device(x.device());
  const at::Tensor own = at::arange(count, index_options);
  const at::Tensor at_x = outputs(x);
  const Mask mask = mask_at(
      at_x, needs_classes(options_.target) ? all.classes.narrow(0, begin, count) : at::Tensor(),
      begin);

  FieldChunk result;
  result.begin = begin;
  result.difference =
      (scalars(at_x, mask, own).to(at::kDouble) - scalars(outputs(base), mask, own).to(at::kDouble))
          .cpu();
  if (const auto bad = first_row_where(at::isfinite(result.difference).logical_not()))
    refuse_outputs(begin + *bad);

  // Points of all samples, one after the other; a batch takes them wherever a sample ends.
  const at::Tensor alphas = at::tensor(path_.alphas, x.options());
  at::Tensor gradient = at::empty({count * n, x[0].numel()}, x.options());
  in_batches(count * n, [&](std::int64_t first, std::int64_t points) {
    const at::Tensor number = at::arange(first, first + points, index_options);
    const at::Tensor sample = at::floor_divide(number, n);
    const at::Tensor from = delta.index_select(0, sample);
    const at::Tensor place = alphas.index_select(0, number.remainder(n));
    const at::Tensor z = base.index_select(0, sample) + beside(place, from) * from;
    gradient.narrow(0, first, points).copy_(gradients(z, mask, sample).flatten(1));
  });

  if (const auto bad = first_row_where(at::isfinite(gradient.view({count, -1})).logical_not()))
    throw Error(ErrorKind::kNumeric, model_.where(),
                fmt::format("the gradients of sample {} are not finite", begin + *bad),
                "check the weights and the data's normalisation");

  // In double, as the authors' Gauss-Legendre fields are.
  const at::Tensor weights = at::tensor(path_.weights, x.options().dtype(at::kDouble));
  at::Tensor field = gradient.view({count, n, -1}).to(at::kDouble).mul_(weights.view({1, n, 1}));
  const at::Tensor flat = delta.flatten(1).to(at::kDouble).unsqueeze(1);
  result.integral = (field.sum(1, /*keepdim=*/true) * flat).sum({1, 2}).cpu();
  if (options_.cumulative) field = field.cumsum(1);
  if (options_.subset != StepSubset::kAll)
    field = field.index_select(1, at::tensor(kept_, index_options));
  if (options_.multiply_by_inputs) field.mul_(flat);
  if (options_.channel_mean) {
    if (x.dim() < 3)
      throw Error(ErrorKind::kConfig, "field.channel_mean",
                  fmt::format("inputs of {} dimensions have no channels", x.dim()), "leave it out");
    field = field.view({count, field.size(1), x.size(1), -1}).mean(2);
  }
  result.field = field.to(x.scalar_type()).cpu();
  return result;
}

void GradientField::compute(const FieldInputs& inputs, std::int64_t begin,
                            const std::function<void(FieldChunk)>& take) {
  const std::int64_t samples = inputs.inputs.size(0);
  WS_CHECK(inputs.inputs.sizes() == inputs.baselines.sizes());
  while (begin < samples) {
    // Enough samples for some batches, so that few of them are filled in part.
    constexpr std::int64_t kBatches = 4;
    const std::int64_t count = std::clamp((kBatches * batch_ + options_.steps - 1) / options_.steps,
                                          std::int64_t{1}, samples - begin);
    take(chunk(inputs, begin, count));
    begin += count;
  }
}

FieldChunk GradientField::compute(const FieldInputs& inputs) {
  std::vector<at::Tensor> fields, integrals, differences;
  compute(inputs, 0, [&](FieldChunk part) {
    fields.push_back(part.field);
    integrals.push_back(part.integral);
    differences.push_back(part.difference);
  });
  return {0, at::cat(fields), at::cat(integrals), at::cat(differences)};
}

void GradientField::check(const FieldInputs& inputs) {
  std::int64_t count =
      std::clamp<std::int64_t>(batch_ / 2, 1, std::min<std::int64_t>(inputs.inputs.size(0), 4));
  const auto first = [&](const at::Tensor& all) { return all.narrow(0, 0, count); };
  // Alone, and among baselines: both compositions must give the same.
  const at::NoGradGuard no_grad;
  at::Tensor together;
  while (!fits(2 * count, 2, [&] {
    together = model_.forward(at::cat({first(inputs.inputs), first(inputs.baselines)}));
  }))
    count /= 2;
  check_rows(together, 2 * count);
  if (const auto bad = first_row_where(at::isnan(together))) refuse_outputs(*bad % count);
  const at::Tensor x = first(inputs.inputs);
  // What rounding is measured by: an output near zero may be the difference of large ones.
  const double size = together.abs().max().item<double>();
  const auto forward_alone = [&](std::int64_t s) {
    try {
      return model_.forward(x.narrow(0, s, 1).clone());
    } catch (const Error& e) {
      if (e.kind() != ErrorKind::kInput) throw;
      throw Error(ErrorKind::kInput, model_.where(),
                  fmt::format("it takes samples together but not sample {} alone: {}", s, e.what()),
                  "export the network in eval mode: batch norms that train need several");
    }
  };
  for (std::int64_t s = 0; s < count; ++s) {
    const at::Tensor alone = forward_alone(s);
    const bool fitting = alone.dim() > 0 && together.dim() == alone.dim() && alone.size(0) == 1 &&
                         together.size(0) == 2 * count && together[0].sizes() == alone[0].sizes();
    if (!fitting || (together[s] - alone[0]).abs().max().item<double>() > 1e-4 * size)
      throw Error(ErrorKind::kInput, model_.where(),
                  fmt::format("its output for sample {} depends on the rest of the batch, or on "
                              "chance",
                              s),
                  "export the network in eval mode");
  }
  const at::AutoGradMode with_gradients(true);
  FieldInputs some = inputs;
  some.inputs = x.narrow(0, 0, 1);
  some.baselines = inputs.baselines.narrow(0, 0, 1);
  chunk(some, 0, 1);
  // Every class must exist before the work begins.
  if (needs_classes(options_.target)) check_classes(inputs.classes, together.size(1), 0);
}

}  // namespace weightsmith
