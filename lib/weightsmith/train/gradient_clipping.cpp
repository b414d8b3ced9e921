#include "weightsmith/train/gradient_clipping.h"

#include <ATen/ATen.h>

namespace weightsmith {

void clip_gradients(const std::vector<at::Tensor>& parameters, std::optional<double> norm,
                    std::optional<double> value) {
  if (!norm && !value) return;
  const at::NoGradGuard no_grad;
  at::Tensor squares;
  for (const at::Tensor& parameter : parameters) {
    at::Tensor gradient = parameter.grad();
    if (!gradient.defined()) continue;
    if (value) gradient.clamp_(-*value, *value);
    if (!norm) continue;
    const at::Tensor own = gradient.norm(2, at::kDouble).square();
    squares = squares.defined() ? squares + own : own;
  }
  if (!squares.defined()) return;
  const at::Tensor length = squares.sqrt();
  if (length.is_cpu() && !(length.item<double>() > *norm)) return;
  // On a GPU it stays there, so that nothing waits for it.
  const at::Tensor factor = at::full({}, *norm, length.options()).div(length).clamp_max(1);
  for (const at::Tensor& parameter : parameters)
    if (at::Tensor gradient = parameter.grad(); gradient.defined()) gradient.mul_(factor);
}

}  // namespace weightsmith
