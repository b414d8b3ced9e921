#pragma once

#include <ATen/core/Tensor.h>

#include "weightsmith/config/enum_names.h"

namespace weightsmith {

/// What networks compute in. The halves cost digits; where there are instructions for them they are
/// faster.
enum class Precision { kFloat32, kBFloat16, kFloat16 };
EnumNames<Precision> enum_names(Precision);

/// Mixed precision (Micikevicius et al., "Mixed Precision Training", ICLR 2018): while this lives,
/// the operators that this thread runs on `device` take their inputs in the half that `precision`
/// names where PyTorch's autocast says so (convolutions, matrix products), in float32 where it says
/// so (losses, sums on the GPU), else as they come. Weights stay as they are; their copies in the
/// half live as long as this, so that changed weights are copied anew. kFloat32 changes nothing.
/// TorchScript networks follow it like others. Backward passes are run outside.
class AutocastScope {
 public:
  AutocastScope(Precision precision, at::Device device);
  ~AutocastScope();
  AutocastScope(const AutocastScope&) = delete;
  AutocastScope& operator=(const AutocastScope&) = delete;

 private:
  bool active_;
  at::DeviceType device_;
  bool was_on_ = false;
  at::ScalarType former_type_ = at::kFloat;
};

}  // namespace weightsmith
