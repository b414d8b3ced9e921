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
  // Stays on the device, which need not be waited for.
  const at::Tensor factor = at::full({}, *norm, squares.options()).div(squares.sqrt()).clamp_max(1);
  for (const at::Tensor& parameter : parameters)
    if (at::Tensor gradient = parameter.grad(); gradient.defined()) gradient.mul_(factor);
}

}  // namespace weightsmith
