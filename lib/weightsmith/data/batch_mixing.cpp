#include "weightsmith/data/batch_mixing.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "weightsmith/core/error.h"

namespace weightsmith {
namespace {

/// The logarithm of a gamma variate of this shape; its value underflows for small shapes.
double draw_log_gamma(double shape, Rng& rng) {
  // Gamma(s) = Gamma(s + 1) · U^(1/s).
  if (shape < 1) {
    const double larger = draw_log_gamma(shape + 1, rng);
    return larger + std::log(1 - rng.uniform()) / shape;
  }
  const double d = shape - 1.0 / 3;
  const double c = 1 / std::sqrt(9 * d);
  while (true) {
    const double x = rng.normal();
    const double v = std::pow(1 + c * x, 3);
    if (v > 0 && std::log(1 - rng.uniform()) < 0.5 * x * x + d - d * v + d * std::log(v))
      return std::log(d * v);
  }
}

Patch draw_patch(double share, std::int64_t height, std::int64_t width, Rng& rng) {
  const auto span = [&](std::int64_t size) {
    const auto length = static_cast<std::int64_t>(std::sqrt(1 - share) * static_cast<double>(size));
    const auto centre = static_cast<std::int64_t>(rng.below(size));
    return std::pair{std::max<std::int64_t>(centre - length / 2, 0),
                     std::min(centre - length / 2 + length, size)};
  };
  const auto [top, bottom] = span(height);
  const auto [left, right] = span(width);
  return {top, bottom, left, right};
}

}  // namespace

double draw_beta(double alpha, Rng& rng) {
  const double a = draw_log_gamma(alpha, rng);
  const double b = draw_log_gamma(alpha, rng);
  return 1 / (1 + std::exp(b - a));
}

DrawnMixing draw_mixing(const Pipeline& pipeline, std::int64_t count, std::int64_t height,
                        std::int64_t width, Rng& rng) {
  std::vector<const Augmentation*> ways;
  for (const Augmentation& a : pipeline)
    if (a.name == Augmentation::Name::kMixup || a.name == Augmentation::Name::kCutmix)
      ways.push_back(&a);
  DrawnMixing drawn;
  if (ways.empty()) return drawn;
  const Augmentation& way = *ways[ways.size() == 1 ? 0 : rng.below(ways.size())];
  const bool cuts = way.name == Augmentation::Name::kCutmix;
  drawn.share = draw_beta(cuts ? way.cutmix_alpha : way.mixup_alpha, rng);
  drawn.partners = random_permutation(count, rng);
  if (!cuts) return drawn;
  const Patch patch = draw_patch(drawn.share, height, width, rng);
  drawn.patch = patch;
  drawn.share = 1 - static_cast<double>((patch.bottom - patch.top) * (patch.right - patch.left)) /
                        static_cast<double>(height * width);
  return drawn;
}

void mix_tensors(const DrawnMixing& drawn, const at::Tensor& partners, at::Tensor& images) {
  const at::Tensor others = images.index_select(0, partners);
  if (const auto& patch = drawn.patch) {
    const auto inside = [&](const at::Tensor& all) {
      return all.slice(2, patch->top, patch->bottom).slice(3, patch->left, patch->right);
    };
    inside(images).copy_(inside(others));
    return;
  }
  const auto share = static_cast<float>(drawn.share);
  images.mul_(share).add_(others * (1 - share));
}

// Plain loops, as in the loader.
Mixing mix_batch(const Pipeline& pipeline, at::Tensor& images, const at::Tensor& labels, Rng& rng) {
  Mixing mixing;
  if (images.dim() != 4) return mixing;
  const std::int64_t count = images.size(0);
  const std::int64_t height = images.size(2);
  const std::int64_t width = images.size(3);
  const DrawnMixing drawn = draw_mixing(pipeline, count, height, width, rng);
  if (drawn.partners.empty()) return mixing;
  mixing.share = drawn.share;

  WS_CHECK(images.is_contiguous() && images.scalar_type() == at::kFloat);
  const std::int64_t numel = images.numel() / count;
  const std::vector<std::int64_t>& partner = drawn.partners;
  mixing.labels = at::empty({count}, at::kLong);
  for (std::int64_t i = 0; i < count; ++i)
    mixing.labels.data_ptr<std::int64_t>()[i] = labels.data_ptr<std::int64_t>()[partner[i]];

  const auto* own = images.data_ptr<float>();
  const std::vector<float> before(own, own + images.numel());
  float* to = images.data_ptr<float>();
  if (const auto& patch = drawn.patch) {
    const std::int64_t columns = patch->right - patch->left;
    for (std::int64_t i = 0; i < count; ++i)
      for (std::int64_t c = 0; c < images.size(1); ++c)
        for (std::int64_t y = patch->top; y < patch->bottom; ++y) {
          const std::int64_t at = (c * height + y) * width + patch->left;
          std::copy_n(before.data() + partner[i] * numel + at, columns, to + i * numel + at);
        }
    return mixing;
  }
  const auto share = static_cast<float>(mixing.share);
  for (std::int64_t i = 0; i < count; ++i)
    for (std::int64_t j = 0; j < numel; ++j)
      to[i * numel + j] =
          share * before[i * numel + j] + (1 - share) * before[partner[i] * numel + j];
  return mixing;
}

}  // namespace weightsmith
