#include "weightsmith/data/batch_steps.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <initializer_list>
#include <map>
#include <utility>
#include <variant>

#include "weightsmith/core/error.h"
#include "weightsmith/data/batch_ops.h"
#include "weightsmith/data/image_ops.h"

namespace weightsmith {

/// Sorts the steps that stand in one place into groups.
class BatchSteps::Collector {
 public:
  explicit Collector(const BatchSteps& batch) : batch_(batch) {}

  void add(std::int64_t row, const DrawnStep& step) {
    row_ = row;
    std::visit([this](const auto& known) { collect(known); }, step);
  }

  /// The groups, their numbers in `numbers`.
  std::vector<Group> finish(TransferBuffer& numbers) const {
    std::vector<Group> groups;
    for (const auto& [kind, group] : groups_) {
      const bool everyone = static_cast<std::int64_t>(group.rows.size()) == batch_.count_;
      groups.push_back({kind, group.size, everyone, everyone ? Part{} : numbers.add(group.rows),
                        numbers.add(group.integers), numbers.add(group.doubles),
                        numbers.add(group.floats), numbers.add(group.bytes)});
    }
    return groups;
  }

 private:
  struct Collected {
    std::int64_t size = 0;
    std::vector<std::int64_t> rows, integers;
    std::vector<double> doubles;
    std::vector<float> floats;
    std::vector<std::uint8_t> bytes;
  };

  Collected& in_group(Kind kind) {
    Collected& group = groups_[kind];
    group.rows.push_back(row_);
    return group;
  }

  void collect(const ShiftStep& step) {
    append(in_group(Kind::kShift).integers, {step.dy, step.dx});
  }

  void collect(const FlipStep& step) {
    in_group(step.top_bottom ? Kind::kFlipTopBottom : Kind::kFlipLeftRight);
  }

  void collect(const WarpStep& step) {
    if (step.nearest) {
      WS_CHECK(batch_.is_bytes_);
      const auto grid = image_ops::nearest_grid(step.map, batch_.shape_[1], batch_.shape_[2]);
      append(in_group(Kind::kWarpNearest).floats,
             {grid.xx, grid.xy, grid.yx, grid.yy, grid.tx, grid.ty});
      return;
    }
    const image_ops::Warp& m = step.map;
    append(in_group(Kind::kWarpBilinear).doubles, {m.xx, m.xy, m.yx, m.yy, m.tx, m.ty});
  }

  void collect(const ResizedCropStep& step) {
    Collected& group = in_group(Kind::kResizedCrop);
    WS_CHECK(group.size == 0 || group.size == step.size);
    group.size = step.size;
    append(group.integers, {step.box.top, step.box.left, step.box.height, step.box.width});
  }

  void collect(const EraseStep& step) {
    Collected& group = in_group(step.noise ? Kind::kEraseWithNoise : Kind::kErase);
    const image_ops::Box& box = step.box;
    append(group.integers, {box.top, box.left, box.height, box.width});
    if (!step.noise) return;
    WS_CHECK(batch_.is_bytes_);
    group.integers.push_back(static_cast<std::int64_t>(group.bytes.size()));
    Rng noise = *step.noise;
    for (std::int64_t i = 0; i < batch_.shape_[0] * box.height * box.width; ++i)
      group.bytes.push_back(erasing_noise<std::uint8_t>(noise));
  }

  void collect(const ColourStep& step) {
    WS_CHECK(batch_.is_bytes_);
    using enum ColourStep::Op;
    switch (step.op) {
      case kBrightness:
        return collect(image_ops::brightness_levels(step.amount));
      case kPosterize:
        return collect(image_ops::posterize_levels(static_cast<int>(step.amount)));
      case kSolarize:
        return collect(image_ops::solarize_levels(step.amount));
      case kInvert:
        return collect(image_ops::invert_levels());
      case kContrast:
        return collect(Kind::kContrast, step.amount);
      case kSaturation:
        return collect(Kind::kSaturation, step.amount);
      case kSharpness:
        return collect(Kind::kSharpness, step.amount);
      case kHue:
        return in_group(Kind::kHue).floats.push_back(image_ops::hue_sixths(step.amount));
      case kAutocontrast:
        in_group(Kind::kAutocontrast);
        return;
      case kEqualize:
        in_group(Kind::kEqualize);
        return;
    }
  }

  void collect(const image_ops::Levels& levels) {
    std::vector<std::uint8_t>& all = in_group(Kind::kLevels).bytes;
    all.insert(all.end(), levels.begin(), levels.end());
  }

  void collect(Kind kind, double factor) {
    const image_ops::Blend blend = image_ops::blend_of(factor);
    append(in_group(kind).floats, {blend.factor, blend.rest});
  }

  template <class T>
  static void append(std::vector<T>& values, std::initializer_list<T> more) {
    values.insert(values.end(), more);
  }

  const BatchSteps& batch_;
  std::int64_t row_ = 0;
  std::map<Kind, Collected> groups_;
};

BatchSteps::BatchSteps(std::int64_t count, std::array<std::int64_t, 3> shape)
    : count_(count), shape_(shape) {}

void BatchSteps::add(std::span<const std::vector<DrawnStep>> steps, TransferBuffer& numbers) {
  WS_CHECK(static_cast<std::int64_t>(steps.size()) == count_);
  std::size_t most = 0;
  for (const auto& own : steps) most = std::max(most, own.size());
  for (std::size_t place = 0; place < most; ++place) {
    Collector collector(*this);
    for (std::int64_t i = 0; i < count_; ++i)
      if (place < steps[i].size()) collector.add(i, steps[i][place]);
    for (const Group& group : collector.finish(numbers)) {
      groups_.push_back(group);
      if (group.kind != Kind::kResizedCrop) continue;
      WS_CHECK(group.everyone);
      shape_[1] = shape_[2] = group.size;
    }
  }
}

void BatchSteps::go_on_in_floats() {
  is_bytes_ = false;
  groups_.push_back({Kind::kToFloats});
}

at::Tensor BatchSteps::apply(at::Tensor images, const at::Tensor& numbers) const {
  WS_CHECK(images.dim() == 4 && images.size(0) == count_ && images.is_contiguous() &&
           images.scalar_type() == at::kByte);
  for (const Group& group : groups_) {
    if (group.everyone) {
      images = changed(group, images, numbers);
      continue;
    }
    const at::Tensor rows = TransferBuffer::get(numbers, group.rows);
    images.index_copy_(0, rows, changed(group, images.index_select(0, rows), numbers));
  }
  return images;
}

at::Tensor BatchSteps::changed(const Group& group, const at::Tensor& images,
                               const at::Tensor& numbers) const {
  /// A row an image.
  const auto rows = [&](const Part& part) {
    return TransferBuffer::get(numbers, part).view({images.size(0), -1});
  };
  switch (group.kind) {
    case Kind::kToFloats:
      return images.to(at::kFloat);
    case Kind::kShift:
      return batch_ops::shift(images, rows(group.integers));
    case Kind::kFlipLeftRight:
      return images.flip({3});
    case Kind::kFlipTopBottom:
      return images.flip({2});
    case Kind::kWarpBilinear:
      return batch_ops::warp_bilinear(images, rows(group.doubles));
    case Kind::kWarpNearest:
      return batch_ops::warp_nearest(images, rows(group.floats));
    case Kind::kResizedCrop:
      return batch_ops::resized_crop(images, rows(group.integers), group.size);
    case Kind::kErase:
      return batch_ops::erase(images, rows(group.integers));
    case Kind::kEraseWithNoise:
      return batch_ops::erase(images, rows(group.integers),
                              TransferBuffer::get(numbers, group.bytes));
    case Kind::kLevels:
      return batch_ops::map_levels(images, rows(group.bytes));
    case Kind::kContrast:
      return batch_ops::contrast(images, rows(group.floats));
    case Kind::kSaturation:
      return batch_ops::saturation(images, rows(group.floats));
    case Kind::kSharpness:
      return batch_ops::sharpness(images, rows(group.floats));
    case Kind::kHue:
      return batch_ops::hue(images, rows(group.floats));
    case Kind::kAutocontrast:
      return batch_ops::autocontrast(images);
    case Kind::kEqualize:
      return batch_ops::equalize(images);
  }
  WS_CHECK(false, "no such operation");
  return images;
}

BatchSteps draw_batch(const Pipeline& pipeline, std::array<std::int64_t, 3> shape,
                      std::vector<Rng> rngs, TransferBuffer& numbers) {
  BatchSteps batch(static_cast<std::int64_t>(rngs.size()), shape);
  const std::size_t on_bytes = steps_on_bytes(pipeline);
  std::vector<std::vector<DrawnStep>> steps(rngs.size());
  for (std::size_t a = 0; a < pipeline.size(); ++a) {
    if (a == on_bytes) batch.go_on_in_floats();
    for (std::size_t i = 0; i < rngs.size(); ++i) {
      steps[i].clear();
      draw_augmentation(pipeline[a], batch.shape(), rngs[i], steps[i]);
    }
    batch.add(steps, numbers);
  }
  return batch;
}

}  // namespace weightsmith
