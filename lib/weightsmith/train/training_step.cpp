#include "weightsmith/train/training_step.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "weightsmith/core/error.h"
#include "weightsmith/core/rng.h"
#include "weightsmith/data/random_stream.h"
#include "weightsmith/model/jit_runtime.h"
#include "weightsmith/train/gradient_clipping.h"

namespace weightsmith {
namespace {

/// A GPU fetches from memory that stays in its place while the host goes on.
at::Tensor sent(const at::Tensor& values, at::Device device) {
  if (!device.is_cuda() || values.is_cuda()) return values.to(device);
  return values.pin_memory().to(device, /*non_blocking=*/true);
}

}  // namespace

TrainingStep::TrainingStep(const TrainConfig& config, const TrainingParts& parts)
    : config_(config), parts_(parts), losses_(parts.losses_together, parts.model.where()) {}

std::vector<double> TrainingStep::run(const Batch& batch, std::size_t view, double lr,
                                      const std::string& here) {
  const at::AutoGradMode with_grad(true);
  at::manual_seed(Rng(static_cast<std::uint64_t>(config_.seed),
                      {kForwardStream, static_cast<std::uint64_t>(parts_.method.steps())})
                      .next());
  parts_.norms.show(parts_.method.head());
  losses_.begin(here);
  try {
    backward(batch, view);
    make_step(lr);
  } catch (...) {
    losses_.take(/*all=*/true);  // one that was lost before says more
    throw_jit_error(ErrorKind::kInput, parts_.model.where(), "the training step failed at " + here,
                    "lower batch_size where memory ran out");
  }
  return losses_.take(/*all=*/false);
}

void TrainingStep::make_step(double lr) {
  const std::vector<at::Tensor>& parameters = parts_.arena.parameters();
  if (parts_.loss_scale != nullptr && !parts_.loss_scale->unscale(parameters)) {
    parts_.method.skip_step();
    return;
  }
  clip_gradients(parameters, config_.optimizer.clip_norm, config_.optimizer.clip_value);
  parts_.method.step(lr);
}

/// Adds the gradients of the batch's mean loss, part by part, to the parameters'.
void TrainingStep::backward(const Batch& batch, std::size_t view) {
  at::Tensor inputs = sent(batch.views[view], parts_.device);
  if (parts_.channels_last) inputs = inputs.contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor labels = sent(batch.labels[view], parts_.device);
  Mixing mixing = batch.mixing[view];
  if (mixing.labels.defined()) mixing.labels = sent(mixing.labels, parts_.device);
  const std::int64_t samples = labels.size(0);
  const std::int64_t parts = std::clamp<std::int64_t>(samples / 2, 1, config_.optimizer.accumulate);
  for (std::int64_t p = 0; p < parts; ++p) {
    const std::int64_t begin = p * samples / parts;
    const std::int64_t count = (p + 1) * samples / parts - begin;
    const double share = static_cast<double>(count) / static_cast<double>(samples);
    Mixing part = mixing;
    if (part.labels.defined()) part.labels = part.labels.narrow(0, begin, count);
    parts_.norms.begin_pass();
    const at::Tensor mean =
        loss(inputs.narrow(0, begin, count), labels.narrow(0, begin, count), part);
    parts_.norms.end_pass();
    losses_.add(mean, share);
    const double factor = share * (parts_.loss_scale != nullptr ? parts_.loss_scale->value() : 1.0);
    (factor == 1 ? mean : mean * factor).backward();
  }
}

at::Tensor TrainingStep::loss(const at::Tensor& inputs, const at::Tensor& labels,
                              const Mixing& mixing) {
  const Objective& objective = parts_.objective;
  at::Tensor outputs;
  {
    const AutocastScope autocast(parts_.precision, parts_.device);
    outputs = parts_.model.forward(inputs);
  }
  at::Tensor loss = objective.loss(outputs, labels, inputs);
  // A regression's target is made of the mixed image itself.
  if (mixing.labels.defined() && !objective.is_regression())
    loss =
        loss * mixing.share + objective.loss(outputs, mixing.labels, inputs) * (1 - mixing.share);
  return parts_.distillation != nullptr
             ? parts_.distillation->loss(objective, outputs, inputs, loss)
             : loss;
}

void TrainingStep::save_state(Checkpoint& checkpoint) const {
  checkpoint.steps = parts_.method.steps();
  checkpoint.optimizer = parts_.method.state();
  checkpoint.buffers = parts_.norms.state();
  if (parts_.loss_scale != nullptr) checkpoint.loss_scale = parts_.loss_scale->state();
}

void TrainingStep::load_state(const Checkpoint& checkpoint, const std::string& where) {
  parts_.method.load_state(checkpoint.optimizer, checkpoint.steps, where);
  parts_.norms.load_state(checkpoint.buffers, where);
  parts_.norms.show(parts_.method.head());
  if (parts_.loss_scale == nullptr) return;
  try {
    parts_.loss_scale->load_state(checkpoint.loss_scale);
  } catch (const nlohmann::json::exception& e) {
    throw Error(ErrorKind::kInput, where, fmt::format("no loss scale to go on with: {}", e.what()),
                "remove it to resume from the one before");
  }
}

}  // namespace weightsmith
