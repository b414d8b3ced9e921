#include "weightsmith/train/sgd.h"

#include <ATen/ATen.h>

namespace weightsmith {
namespace {

struct Coefficients {
  float lr, momentum, fresh, weight_decay;
};

/// The flags are template parameters, so that each combination is a loop the compiler vectorises.
template <bool kMomentum, bool kFirst, bool kNesterov>
void sgd_values(const Coefficients c, std::int64_t size, const float* __restrict gradient,
                float* __restrict values, float* __restrict momenta) {
  for (std::int64_t i = 0; i < size; ++i) {
    float g = gradient[i] + c.weight_decay * values[i];
    if constexpr (kMomentum) {
      const float m = kFirst ? g : c.momentum * momenta[i] + c.fresh * g;
      momenta[i] = m;
      g = kNesterov ? g + c.momentum * m : m;
    }
    values[i] -= c.lr * g;
  }
}

}  // namespace

void sgd_update(const SgdOptions& options, double lr, bool first, std::int64_t size,
                const float* gradient, float* values, float* momenta) {
  const Coefficients c{static_cast<float>(lr), static_cast<float>(options.momentum),
                       static_cast<float>(1 - options.dampening),
                       static_cast<float>(options.weight_decay)};
  if (options.momentum == 0) {
    sgd_values<false, false, false>(c, size, gradient, values, nullptr);
  } else if (first) {
    (options.nesterov ? sgd_values<true, true, true>
                      : sgd_values<true, true, false>)(c, size, gradient, values, momenta);
  } else {
    (options.nesterov ? sgd_values<true, false, true>
                      : sgd_values<true, false, false>)(c, size, gradient, values, momenta);
  }
}

void sgd_step_by_operators(const SgdOptions& options, double lr, bool first,
                           const at::Tensor& gradient, at::Tensor& values, at::Tensor& momenta) {
  const at::NoGradGuard no_grad;
  at::Tensor g = gradient.reshape({-1}).add(values, options.weight_decay);
  if (options.momentum != 0) {
    if (first) {
      momenta.copy_(g);
    } else {
      momenta.mul_(options.momentum).add_(g, 1 - options.dampening);
    }
    g = options.nesterov ? g.add(momenta, options.momentum) : momenta;
  }
  values.sub_(g, lr);
}

}  // namespace weightsmith
