#include "weightsmith/train/adam.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

namespace weightsmith {
namespace {

/// What the step number makes of the options, in double until here.
struct AdamCoefficients {
  float beta1, fresh1, beta2, fresh2;
  float rate;        // lr / (1 − β₁ᵗ)
  float root_scale;  // 1 / √(1 − β₂ᵗ)
  float epsilon;
  float coupled;  // λ of Adam, else 0
  float keep;     // 1 − lr·λ of AdamW, else 1

  AdamCoefficients(const AdamOptions& o, double lr, std::int64_t t)
      : beta1(static_cast<float>(o.beta1)),
        fresh1(static_cast<float>(1 - o.beta1)),
        beta2(static_cast<float>(o.beta2)),
        fresh2(static_cast<float>(1 - o.beta2)),
        rate(static_cast<float>(lr / (1 - std::pow(o.beta1, static_cast<double>(t))))),
        root_scale(
            static_cast<float>(1 / std::sqrt(1 - std::pow(o.beta2, static_cast<double>(t))))),
        epsilon(static_cast<float>(o.epsilon)),
        coupled(static_cast<float>(o.decoupled ? 0 : o.weight_decay)),
        keep(static_cast<float>(o.decoupled ? 1 - lr * o.weight_decay : 1)) {}
};

void adam_values(const AdamCoefficients c, std::int64_t size, const float* __restrict gradient,
                 float* __restrict values, float* __restrict momenta, float* __restrict squares) {
  for (std::int64_t i = 0; i < size; ++i) {
    const float g = gradient[i] + c.coupled * values[i];
    const float m = c.beta1 * momenta[i] + c.fresh1 * g;
    const float v = c.beta2 * squares[i] + c.fresh2 * g * g;
    momenta[i] = m;
    squares[i] = v;
    values[i] = c.keep * values[i] - c.rate * m / (std::sqrt(v) * c.root_scale + c.epsilon);
  }
}

}  // namespace

void adam_update(const AdamOptions& options, double lr, std::int64_t t, std::int64_t size,
                 const float* gradient, float* values, float* momenta, float* squares) {
  adam_values({options, lr, t}, size, gradient, values, momenta, squares);
}

void adam_step_by_operators(const AdamOptions& options, double lr, std::int64_t t,
                            const at::Tensor& gradient, at::Tensor& values, at::Tensor& momenta,
                            at::Tensor& squares) {
  const at::NoGradGuard no_grad;
  at::Tensor g = gradient.reshape({-1});
  if (options.decoupled) {
    values.mul_(1 - lr * options.weight_decay);
  } else {
    g = g.add(values, options.weight_decay);
  }
  momenta.mul_(options.beta1).add_(g, 1 - options.beta1);
  squares.mul_(options.beta2).addcmul_(g, g, 1 - options.beta2);
  const double first = 1 - std::pow(options.beta1, static_cast<double>(t));
  const double second = 1 - std::pow(options.beta2, static_cast<double>(t));
  const at::Tensor root = squares.sqrt().div_(std::sqrt(second)).add_(options.epsilon);
  values.addcdiv_(momenta, root, -lr / first);
}

}  // namespace weightsmith
