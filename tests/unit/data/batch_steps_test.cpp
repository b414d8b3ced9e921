// Steps applied to whole batches against the same steps applied image by image.
#include "weightsmith/data/batch_steps.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <string>
#include <utility>

#include "support/images.h"

namespace weightsmith {
namespace {

using Name = Augmentation::Name;
using Steps = std::vector<std::vector<DrawnStep>>;

/// Images of many kinds, one after the other: noise, smooth, two levels, one level, dark noise.
at::Tensor assorted(std::int64_t count, std::int64_t c, std::int64_t h, std::int64_t w) {
  at::manual_seed(5);
  std::vector<at::Tensor> images;
  for (std::int64_t i = 0; i < count; ++i) {
    const at::Tensor noise = at::rand({c, h, w}) * 256;
    switch (i % 5) {
      case 0:
        images.push_back(noise);
        break;
      case 1:
        images.push_back(at::upsample_bilinear2d(at::rand({1, c, 4, 5}) * 256, {h, w}, true)[0]);
        break;
      case 2:
        images.push_back(noise.gt(200) * 90 + 30);
        break;
      case 3:
        images.push_back(at::full({c, h, w}, static_cast<double>(i % 256)));
        break;
      default:
        images.push_back(noise / 7);
    }
  }
  return at::stack(images).clamp(0, 255).to(at::kByte);
}

/// Every operation of the policies at every magnitude of both ranges with both signs, and what else
/// there is, at many strengths; those that change the size excepted.
std::vector<DrawnStep> every_step(std::int64_t c, std::int64_t h, std::int64_t w) {
  std::vector<DrawnStep> all;
  for (const auto& [op, name] : enum_names(PolicyOp{}))
    for (const bool wide : {false, true}) {
      std::vector<float> magnitudes = policy_magnitudes(op, 31, wide, h, w);
      if (magnitudes.size() == 1) magnitudes.resize(20);  // to meet images of every kind
      for (const double magnitude : magnitudes)
        for (const double sign : {1.0, -1.0})
          if (sign > 0 || is_signed(op))
            if (const auto step = policy_step(op, sign * magnitude, h, w)) all.push_back(*step);
    }
  using Op = ColourStep::Op;
  Rng rng(8);
  for (int i = 0; i < 40; ++i) {
    for (const Op op : {Op::kBrightness, Op::kContrast, Op::kSaturation})
      all.emplace_back(ColourStep{op, rng.uniform(0, 3)});
    all.emplace_back(ColourStep{Op::kHue, rng.uniform(-0.5, 0.5)});
    all.emplace_back(ShiftStep{static_cast<std::int64_t>(rng.below(2 * h)) - h,
                               static_cast<std::int64_t>(rng.below(2 * w)) - w});
    all.emplace_back(FlipStep{i % 2 == 0});
    all.emplace_back(WarpStep{image_ops::inverse_affine(rng.uniform(-180, 180), rng.uniform(0.3, 3),
                                                        rng.uniform(-9, 9), rng.uniform(-9, 9)),
                              false});
    const auto box = image_ops::random_box(rng, h, w, {0.02, 0.5}, {0.3, 3.3});
    if (!box) continue;
    all.emplace_back(EraseStep{*box, std::nullopt});
    all.emplace_back(EraseStep{*box, rng});
    rng.skip(static_cast<std::uint64_t>(c * box->height * box->width));
  }
  for (const double turn : {-0.5, -1.0 / 3, -1.0 / 6, 0.0, 1.0 / 6, 1.0 / 3, 0.5})
    all.emplace_back(ColourStep{Op::kHue, turn});
  return all;
}

std::vector<std::pair<std::int64_t, std::int64_t>> sizes() { return {{32, 32}, {17, 23}}; }

TEST_CASE("a batch becomes what its images become one by one, whatever the step", "[data]") {
  for (const auto& [h, w] : sizes()) {
    for (const std::int64_t c : {1, 3}) {
      INFO(c << " x " << h << " x " << w);
      // In any order, each image with steps and pixels of its own.
      const std::vector<DrawnStep> all = every_step(c, h, w);
      Rng rng(21);
      Steps steps;
      for (const std::int64_t which :
           random_permutation(static_cast<std::int64_t>(all.size()), rng))
        steps.push_back({all[which]});
      const at::Tensor images = assorted(static_cast<std::int64_t>(steps.size()), c, h, w);
      const at::Tensor singly = testing::applied_singly(images, steps);
      const at::Tensor together = testing::applied_together(images, steps);
      REQUIRE(together.scalar_type() == at::kByte);
      REQUIRE(together.sizes() == singly.sizes());
      const at::Tensor differ = together.ne(singly).flatten(1).any(1);
      for (std::int64_t i = 0; i < differ.size(0); ++i)
        if (differ[i].item<bool>())
          FAIL_CHECK("image " << i << ", step of kind " << steps[i][0].index() << ": "
                              << (together[i].to(at::kInt) - singly[i].to(at::kInt)).abs().max());
      CHECK(singly.ne(images).flatten(1).any(1).sum().item<std::int64_t>() >
            images.size(0) / 2);  // most steps change something
    }
  }
}

TEST_CASE("images of a batch go through any number of steps, in their own order", "[data]") {
  const std::int64_t c = 3;
  for (const auto& [h, w] : sizes()) {
    const std::vector<DrawnStep> all = every_step(c, h, w);
    Rng rng(3);
    Steps steps(60);
    for (auto& own : steps)
      for (std::uint64_t i = rng.below(6); i > 0; --i) own.push_back(all[rng.below(all.size())]);
    const at::Tensor images = assorted(60, c, h, w);
    CHECK(testing::applied_together(images, steps).equal(testing::applied_singly(images, steps)));
  }
}

TEST_CASE("resized crops of a batch have boxes of their own", "[data]") {
  for (const auto& [h, w] : sizes())
    for (const std::int64_t size : {7, 32, 41}) {
      Rng rng(6);
      Steps steps(50);
      for (auto& own : steps)
        own.push_back(ResizedCropStep{image_ops::random_box(rng, h, w, {0.02, 1}, {0.5, 2})
                                          .value_or(image_ops::Box{0, 0, h, w}),
                                      size});
      const at::Tensor images = assorted(50, 3, h, w);
      CHECK(testing::applied_together(images, steps).equal(testing::applied_singly(images, steps)));
    }
}

/// A view of every image by itself, as the loader makes it on the CPU; float32.
at::Tensor augmented_singly(const at::Tensor& images, const Pipeline& pipeline,
                            std::vector<Rng> rngs) {
  const std::span<const Augmentation> steps(pipeline);
  const std::size_t on_bytes = steps_on_bytes(pipeline);
  std::vector<at::Tensor> views;
  for (std::size_t i = 0; i < rngs.size(); ++i) {
    auto bytes = testing::image_of<std::uint8_t>(images[static_cast<std::int64_t>(i)]);
    augment(steps.first(on_bytes), bytes, rngs[i]);
    auto floats = testing::image_of<float>(testing::tensor_of(bytes).to(at::kFloat));
    augment(steps.subspan(on_bytes), floats, rngs[i]);
    views.push_back(testing::tensor_of(floats));
  }
  return at::stack(views);
}

TEST_CASE("every pipeline draws and makes the same for a batch as for its images", "[data]") {
  std::vector<Pipeline> pipelines;
  for (const auto& [name, text] : enum_names(Name{}))
    pipelines.push_back({testing::augmentation(name)});
  Augmentation noise = testing::augmentation(Name::kRandomErasing);
  noise.fill = Augmentation::Fill::kNoise;
  Augmentation imagenet = testing::augmentation(Name::kAutoAugment);
  imagenet.policy = AutoAugmentPolicy::kImageNet;
  Augmentation strong = testing::augmentation(Name::kRandAugment);
  strong.operations = 4;
  strong.magnitude = 30;
  Augmentation small = testing::augmentation(Name::kRandomResizedCrop);
  small.size = 12;
  const auto plain = [](Name name) { return testing::augmentation(name); };
  pipelines.push_back({plain(Name::kRandomCrop), plain(Name::kHorizontalFlip), imagenet, noise});
  // Noise draws as many numbers as it fills values: what comes after must not move.
  pipelines.push_back({noise, strong, plain(Name::kRotation), plain(Name::kVerticalFlip)});
  pipelines.push_back({plain(Name::kHorizontalFlip), small, plain(Name::kColorJitter),
                       plain(Name::kRandomCrop), noise});
  pipelines.push_back({small, plain(Name::kAffine), plain(Name::kHorizontalFlip),
                       plain(Name::kRandomCrop), plain(Name::kRotation)});
  for (const auto& [h, w] : sizes()) {
    for (const std::int64_t c : {1, 3}) {
      constexpr std::int64_t kCount = 70;
      const at::Tensor images = assorted(kCount, c, h, w);
      for (const Pipeline& pipeline : pipelines) {
        INFO(enum_name(pipeline.front().name)
             << " and " << pipeline.size() - 1 << " more on " << c << " x " << h << " x " << w);
        std::vector<Rng> rngs;
        for (std::uint64_t i = 0; i < kCount; ++i) rngs.push_back(Rng(4, {i}));
        TransferBuffer numbers;
        const BatchSteps steps = draw_batch(pipeline, {c, h, w}, rngs, numbers);
        const at::Tensor made = steps.apply(images.clone(), numbers.finish(at::kCPU));
        const at::Tensor expected = augmented_singly(images, pipeline, rngs);
        const bool rounds = steps_on_bytes(pipeline) == pipeline.size();
        CHECK(made.scalar_type() == (rounds ? at::kByte : at::kFloat));
        REQUIRE(made.sizes() == expected.sizes());
        const auto [channels, height, width] = steps.shape();
        CHECK(expected.sizes() == at::IntArrayRef({kCount, channels, height, width}));
        CHECK(made.to(at::kFloat).equal(expected));
      }
    }
  }
}

TEST_CASE("a batch of one image, and images without steps", "[data]") {
  const at::Tensor images = assorted(5, 3, 6, 9);
  CHECK(testing::applied_together(images, Steps(5)).equal(images));
  const Steps one{{ShiftStep{1, -2}, FlipStep{false}}};
  CHECK(testing::applied_together(images.narrow(0, 0, 1), one)
            .equal(testing::applied_singly(images.narrow(0, 0, 1), one)));
  // Too small for a neighbourhood.
  const at::Tensor narrow = assorted(5, 3, 6, 2);
  const Steps sharper(5, {ColourStep{ColourStep::Op::kSharpness, 1.9}});
  CHECK(testing::applied_together(narrow, sharper).equal(narrow));
}

TEST_CASE("arrays of any type come out of a transfer as they went in", "[data]") {
  TransferBuffer buffer;
  const std::vector<std::uint8_t> bytes{1, 2, 255};
  const std::vector<double> doubles{0.1, -2};
  const std::vector<float> floats{3.5F};
  const std::vector<std::int64_t> integers{-7, 1LL << 40};
  const auto a = buffer.add(bytes);
  const auto b = buffer.add(doubles);
  const auto c = buffer.add(floats);
  const auto d = buffer.add(integers);
  const auto e = buffer.add(std::vector<float>{});
  const at::Tensor all = buffer.finish(at::kCPU);
  CHECK(TransferBuffer::get(all, a).equal(at::tensor(bytes)));
  CHECK(TransferBuffer::get(all, b).equal(at::tensor(doubles, at::kDouble)));
  CHECK(TransferBuffer::get(all, c).equal(at::tensor(floats)));
  CHECK(TransferBuffer::get(all, d).equal(at::tensor(integers, at::kLong)));
  CHECK(e.count == 0);
}

}  // namespace
}  // namespace weightsmith
