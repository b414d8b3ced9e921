#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

/// The operations of data/image_ops.h on batches (B, C, H, W), contiguous, on any device: each
/// image with parameters of its own, which are rows of a tensor on the same device. They give what
/// image_ops gives, as single precision is computed alike; return new tensors; and never wait for
/// the device. Memory: up to 190 bytes a pixel of the images, most for
/// bilinear warps.
namespace weightsmith::batch_ops {

// ---- geometry, of uint8 and float32; what comes in from outside is 0 ----

/// `offsets`: (B, 2) int64, dy and dx.
at::Tensor shift(const at::Tensor& images, const at::Tensor& offsets);
/// `maps`: (B, 6) float64, in the order of image_ops::Warp.
at::Tensor warp_bilinear(const at::Tensor& images, const at::Tensor& maps);
/// Of uint8. `grids`: (B, 6) float32, in the order of image_ops::NearestGrid.
at::Tensor warp_nearest(const at::Tensor& images, const at::Tensor& grids);
/// `boxes`: (B, 4) int64, in the order of image_ops::Box. Returns (B, C, size, size).
at::Tensor resized_crop(const at::Tensor& images, const at::Tensor& boxes, std::int64_t size);
/// Overwrites the boxes, as above, with 0.
at::Tensor erase(const at::Tensor& images, const at::Tensor& boxes);
/// Overwrites them with values of `noise` (N), of the images' type. `boxes`: (B, 5), a box and the
/// place of its first value; the others follow by channel, row and column.
at::Tensor erase(const at::Tensor& images, const at::Tensor& boxes, const at::Tensor& noise);

// ---- colours, of uint8 ----

/// Value v of image i becomes levels[i][v]; `levels`: (B, 256) uint8.
at::Tensor map_levels(const at::Tensor& images, const at::Tensor& levels);
/// `blends`: (B, 2) float32, in the order of image_ops::Blend; likewise below.
at::Tensor contrast(const at::Tensor& images, const at::Tensor& blends);
at::Tensor saturation(const at::Tensor& images, const at::Tensor& blends);
at::Tensor sharpness(const at::Tensor& images, const at::Tensor& blends);
/// `sixths`: (B) float32, the turn in sixths of the circle.
at::Tensor hue(const at::Tensor& images, const at::Tensor& sixths);
at::Tensor autocontrast(const at::Tensor& images);
at::Tensor equalize(const at::Tensor& images);

}  // namespace weightsmith::batch_ops
