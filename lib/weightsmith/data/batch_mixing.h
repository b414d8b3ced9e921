#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "weightsmith/core/rng.h"
#include "weightsmith/data/augment.h"

namespace weightsmith {

/// What was mixed into a batch: image i is its own in the share λ and that of a partner in the
/// rest, and the loss is λ · L(labels) + (1 − λ) · L(partner labels).
struct Mixing {
  at::Tensor labels;   ///< (B) int64 of the partners; undefined where nothing was mixed
  double share = 1.0;  ///< λ
};

/// Rows [top, bottom) and columns [left, right) of an image.
struct Patch {
  std::int64_t top, bottom, left, right;
};

/// What is drawn to mix a batch.
struct DrawnMixing {
  double share = 1.0;                  ///< λ
  std::vector<std::int64_t> partners;  ///< of every image; empty: nothing is mixed
  std::optional<Patch> patch = {};     ///< cutmix: shows the partner; none: mixup
};

/// Draws how a batch of `count` images (H, W) is mixed at the end of `pipeline`.
DrawnMixing draw_mixing(const Pipeline& pipeline, std::int64_t count, std::int64_t height,
                        std::int64_t width, Rng& rng);

/// Mixes `images` (B, C, H, W) float32 in place as it was drawn, on any device; that is also where
/// `partners` (B) lies, int64.
void mix_tensors(const DrawnMixing& drawn, const at::Tensor& partners, at::Tensor& images);

/// Mixes `images` (B, C, H, W), float32 and contiguous on the CPU, in place as the end of
/// `pipeline` says; with mixup and cutmix there, one of the two by a coin. λ ~ Beta(alpha, alpha),
/// one a batch; partners are a uniform permutation of the batch.
/// - mixup (Zhang, Cissé, Dauphin, Lopez-Paz, ICLR 2018): λ · x + (1 − λ) · x of the partner.
/// - cutmix (Yun et al., ICCV 2019): a box of √(1 − λ) of each side about a uniform centre, cut off
///   at the border, shows the partner; λ is what remains of the area.
Mixing mix_batch(const Pipeline& pipeline, at::Tensor& images, const at::Tensor& labels, Rng& rng);

/// A draw from Beta(alpha, alpha), from two gamma variates (Marsaglia and Tsang, "A simple method
/// for generating gamma variables", ACM TOMS 2000).
double draw_beta(double alpha, Rng& rng);

}  // namespace weightsmith
