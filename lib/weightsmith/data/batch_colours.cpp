#include <ATen/ATen.h>

#include "weightsmith/data/batch_ops.h"

namespace weightsmith::batch_ops {
namespace {

using std::int64_t;

/// Cut to [0, 255], the fraction dropped.
at::Tensor to_bytes(const at::Tensor& values) { return values.clamp(0, 255).to(at::kByte); }

/// Number k of every image's parameters, to be broadcast over its values.
at::Tensor by_value(const at::Tensor& parameters, int64_t k) {
  return parameters.select(1, k).view({-1, 1, 1, 1});
}

/// factor · images + rest · others.
at::Tensor blended(const at::Tensor& images, const at::Tensor& others, const at::Tensor& blends) {
  return to_bytes(by_value(blends, 0) * images.to(at::kFloat) + by_value(blends, 1) * others);
}

/// (B, 1, H, W) uint8.
at::Tensor grey_of(const at::Tensor& images) {
  if (images.size(1) != 3) return images.narrow(1, 0, 1);
  const at::Tensor values = images.to(at::kFloat);
  return (0.2989 * values.narrow(1, 0, 1) + 0.587 * values.narrow(1, 1, 1) +
          0.114 * values.narrow(1, 2, 1))
      .to(at::kByte);
}

/// values / by; by one that it does not hold itself CUDA would divide less exactly.
at::Tensor divided(const at::Tensor& values, double by) {
  return values / at::full_like(values, by);
}

/// What each pixel of every channel takes, by the sector of the colour circle (0 to 5) that its hue
/// lies in: the channels go through the same sectors, red first.
at::Tensor by_sector(const at::Tensor& sector, const at::Tensor& top, const at::Tensor& falling,
                     const at::Tensor& bottom, const at::Tensor& rising) {
  const at::Tensor behind = (at::arange(3, sector.options()) * 4).view({1, 3, 1, 1});
  const at::Tensor own = (sector + behind).remainder(6);
  return at::where(own.eq(1), falling,
                   at::where(own.eq(4), rising, at::where(own.eq(2) | own.eq(3), bottom, top)));
}

/// How often each level occurs in each channel: (B · C, 256) int64.
at::Tensor histograms(const at::Tensor& levels) {
  const at::Tensor counts = at::zeros({levels.size(0), 256}, levels.options());
  return counts.scatter_add(1, levels, at::ones({1, 1}, levels.options()).expand_as(levels));
}

}  // namespace

at::Tensor map_levels(const at::Tensor& images, const at::Tensor& levels) {
  return levels.gather(1, images.flatten(1).to(at::kLong)).view(images.sizes());
}

at::Tensor contrast(const at::Tensor& images, const at::Tensor& blends) {
  const at::Tensor sums = grey_of(images).sum({1, 2, 3}, true, at::kLong);
  const auto plane = static_cast<double>(images.size(2) * images.size(3));
  return blended(images, divided(sums.to(at::kDouble), plane).to(at::kFloat), blends);
}

at::Tensor saturation(const at::Tensor& images, const at::Tensor& blends) {
  if (images.size(1) != 3) return images;
  return blended(images, grey_of(images).to(at::kFloat), blends);
}

at::Tensor sharpness(const at::Tensor& images, const at::Tensor& blends) {
  const int64_t h = images.size(2);
  const int64_t w = images.size(3);
  if (h <= 2 || w <= 2) return images;
  const at::Tensor values = images.to(at::kInt);
  const auto three = [](const at::Tensor& v, int64_t axis) {
    const int64_t inner = v.size(axis) - 2;
    return v.narrow(axis, 0, inner) + v.narrow(axis, 1, inner) + v.narrow(axis, 2, inner);
  };
  const auto inner_of = [&](const at::Tensor& v) {
    return v.narrow(2, 1, h - 2).narrow(3, 1, w - 2);
  };
  const at::Tensor sum = three(three(values, 2), 3) + 4 * inner_of(values);
  const at::Tensor smooth = values.to(at::kFloat);
  inner_of(smooth).copy_((2 * sum + 13).floor_divide(26));
  return blended(images, smooth, blends);
}

at::Tensor hue(const at::Tensor& images, const at::Tensor& sixths) {
  if (images.size(1) != 3) return images;
  const at::Tensor values = images.to(at::kFloat);
  const at::Tensor r = values.narrow(1, 0, 1);
  const at::Tensor g = values.narrow(1, 1, 1);
  const at::Tensor b = values.narrow(1, 2, 1);
  const at::Tensor most = values.amax({1}, true);
  const at::Tensor range = most - values.amin({1}, true);
  const at::Tensor is_grey = range.eq(0);
  const at::Tensor divisor = range.masked_fill(is_grey, 1);
  at::Tensor h = at::where(most.eq(r), (g - b) / divisor,
                           at::where(most.eq(g), 2 + (b - r) / divisor, 4 + (r - g) / divisor));
  h = h + sixths.view({-1, 1, 1, 1});
  h = h - 6 * divided(h, 6).floor();
  const at::Tensor sector = h.to(at::kLong).clamp_max(5);
  const at::Tensor fraction = h - sector.to(at::kFloat);
  const auto level = [](const at::Tensor& v) { return to_bytes(v + 1e-3); };
  const at::Tensor turned = by_sector(sector, level(most), level(most - range * fraction),
                                      level(most - range), level(most - range * (1 - fraction)));
  return at::where(is_grey, images, turned);
}

at::Tensor autocontrast(const at::Tensor& images) {
  const at::Tensor values = images.to(at::kFloat);
  const at::Tensor least = values.amin({2, 3}, true);
  const at::Tensor range = values.amax({2, 3}, true) - least;
  const at::Tensor scale = at::full_like(range, 255) / range.clamp_min(1);
  return at::where(range.eq(0), images, to_bytes((values - least) * scale));
}

at::Tensor equalize(const at::Tensor& images) {
  const at::Tensor levels = images.flatten(2).flatten(0, 1).to(at::kLong);
  const at::Tensor counts = histograms(levels);
  const at::Tensor highest = counts.gather(1, levels.amax({1}, true));
  const at::Tensor step = (levels.size(1) - highest).floor_divide(255);
  const at::Tensor known = step.clamp_min(1);
  const at::Tensor below = counts.cumsum(1) - counts;
  const at::Tensor equal = (below + known.floor_divide(2)).floor_divide(known).clamp_max(255);
  const at::Tensor same = at::arange(256, levels.options()).unsqueeze(0);
  return at::where(step.eq(0), same, equal).to(at::kByte).gather(1, levels).view(images.sizes());
}

}  // namespace weightsmith::batch_ops
