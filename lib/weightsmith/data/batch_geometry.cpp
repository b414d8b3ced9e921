#include <ATen/ATen.h>

#include "weightsmith/data/batch_ops.h"

namespace weightsmith::batch_ops {
namespace {

using std::int64_t;

/// 0, 1, … along one of three dimensions (image, row, column).
at::Tensor rows_of(const at::Tensor& images, at::ScalarType type, int64_t height) {
  return at::arange(height, images.options().dtype(type)).view({1, height, 1});
}

at::Tensor columns_of(const at::Tensor& images, at::ScalarType type, int64_t width) {
  return at::arange(width, images.options().dtype(type)).view({1, 1, width});
}

/// The values at whole rows y and columns x, which broadcast to (B, H', W'): (B, C, H', W').
at::Tensor values_at(const at::Tensor& images, const at::Tensor& y, const at::Tensor& x) {
  const at::Tensor place = (y * images.size(3) + x).unsqueeze(1);
  const int64_t count = images.size(0);
  const int64_t channels = images.size(1);
  return images.flatten(2)
      .gather(2, place.flatten(2).expand({count, channels, -1}))
      .view({count, channels, place.size(2), place.size(3)});
}

/// The same with 0 outside the image.
at::Tensor values_or_zero(const at::Tensor& images, const at::Tensor& y, const at::Tensor& x) {
  const at::Tensor inner_y = y.clamp(0, images.size(2) - 1);
  const at::Tensor inner_x = x.clamp(0, images.size(3) - 1);
  const at::Tensor outside = inner_y.ne(y) | inner_x.ne(x);
  return values_at(images, inner_y, inner_x).masked_fill_(outside.unsqueeze(1), 0);
}

/// Floats become values like those of `images`, bytes rounded to the nearest, of two the even one.
at::Tensor rounded_like(const at::Tensor& images, const at::Tensor& values) {
  return images.scalar_type() == at::kByte ? values.clamp(0, 255).round_().to(at::kByte) : values;
}

/// Number k of every image's parameters, to be broadcast over its pixels.
at::Tensor by_pixel(const at::Tensor& parameters, int64_t k) {
  return parameters.select(1, k).view({-1, 1, 1});
}

/// Two neighbours of every output position along one axis, and the weight of the second.
struct AxisTaps {
  at::Tensor first, second, weight;  // (B, size)
};

AxisTaps taps_of(const at::Tensor& begin, const at::Tensor& length, int64_t size) {
  const at::Tensor lengths = length.to(at::kFloat).unsqueeze(1);
  // By a number that it does not hold itself CUDA would divide less exactly.
  const at::Tensor step = lengths / at::full_like(lengths, static_cast<double>(size));
  const at::Tensor last = (length - 1).unsqueeze(1);
  const at::Tensor at =
      (step * (at::arange(size, step.options()) + 0.5) - 0.5).clamp_min_(0);  // (B, size)
  const at::Tensor first = at::minimum(at.to(at::kLong), last);
  return {begin.unsqueeze(1) + first, begin.unsqueeze(1) + at::minimum(first + 1, last),
          at - first.to(at::kFloat)};
}

/// Rows, columns and whether they lie in the box of an image.
struct Boxed {
  Boxed(const at::Tensor& images, const at::Tensor& boxes)
      : y(rows_of(images, at::kLong, images.size(2)) - by_pixel(boxes, 0)),
        x(columns_of(images, at::kLong, images.size(3)) - by_pixel(boxes, 1)),
        inside((y.ge(0) & y.lt(by_pixel(boxes, 2)) & x.ge(0) & x.lt(by_pixel(boxes, 3)))
                   .unsqueeze(1)) {}
  at::Tensor y, x;    // from the upper left corner of the box: (B, H, 1) and (B, 1, W)
  at::Tensor inside;  // (B, 1, H, W)
};

}  // namespace

at::Tensor shift(const at::Tensor& images, const at::Tensor& offsets) {
  return values_or_zero(images, rows_of(images, at::kLong, images.size(2)) + by_pixel(offsets, 0),
                        columns_of(images, at::kLong, images.size(3)) + by_pixel(offsets, 1));
}

at::Tensor warp_bilinear(const at::Tensor& images, const at::Tensor& maps) {
  const double cy = 0.5 * static_cast<double>(images.size(2) - 1);
  const double cx = 0.5 * static_cast<double>(images.size(3) - 1);
  const at::Tensor ry = rows_of(images, at::kDouble, images.size(2)) - cy;
  const at::Tensor rx = columns_of(images, at::kDouble, images.size(3)) - cx;
  const auto source = [&](int64_t by_x, int64_t by_y, int64_t constant, double centre) {
    return by_pixel(maps, by_x) * rx + by_pixel(maps, by_y) * ry + by_pixel(maps, constant) +
           centre;
  };
  const at::Tensor sx = source(0, 1, 4, cx);
  const at::Tensor sy = source(2, 3, 5, cy);
  const at::Tensor fx = sx.floor();
  const at::Tensor fy = sy.floor();
  const at::Tensor right = (sx - fx).to(at::kFloat).unsqueeze(1);  // weights
  const at::Tensor below = (sy - fy).to(at::kFloat).unsqueeze(1);
  const at::Tensor x = fx.to(at::kLong);
  const at::Tensor y = fy.to(at::kLong);
  const at::Tensor upper =
      (1 - right) * values_or_zero(images, y, x) + right * values_or_zero(images, y, x + 1);
  const at::Tensor lower =
      (1 - right) * values_or_zero(images, y + 1, x) + right * values_or_zero(images, y + 1, x + 1);
  return rounded_like(images, (1 - below) * upper + below * lower);
}

at::Tensor warp_nearest(const at::Tensor& images, const at::Tensor& grids) {
  const double half_h = 0.5 * static_cast<double>(images.size(2));
  const double half_w = 0.5 * static_cast<double>(images.size(3));
  const at::Tensor ry = rows_of(images, at::kFloat, images.size(2)) - half_h + 0.5;
  const at::Tensor rx = columns_of(images, at::kFloat, images.size(3)) - half_w + 0.5;
  const auto source = [&](int64_t by_x, int64_t by_y, int64_t constant, double half) {
    const at::Tensor at =
        rx * by_pixel(grids, by_x) + ry * by_pixel(grids, by_y) + by_pixel(grids, constant);
    return ((at + 1) * half - 0.5).round_().to(at::kLong);
  };
  return values_or_zero(images, source(2, 3, 5, half_h), source(0, 1, 4, half_w));
}

at::Tensor resized_crop(const at::Tensor& images, const at::Tensor& boxes, int64_t size) {
  const AxisTaps rows = taps_of(boxes.select(1, 0), boxes.select(1, 2), size);
  const AxisTaps columns = taps_of(boxes.select(1, 1), boxes.select(1, 3), size);
  const at::Tensor right = columns.weight.view({-1, 1, 1, size});
  const at::Tensor below = rows.weight.view({-1, 1, size, 1});
  const auto row_at = [&](const at::Tensor& y) {
    return values_at(images, y.unsqueeze(2), columns.first.unsqueeze(1)) * (1 - right) +
           values_at(images, y.unsqueeze(2), columns.second.unsqueeze(1)) * right;
  };
  return rounded_like(images, row_at(rows.first) * (1 - below) + row_at(rows.second) * below);
}

at::Tensor erase(const at::Tensor& images, const at::Tensor& boxes) {
  return images.masked_fill(Boxed(images, boxes).inside, 0);
}

at::Tensor erase(const at::Tensor& images, const at::Tensor& boxes, const at::Tensor& noise) {
  const Boxed box(images, boxes);
  const at::Tensor height = by_pixel(boxes, 2).unsqueeze(1);
  const at::Tensor width = by_pixel(boxes, 3).unsqueeze(1);
  const at::Tensor channel =
      at::arange(images.size(1), boxes.options()).view({1, images.size(1), 1, 1});
  const at::Tensor place = by_pixel(boxes, 4).unsqueeze(1) +
                           (channel * height + box.y.unsqueeze(1)) * width + box.x.unsqueeze(1);
  return at::where(box.inside, noise.take(place.masked_fill(box.inside.logical_not(), 0)), images);
}

}  // namespace weightsmith::batch_ops
