#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "weightsmith/core/rng.h"
#include "weightsmith/data/augment.h"
#include "weightsmith/data/drawn_step.h"
#include "weightsmith/data/transfer_buffer.h"

namespace weightsmith {

/// What was drawn for the images of a batch, ordered so that a device does it in few operations:
/// the first steps of all images together, by kind, then the second ones, and so on.
class BatchSteps {
 public:
  /// For `count` images (C, H, W) of uint8, on which nothing is done yet.
  BatchSteps(std::int64_t count, std::array<std::int64_t, 3> shape);

  /// Appends steps[i], any number of them, to what is done to image i. Those that change the size
  /// stand in the same place for all images and give all the same size. The numbers that a device
  /// needs go to `numbers`. O(steps), and O(C·H·W) for noise.
  void add(std::span<const std::vector<DrawnStep>> steps, TransferBuffer& numbers);
  /// From here on values are floats, and not rounded; no later step may need bytes.
  void go_on_in_floats();
  /// Of an image after all steps: (C, H, W).
  std::array<std::int64_t, 3> shape() const { return shape_; }

  /// Does it to `images` (count, C, H, W) uint8, contiguous, whose values may be overwritten; what
  /// `numbers` holds lies on their device. Returns (count, C, H', W') uint8, or float32 after
  /// go_on_in_floats(): on the CPU what apply_step() gives image by image. Queues its operations
  /// without waiting for the device.
  at::Tensor apply(at::Tensor images, const at::Tensor& numbers) const;

 private:
  using Part = TransferBuffer::Part;

  /// One operation, of batch_ops, or going over to floats.
  enum class Kind {
    kToFloats,
    kShift,
    kFlipLeftRight,
    kFlipTopBottom,
    kWarpBilinear,
    kWarpNearest,
    kResizedCrop,
    kErase,
    kEraseWithNoise,
    kLevels,
    kContrast,
    kSaturation,
    kSharpness,
    kHue,
    kAutocontrast,
    kEqualize,
  };
  /// Of some images, with their parameters: an operation has those of one type, noise besides.
  struct Group {
    Kind kind;
    std::int64_t size = 0;  // of resized crops
    bool everyone = true;   // else those of `rows`
    Part rows = {}, integers = {}, doubles = {}, floats = {}, bytes = {};
  };
  class Collector;

  at::Tensor changed(const Group& group, const at::Tensor& images, const at::Tensor& numbers) const;

  std::int64_t count_;
  std::array<std::int64_t, 3> shape_;
  bool is_bytes_ = true;
  std::vector<Group> groups_;
};

/// The changes of a batch by `pipeline`, of those that mix batches none: image i's drawn from
/// rngs[i], the same that augment() would make of a stored image (C, H, W) of uint8.
BatchSteps draw_batch(const Pipeline& pipeline, std::array<std::int64_t, 3> shape,
                      std::vector<Rng> rngs, TransferBuffer& numbers);

}  // namespace weightsmith
