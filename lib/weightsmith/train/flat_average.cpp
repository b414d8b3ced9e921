#include "weightsmith/train/flat_average.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "weightsmith/core/error.h"
#include "weightsmith/train/parameter_arena.h"

namespace weightsmith {

void move_towards(at::Tensor& target, const at::Tensor& source, double weight) {
  const at::NoGradGuard no_grad;
  WS_CHECK(target.numel() == source.numel());
  if (weight == 1.0) {
    target.copy_(source);
    return;
  }
  if (!target.is_cpu()) {
    target.lerp_(source, weight);
    return;
  }
  float* to = target.data_ptr<float>();
  const float* from = source.data_ptr<float>();
  const auto w = static_cast<float>(weight);
  at::parallel_for(0, target.numel(), kArenaGrain, [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) to[i] += w * (from[i] - to[i]);
  });
}

void pull_together(at::Tensor& slow, at::Tensor& fast, double alpha) {
  const at::NoGradGuard no_grad;
  WS_CHECK(slow.numel() == fast.numel());
  if (!slow.is_cpu()) {
    slow.lerp_(fast, alpha);
    fast.copy_(slow);
    return;
  }
  float* __restrict s = slow.data_ptr<float>();
  float* __restrict f = fast.data_ptr<float>();
  const auto a = static_cast<float>(alpha);
  at::parallel_for(0, slow.numel(), kArenaGrain, [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) f[i] = s[i] += a * (f[i] - s[i]);
  });
}

}  // namespace weightsmith
