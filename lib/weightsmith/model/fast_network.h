#pragma once

#include "weightsmith/model/script_model.h"

namespace weightsmith {

struct FastNetworkOptions {
  bool channels_last = true;  ///< keep images and kernels with their channels innermost
  bool bfloat16 = false;      ///< weights and activations; outputs are float32 again
};

/// A network that computes what `model` does in eval mode, and gradients to its inputs, in less
/// time: its weights are constants, and batch norms behind convolutions are folded into these
/// (Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-
/// Only Inference", CVPR 2018, section 3.2). It rounds differently: compare before trusting it. Its
/// parameters cannot be reached; its preprocessing is the model's, in float32. Takes inputs of any
/// rank. Throws Error{kInput} naming the model where LibTorch cannot do it (a network that changes
/// its own attributes).
ScriptModel fast_network(const ScriptModel& model, const FastNetworkOptions& options = {});

}  // namespace weightsmith
