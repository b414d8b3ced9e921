#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>

#include "weightsmith/data/loader.h"
#include "weightsmith/eval/objective.h"
#include "weightsmith/model/precision.h"
#include "weightsmith/model/script_model.h"
#include "weightsmith/train/checkpoint.h"
#include "weightsmith/train/distillation.h"
#include "weightsmith/train/loss_scale.h"
#include "weightsmith/train/norm_statistics.h"
#include "weightsmith/train/parameter_arena.h"
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
};

/// The steps of a training: forward, loss, backward, and what the method makes of the gradients.
class TrainingStep {
 public:
  /// `config`: optimizer and seed are read.
  TrainingStep(const TrainConfig& config, const TrainingParts& parts);

  /// One step of the method on view `view` of a batch; returns the mean loss. A batch is taken in
  /// `optimizer.accumulate` parts, fewer where one would hold a single sample. Seeds LibTorch's
  /// global generator by seed and number of the step. Where the loss scale finds gradients that are
  /// not finite, the method skips the step. Throws Error{kNumeric} at `here()` when the
  /// loss is not finite or memory runs out, Error{kInput} when the network refuses the batch.
  double run(const Batch& batch, std::size_t view, double lr,
             const std::function<std::string()>& here);

  /// The differentiable loss of some samples, by the labels and `mixing`, and by the teacher.
  at::Tensor loss(const at::Tensor& inputs, const at::Tensor& labels, const Mixing& mixing);

  /// Writes down what later steps depend on: `steps`, `optimizer`, `buffers` and `loss_scale`.
  void save_state(Checkpoint& checkpoint) const;
  /// Goes on from there. Throws Error{kInput} naming `where`, the file, when something does not fit
  /// or is missing.
  void load_state(const Checkpoint& checkpoint, const std::string& where);

 private:
  double backward(const Batch& batch, std::size_t view, const std::function<std::string()>& here);

  const TrainConfig& config_;
  TrainingParts parts_;
};

}  // namespace weightsmith
