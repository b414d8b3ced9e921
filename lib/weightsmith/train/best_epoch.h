#pragma once

#include "weightsmith/eval/evaluation.h"
#include "weightsmith/model/script_model.h"
#include "weightsmith/train/checkpoint.h"
#include "weightsmith/train/train_result.h"

namespace weightsmith {

/// Keeps a copy of the network as it is shown after epoch `state.position.epoch`, in `best` and
/// `best_weights` of `state`, if no epoch before scored as well (BestEpoch); never one whose loss
/// is not finite.
void keep_if_best(Checkpoint& state, const ScriptModel& model, const Evaluation& validation);

/// Gives the network the weights of the best epoch, of which there is one; tells which it is and
/// its scores on the validation share.
BestEpoch show_best(const Checkpoint& state, ScriptModel& model);

}  // namespace weightsmith
