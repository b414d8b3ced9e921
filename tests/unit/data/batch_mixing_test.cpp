#include "weightsmith/data/batch_mixing.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <cmath>

#include "support/images.h"

namespace weightsmith {
namespace {

using Name = Augmentation::Name;

TEST_CASE("beta variates have the moments of their distribution", "[data]") {
  for (const double alpha : {0.1, 0.5, 1.0, 4.0}) {
    INFO(alpha);
    constexpr int kDraws = 40000;
    double sum = 0;
    double squares = 0;
    Rng rng(3);
    for (int i = 0; i < kDraws; ++i) {
      const double x = draw_beta(alpha, rng);
      REQUIRE((x >= 0 && x <= 1));
      sum += x;
      squares += (x - 0.5) * (x - 0.5);
    }
    const double variance = 1 / (4 * (2 * alpha + 1));
    CHECK(sum / kDraws == Approx(0.5).margin(5 * std::sqrt(variance / kDraws)));
    CHECK(squares / kDraws == Approx(variance).epsilon(0.03));
  }
}

TEST_CASE("mixup blends every image with a partner, whose label it gets", "[data]") {
  // Image i holds 10 · i, so that a value tells share and partner.
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    at::Tensor images =
        (at::arange(6).view({6, 1, 1, 1}) * 10).to(at::kFloat).expand({6, 2, 3, 4}).contiguous();
    const at::Tensor before = images.clone();
    const at::Tensor labels = at::arange(6) + 100;
    Rng rng(seed);
    const Mixing mixing = mix_batch({testing::augmentation(Name::kMixup)}, images, labels, rng);
    REQUIRE(mixing.labels.defined());
    CHECK(std::get<0>(mixing.labels.sort()).equal(labels));  // a permutation
    const at::Tensor partners = before.index_select(0, mixing.labels - 100);
    CHECK(at::allclose(images, before * mixing.share + partners * (1 - mixing.share), 1e-5, 1e-4));
  }
}

TEST_CASE("cutmix pastes a box of a partner; the share is the area that is left", "[data]") {
  double least = 1;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    at::Tensor images =
        at::arange(1, 6).view({5, 1, 1, 1}).to(at::kFloat).expand({5, 2, 8, 6}).contiguous();
    const at::Tensor labels = at::arange(1, 6);
    Rng rng(seed);
    const Mixing mixing = mix_batch({testing::augmentation(Name::kCutmix)}, images, labels, rng);
    for (std::int64_t i = 0; i < 5; ++i) {
      const double partner = mixing.labels[i].item<double>();
      const at::Tensor pasted = images[i].ne(static_cast<double>(i + 1));
      CHECK((images[i].eq(partner) | ~pasted).all().item<bool>());
      if (partner == static_cast<double>(i + 1)) continue;
      CHECK(pasted.to(at::kDouble).mean().item<double>() == Approx(1 - mixing.share));
      // A box: as many rows times columns as there are pixels.
      const at::Tensor plane = pasted[0];
      CHECK(plane.any(1).sum().item<std::int64_t>() * plane.any(0).sum().item<std::int64_t>() ==
            plane.sum().item<std::int64_t>());
    }
    least = std::min(least, mixing.share);
  }
  CHECK(least < 0.3);
}

TEST_CASE("tensors are mixed as they would be value by value", "[data]") {
  const Pipeline pipeline{testing::augmentation(Name::kMixup),
                          testing::augmentation(Name::kCutmix)};
  int cut = 0;
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    at::Tensor images = at::rand({7, 3, 9, 5});
    at::Tensor tensors = images.clone();
    Rng rng(seed);
    const DrawnMixing drawn = draw_mixing(pipeline, 7, 9, 5, rng);
    cut += drawn.patch ? 1 : 0;
    mix_tensors(drawn, at::tensor(drawn.partners, at::kLong), tensors);
    Rng again(seed);
    const Mixing mixing = mix_batch(pipeline, images, at::arange(7), again);
    CHECK(mixing.share == drawn.share);
    CHECK(mixing.labels.equal(at::tensor(drawn.partners, at::kLong)));
    CHECK(tensors.equal(images));
    CHECK(again.next() == rng.next());
  }
  CHECK(cut > 5);
  CHECK(cut < 35);
}

TEST_CASE("both ways of mixing take turns, none leaves the batch alone", "[data]") {
  int cut = 0;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    at::Tensor images =
        at::arange(1, 4).view({3, 1, 1, 1}).to(at::kFloat).expand({3, 1, 9, 9}).contiguous();
    Rng rng(seed);
    mix_batch({testing::augmentation(Name::kMixup), testing::augmentation(Name::kCutmix)}, images,
              at::arange(3), rng);
    cut += images.eq(images.round()).all().item<bool>() ? 1 : 0;
  }
  CHECK(cut > 70);
  CHECK(cut < 150);  // some mixups are whole numbers, or of each image with itself
  at::Tensor images = at::ones({2, 1, 2, 2});
  Rng rng(0);
  CHECK_FALSE(mix_batch({testing::augmentation(Name::kHorizontalFlip)}, images, at::arange(2), rng)
                  .labels.defined());
}

}  // namespace
}  // namespace weightsmith
