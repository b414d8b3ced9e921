#include "weightsmith/train/gradient_clipping.h"

#include <ATen/ATen.h>

#include <cmath>

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
  const double length = std::sqrt(squares.item<double>());
  if (!(length > *norm)) return;
  for (const at::Tensor& parameter : parameters)
    if (at::Tensor gradient = parameter.grad(); gradient.defined()) gradient.mul_(*norm / length);
}

}  // namespace weightsmith
