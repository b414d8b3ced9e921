#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

namespace weightsmith {

/// Limits the gradients of `parameters` in place, those there are: first each value to ±`value`,
/// then, where the Euclidean norm n of all of them together exceeds `norm`, all by the factor
/// norm / n (Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks",
/// ICML 2013, algorithm 1). Float32 gradients, on one device; the norm is summed in double. Does
/// not wait for a GPU. Gradients that are not finite do not become so.
void clip_gradients(const std::vector<at::Tensor>& parameters, std::optional<double> norm,
                    std::optional<double> value);

}  // namespace weightsmith
