#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>

#include "weightsmith/core/run_record.h"
#include "weightsmith/train/train_config.h"
#include "weightsmith/train/train_data.h"
#include "weightsmith/train/train_result.h"

namespace weightsmith {

class Progress;

struct TrainOptions {
  at::Device device = at::kCPU;
  bool resume = false;     ///< go on from the newest sound checkpoint in `out`, if there is any
  bool overwrite = false;  ///< else: begin anew although `out` holds checkpoints
  bool trust = false;      ///< load a script that inspection would refuse
  /// Steps whose losses are read from the device at once, which changes no result
  /// (train/step_losses.h); 0: 1 on the CPU, 16 on a GPU.
  std::int64_t losses_together = 0;
  /// Called with everything that was read, when nothing refuses the run any more and before
  /// anything is written.
  std::function<void(const RunInputs& inputs)> on_start = {};
};

/// What train() would do: loads network and data, checks that they fit (one sample through the
/// network and the loss), and counts; writes nothing. What train() would warn of stands under
/// `warnings`. Throws as train() does.
nlohmann::json training_plan(const TrainConfig& config, const TrainOptions& options);

/// Trains a network and writes to `config.out`:
/// - model.pt, model.safetensors: the method's result (TrainingMethod::show_result) after the last
///   epoch, whatever its score: nothing is selected on the test set;
/// - model-best.pt: with a validation share, the result after the epoch that scored best on it
///   (BestEpoch);
/// - metrics.jsonl: one object a finished epoch (`epoch`, `steps`, `lr`, `train_loss`, `seconds`,
///   and `validation` or `test` scored with the result so far);
/// - curves.svg: a picture of these rows, at the end (train/curves.h);
/// - events.out.tfevents.0.weightsmith: the same for TensorBoard (report/event_file.h), by `steps`;
/// - checkpoint-*.safetensors (train/checkpoint.h).
///
/// Every batch shows the same samples (with `data.draw` `independent`, as many) once through each
/// augmentation pipeline. With `lookaround`,
/// pipeline h is head h's; the other methods step through them one after the other, so that an
/// epoch costs all methods as many gradients. Batch-norm statistics of the result:
/// train/norm_statistics.h. A batch is taken in `optimizer.accumulate` parts, fewer where one would
/// hold a single sample. On the CPU, with the same number of threads, the weights depend on the
/// configuration alone: a run that was stopped and resumed any number of times ends with the same
/// bits.
///
/// A stop request (core/stop.h) is honoured after the batch in hand: a checkpoint is written and
/// Interrupted thrown. Throws Error{kConfig or kInput} when configuration, network and data do not
/// fit or `out` holds checkpoints that neither `resume` nor `overwrite` speaks of, Error{kNumeric}
/// naming epoch, batch and head when the loss is not finite (on a GPU some steps later) or memory
/// runs out, or the steps when the weights that a checkpoint would hold are not finite (earlier
/// checkpoints stay), Error{kOutput} when something cannot be written.
///
/// Progress: the phase `train` lasts from the first batch to the last score and counts the images
/// shown to heads (samples times pipelines) since this call, of those that the run has left.
///
/// Warns of images that were left out, of batch norms that training will not move (a network traced
/// in eval mode), and of damaged checkpoints that are passed over for an older one.
///
/// Seeds LibTorch's global generator before every step.
TrainResult train(const TrainConfig& config, const TrainOptions& options, Progress& progress);

/// The flatness (`config.flatness`) around a trained network, as train() measures it after it has
/// saved the network: on samples of the training set with its label noise, without augmentation.
/// Throws as measure_flatness does.
Flatness trained_flatness(const TrainConfig& config, ScriptModel& model, const TrainData& data,
                          const Objective& objective, at::Device device, Progress& progress);

}  // namespace weightsmith
