#include "weightsmith/data/augment.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <numbers>
#include <set>

namespace weightsmith {
namespace {

using Name = Augmentation::Name;

at::Tensor pattern(std::int64_t c, std::int64_t h, std::int64_t w) {
  return at::arange(1, c * h * w + 1, at::kFloat).view({c, h, w});
}

at::Tensor apply(const at::Tensor& image, const Pipeline& pipeline, std::uint64_t seed) {
  at::Tensor copy = image.clone();
  Rng rng(seed);
  std::vector<float> scratch;
  augment(pipeline, {copy.data_ptr<float>(), copy.size(0), copy.size(1), copy.size(2)}, rng,
          scratch);
  return copy;
}

/// Slow twin of an affine augmentation, by its definition: rotate, scale, shift; then bilinear.
at::Tensor slow_affine(const at::Tensor& image, double degrees, double scale, double dx,
                       double dy) {
  const auto h = image.size(1);
  const auto w = image.size(2);
  const double angle = degrees * std::numbers::pi / 180;
  at::Tensor out = at::zeros_like(image);
  for (std::int64_t c = 0; c < image.size(0); ++c) {
    for (std::int64_t y = 0; y < h; ++y) {
      for (std::int64_t x = 0; x < w; ++x) {
        // Undo the steps in turn, in coordinates with y pointing up.
        const double ux = (x - dx - (w - 1) / 2.0) / scale;
        const double uy = -(y - dy - (h - 1) / 2.0) / scale;
        const double sx = std::cos(-angle) * ux - std::sin(-angle) * uy + (w - 1) / 2.0;
        const double sy = -(std::sin(-angle) * ux + std::cos(-angle) * uy) + (h - 1) / 2.0;
        double sum = 0;
        for (std::int64_t j = 0; j < h; ++j)
          for (std::int64_t i = 0; i < w; ++i)
            sum += std::max(0.0, 1 - std::abs(sy - j)) * std::max(0.0, 1 - std::abs(sx - i)) *
                   image[c][j][i].item<double>();
        out[c][y][x] = sum;
      }
    }
  }
  return out;
}

TEST_CASE("flips mirror, twice give the image back, and happen half the time", "[data]") {
  const at::Tensor image = pattern(2, 3, 4);
  Augmentation flip{Name::kHorizontalFlip};
  flip.probability = 1;
  CHECK(apply(image, {flip}, 1).equal(image.flip({2})));
  CHECK(apply(image, {flip, flip}, 1).equal(image));
  Augmentation vertical{Name::kVerticalFlip};
  vertical.probability = 1;
  CHECK(apply(image, {vertical}, 1).equal(image.flip({1})));
  CHECK(apply(image, {vertical, flip}, 1).equal(image.rot90(2, {1, 2})));
  int flipped = 0;
  for (std::uint64_t seed = 0; seed < 1000; ++seed)
    flipped += apply(image, {Augmentation{Name::kHorizontalFlip}}, seed).equal(image) ? 0 : 1;
  CHECK(flipped > 430);
  CHECK(flipped < 570);
}

TEST_CASE("a random crop is a window of the padded image, and every window occurs", "[data]") {
  const at::Tensor image = pattern(2, 4, 5);
  for (const std::int64_t padding : {0, 1, 2, 7}) {
    Augmentation crop{Name::kRandomCrop};
    crop.padding = padding;
    const at::Tensor padded = at::constant_pad_nd(image, {padding, padding, padding, padding});
    std::set<std::pair<std::int64_t, std::int64_t>> seen;
    for (std::uint64_t seed = 0; seed < 400; ++seed) {
      const at::Tensor out = apply(image, {crop}, seed);
      bool found = false;
      for (std::int64_t y = 0; y <= 2 * padding; ++y)
        for (std::int64_t x = 0; x <= 2 * padding; ++x)
          if (padded.slice(1, y, y + 4).slice(2, x, x + 5).equal(out)) {
            found = true;
            seen.emplace(y, x);
          }
      CHECK(found);
    }
    if (padding <= 2)
      CHECK(seen.size() == static_cast<std::size_t>((2 * padding + 1) * (2 * padding + 1)));
  }
}

TEST_CASE("the default padding is an eighth of the side, rounded up", "[data]") {
  for (const auto& [side, padding] : {std::pair{32, 4}, std::pair{28, 4}, std::pair{8, 1}}) {
    Augmentation automatic{Name::kRandomCrop};
    Augmentation explicit_padding{Name::kRandomCrop};
    explicit_padding.padding = padding;
    for (std::uint64_t seed = 0; seed < 20; ++seed)
      CHECK(apply(pattern(1, side, side), {automatic}, seed)
                .equal(apply(pattern(1, side, side), {explicit_padding}, seed)));
  }
}

TEST_CASE("rotations and affine maps agree with their definition", "[data]") {
  const at::Tensor image = pattern(2, 5, 6);
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    Augmentation rotation{Name::kRotation};
    rotation.degrees = 180;
    Rng rng(seed);
    const double angle = rng.uniform(-180, 180);
    CHECK(at::allclose(apply(image, {rotation}, seed), slow_affine(image, angle, 1, 0, 0), 1e-4,
                       1e-4));

    Augmentation affine{Name::kAffine};
    affine.degrees = 40;
    affine.scale = 0.5;
    affine.shift = 0.3;
    Rng draws(seed);
    const double degrees = draws.uniform(-40, 40);
    const double scale = 1 + draws.uniform(-0.5, 0.5);
    const double dx = draws.uniform(-0.3, 0.3) * 6;
    const double dy = draws.uniform(-0.3, 0.3) * 5;
    CHECK(at::allclose(apply(image, {affine}, seed), slow_affine(image, degrees, scale, dx, dy),
                       1e-4, 1e-4));
  }
}

TEST_CASE("augmentations of size zero leave the image as it is", "[data]") {
  const at::Tensor image = pattern(3, 8, 8);
  Augmentation affine{Name::kAffine};
  affine.degrees = affine.scale = affine.shift = 0;
  Augmentation rotation{Name::kRotation};
  rotation.degrees = 0;
  Augmentation crop{Name::kRandomCrop};
  crop.padding = 0;
  CHECK(apply(image, {affine, rotation, crop}, 5).equal(image));
  CHECK(apply(image, {}, 5).equal(image));
}

}  // namespace
}  // namespace weightsmith
