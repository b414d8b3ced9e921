#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "weightsmith/data/loader.h"
#include "weightsmith/eval/objective.h"
#include "weightsmith/model/precision.h"
#include "weightsmith/model/script_model.h"
#include "weightsmith/train/checkpoint.h"
#include "weightsmith/train/distillation.h"
#include "weightsmith/train/loss_scale.h"
#include "weightsmith/train/norm_statistics.h"
#include "weightsmith/train/parameter_arena.h"
#include "weightsmith/train/step_losses.h"
#include "weightsmith/train/train_config.h"
#include "weightsmith/train/training_method.h"

namespace weightsmith {

/// What one step of a training works on; all of it outlives the steps.
struct TrainingParts {
  ScriptModel& model;
  const Objective& objective;
  Distillation* distillation;  ///< null: learns from the labels alone
  ParameterArena& arena;
  TrainingMethod& method;
  NormStatistics& norms;
  at::Device device;
  bool channels_last = false;  ///< show images with channels innermost (model/channels_last.h)
  Precision precision = Precision::kFloat32;  ///< of the network's passes; the loss is in float32
  LossScale* loss_scale = nullptr;            ///< null: none
  std::int64_t losses_together = 1;           ///< steps whose losses are read at once (StepLosses)
};

/// The steps of a training: forward, loss, backward, and what the method makes of the gradients.
/// One that threw is not to be gone on with.
class TrainingStep {
 public:
  /// `config`: optimizer and seed are read.
  TrainingStep(const TrainConfig& config, const TrainingParts& parts);

  /// One step of the method on view `view` of a batch; returns the mean losses that were read and
  /// not returned before, in the order of their steps: with `losses_together` 1 this step's. A
  /// batch is taken in `optimizer.accumulate` parts, fewer where one would hold a single sample.
  /// Seeds LibTorch's global generator by seed and number of the step. Where the loss scale finds
  /// gradients that are not finite, the method skips the step. `here` says in errors which step it
  /// is. Throws Error{kNumeric} when a loss that is read is not finite (with `losses_together` 1
  /// before its gradient is taken) or memory runs out, Error{kInput} when the network refuses the
  /// batch.
  std::vector<double> run(const Batch& batch, std::size_t view, double lr, const std::string& here);
  /// Reads the losses that are left and returns them. Throws as run() does.
  std::vector<double> remaining_losses() { return losses_.take(/*all=*/true); }

  /// The differentiable loss of some samples, by the labels and `mixing`, and by the teacher.
  at::Tensor loss(const at::Tensor& inputs, const at::Tensor& labels, const Mixing& mixing);

  /// Writes down what later steps depend on: `steps`, `optimizer`, `buffers` and `loss_scale`.
  void save_state(Checkpoint& checkpoint) const;
  /// Goes on from there. Throws Error{kInput} naming `where`, the file, when something does not fit
  /// or is missing.
  void load_state(const Checkpoint& checkpoint, const std::string& where);

 private:
  void backward(const Batch& batch, std::size_t view);
  void make_step(double lr);

  const TrainConfig& config_;
  TrainingParts parts_;
  StepLosses losses_;
};

}  // namespace weightsmith
