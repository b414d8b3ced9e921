#pragma once

#include <ATen/core/Tensor.h>

namespace weightsmith {

/// target ← target + weight · (source − target), in one pass over memory; a weight of 1 copies.
/// Flat float32 tensors of equal size on one device.
void move_towards(at::Tensor& target, const at::Tensor& source, double weight);

/// slow ← slow + α (fast − slow), then fast ← slow, in one pass.
void pull_together(at::Tensor& slow, at::Tensor& fast, double alpha);

}  // namespace weightsmith
