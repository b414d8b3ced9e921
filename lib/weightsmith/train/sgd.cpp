#include "weightsmith/train/sgd.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "weightsmith/core/error.h"
#include "weightsmith/train/parameter_arena.h"

namespace weightsmith {
namespace {

struct Coefficients {
  float lr, momentum, fresh, weight_decay;
};

/// The flags are template parameters, so that each combination is a loop the compiler vectorises.
template <bool kMomentum, bool kFirst, bool kNesterov>
void update(const Coefficients c, std::int64_t size, const float* __restrict gradient,
            float* __restrict values, float* __restrict momenta) {
  at::parallel_for(0, size, kArenaGrain, [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      float g = gradient[i] + c.weight_decay * values[i];
      if constexpr (kMomentum) {
        const float m = kFirst ? g : c.momentum * momenta[i] + c.fresh * g;
        momenta[i] = m;
        g = kNesterov ? g + c.momentum * m : m;
      }
      values[i] -= c.lr * g;
    }
  });
}

}  // namespace

void sgd_step(const SgdOptions& options, double lr, bool first, const at::Tensor& gradient,
              at::Tensor& values, at::Tensor& momenta) {
  const at::NoGradGuard no_grad;
  const at::Tensor g = gradient.reshape({-1});
  WS_CHECK(g.numel() == values.numel() && g.scalar_type() == at::kFloat);
  if (!values.is_cpu()) {
    sgd_step_by_operators(options, lr, first, g, values, momenta);
    return;
  }
  const Coefficients c{static_cast<float>(lr), static_cast<float>(options.momentum),
                       static_cast<float>(1 - options.dampening),
                       static_cast<float>(options.weight_decay)};
  const at::Tensor flat = g.contiguous();
  const std::int64_t size = values.numel();
  const float* from = flat.data_ptr<float>();
  float* to = values.data_ptr<float>();
  if (options.momentum == 0) {
    update<false, false, false>(c, size, from, to, nullptr);
    return;
  }
  float* m = momenta.data_ptr<float>();
  if (first) {
    (options.nesterov ? update<true, true, true> : update<true, true, false>)(c, size, from, to, m);
  } else {
    (options.nesterov ? update<true, false, true> : update<true, false, false>)(c, size, from, to,
                                                                                m);
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
