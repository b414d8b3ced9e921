#include "weightsmith/data/augment.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <numbers>
#include <set>
#include <span>

#include "support/images.h"

namespace weightsmith {
namespace {

using Name = Augmentation::Name;

at::Tensor pattern(std::int64_t c, std::int64_t h, std::int64_t w) {
  return at::arange(1, c * h * w + 1, at::kFloat).view({c, h, w});
}

at::Tensor apply(const at::Tensor& image, const Pipeline& pipeline, std::uint64_t seed) {
  Rng rng(seed);
  Image<float> values = testing::image_of<float>(image);
  augment(std::span<const Augmentation>(pipeline), values, rng);
  return testing::tensor_of(values);
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

at::Tensor apply_to_bytes(const at::Tensor& image, const Pipeline& pipeline, std::uint64_t seed) {
  Rng rng(seed);
  Image<std::uint8_t> bytes = testing::image_of<std::uint8_t>(image.to(at::kByte));
  augment(std::span<const Augmentation>(pipeline), bytes, rng);
  return testing::tensor_of(bytes);
}

TEST_CASE("bytes and floats go the same way, bytes rounded", "[data]") {
  const at::Tensor image = pattern(3, 7, 9);
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    const Pipeline exact{
        testing::augmentation(Name::kRandomCrop), testing::augmentation(Name::kHorizontalFlip),
        testing::augmentation(Name::kVerticalFlip), testing::augmentation(Name::kRandomErasing)};
    CHECK(apply_to_bytes(image, exact, seed).to(at::kFloat).equal(apply(image, exact, seed)));
    for (const Name name : {Name::kRotation, Name::kAffine, Name::kRandomResizedCrop}) {
      const at::Tensor floats = apply(image, {testing::augmentation(name)}, seed);
      const at::Tensor bytes = apply_to_bytes(image, {testing::augmentation(name)}, seed);
      CHECK(bytes.sizes() == floats.sizes());
      CHECK((bytes.to(at::kFloat) - floats).abs().max().item<double>() <= 0.5);
    }
  }
}

TEST_CASE("a pipeline works on bytes until all that is left can be done on floats", "[data]") {
  const Augmentation crop = testing::augmentation(Name::kRandomCrop);
  const Augmentation rotation = testing::augmentation(Name::kRotation);
  const Augmentation policy = testing::augmentation(Name::kAutoAugment);
  CHECK(steps_on_bytes({crop, crop}) == 2);
  CHECK(steps_on_bytes({crop, rotation, crop}) == 1);
  CHECK(steps_on_bytes({rotation, policy, crop, rotation}) == 3);
  CHECK(steps_on_bytes({rotation, testing::augmentation(Name::kRandomErasing)}) == 2);
  CHECK(steps_on_bytes({}) == 0);
}

TEST_CASE("a random resized crop shows a box of the image in the size asked for", "[data]") {
  // Values are coordinates, so that a corner of the result tells where the box began.
  const at::Tensor image = at::stack({at::arange(40.0).view({1, 40}).expand({30, 40}),
                                      at::arange(30.0).view({30, 1}).expand({30, 40})})
                               .to(at::kFloat);
  Augmentation crop = testing::augmentation(Name::kRandomResizedCrop);
  crop.size = 12;
  CHECK(augmented_size({crop, testing::augmentation(Name::kHorizontalFlip)}, 30, 40) ==
        std::array<std::int64_t, 2>{12, 12});
  double smallest = 1;
  double largest = 0;
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    const at::Tensor out = apply(image, {crop}, seed);
    REQUIRE(out.sizes() == at::IntArrayRef({2, 12, 12}));
    const double width = (out[0][0][7] - out[0][0][4]).item<double>() * 4;  // of 12 steps
    const double height = (out[1][7][0] - out[1][4][0]).item<double>() * 4;
    CHECK(width / height > 0.75 - 0.15);
    CHECK(width / height < 4.0 / 3 + 0.15);
    smallest = std::min(smallest, width * height / 1200);
    largest = std::max(largest, width * height / 1200);
  }
  CHECK(smallest < 0.15);
  CHECK(smallest > 0.05);
  CHECK(largest > 0.8);
  CHECK(largest <= 1.001);
  crop.crop_area = {1, 1};
  crop.crop_ratio = {4.0 / 3, 4.0 / 3};
  crop.size = 30;
  const at::Tensor whole = apply(image, {crop}, 1);
  CHECK(whole[1].equal(image[1].slice(1, 0, 30)));  // all rows; columns are resized
}

TEST_CASE("erasing overwrites one box, with its probability", "[data]") {
  const at::Tensor image = pattern(2, 16, 16).remainder(200) + 20;
  Augmentation erase = testing::augmentation(Name::kRandomErasing);
  int erased = 0;
  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    const at::Tensor out = apply_to_bytes(image, {erase}, seed);
    const at::Tensor gone = out.ne(image.to(at::kByte));
    if (!gone.any().item<bool>()) continue;
    ++erased;
    CHECK(out.masked_select(gone).eq(0).all().item<bool>());
    CHECK(gone[0].equal(gone[1]));
    const auto count = gone[0].sum().item<std::int64_t>();
    CHECK(gone[0].any(0).sum().item<std::int64_t>() * gone[0].any(1).sum().item<std::int64_t>() ==
          count);
    CHECK(count <= 0.4 * 256);
  }
  CHECK(erased > 150);
  CHECK(erased < 250);
  erase.probability = 1;
  erase.fill = Augmentation::Fill::kNoise;
  const at::Tensor noisy = apply_to_bytes(image, {erase}, 3);
  CHECK(noisy.masked_select(noisy.ne(image.to(at::kByte))).to(at::kFloat).std().item<double>() >
        30);
}

TEST_CASE("colour jitter of no strength changes nothing, else it stays within bytes", "[data]") {
  const at::Tensor image = pattern(3, 6, 6).remainder(256);
  Augmentation jitter = testing::augmentation(Name::kColorJitter);
  int changed = 0;
  for (std::uint64_t seed = 0; seed < 20; ++seed)
    changed += apply_to_bytes(image, {jitter}, seed).equal(image.to(at::kByte)) ? 0 : 1;
  CHECK(changed == 20);
  jitter.brightness = jitter.contrast = jitter.saturation = jitter.hue = 0;
  CHECK(apply_to_bytes(image, {jitter}, 1).equal(image.to(at::kByte)));
}

}  // namespace
}  // namespace weightsmith
