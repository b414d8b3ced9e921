#pragma once

#include <ATen/core/Tensor.h>

#include "weightsmith/model/script_model.h"

namespace weightsmith {

/// Whether a network computes the same, forward and backward, when its images come with channels
/// innermost, which convolutions on the CPU are faster with. `inputs` (B, ...): two samples or
/// more. False for what is not images of several channels, and for a network that refuses them so
/// (one that takes views of its activations) or whose outputs differ by more than rounding. Leaves
/// the network in training mode, without gradients and with the buffers that it had; what it draws
/// from LibTorch's generator is drawn.
bool takes_channels_last(ScriptModel& model, const at::Tensor& inputs);

/// Whether LibTorch's gradients of all of a network's operators are right with channels innermost.
/// Those of GELU were not with LibTorch 1.13: behind convolutions they came out wrong, up to
/// infinite, why was not found (PyTorch of that version gives the right ones); of 18 activations
/// that were tried, no other's.
bool gradients_take_channels_last(const ScriptModel& model);

}  // namespace weightsmith
