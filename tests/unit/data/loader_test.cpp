#include "weightsmith/data/loader.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <chrono>
#include <cmath>
#include <set>
#include <thread>
#include <utility>

#include "support/expect_error.h"
#include "support/images.h"

namespace weightsmith {
namespace {

/// Image i holds the bytes i, i + 1, ...; label i mod 4.
Dataset numbered(std::int64_t n) {
  Dataset set;
  set.images = (at::arange(n).view({n, 1, 1, 1}) + at::arange(16).view({1, 1, 4, 4}))
                   .to(at::kByte)
                   .contiguous();
  set.labels = at::arange(n).remainder(4);
  set.classes = 4;
  set.mean = {0.25};
  set.std = {2.0};
  set.where = "numbered";
  return set;
}

LoaderOptions options_of(int threads) {
  LoaderOptions options;
  options.batch_size = 5;
  options.seed = 11;
  options.threads = threads;
  options.prefetch = 3;
  options.pipelines = {{{Augmentation::Name::kRandomCrop}},
                       {{Augmentation::Name::kHorizontalFlip}, {Augmentation::Name::kAffine}},
                       {testing::augmentation(Augmentation::Name::kRandAugment),
                        testing::augmentation(Augmentation::Name::kRotation)},
                       {testing::augmentation(Augmentation::Name::kTrivialAugment),
                        testing::augmentation(Augmentation::Name::kMixup)}};
  return options;
}

bool same(const Batch& a, const Batch& b) {
  bool equal = a.position.epoch == b.position.epoch && a.position.batch == b.position.batch &&
               a.views.size() == b.views.size() && a.labels.size() == b.labels.size();
  for (std::size_t i = 0; equal && i < a.views.size(); ++i)
    equal = a.views[i].equal(b.views[i]) && a.labels[i].equal(b.labels[i]) &&
            a.mixing[i].share == b.mixing[i].share &&
            (!a.mixing[i].labels.defined() || a.mixing[i].labels.equal(b.mixing[i].labels));
  return equal;
}

TEST_CASE("batches do not depend on threads, prefetch or the starting point", "[data]") {
  const Dataset set = numbered(23);
  for (const bool same_samples : {true, false}) {
    INFO((same_samples ? "same samples" : "independent"));
    LoaderOptions options = options_of(1);
    options.same_samples = same_samples;
    Loader reference(set, options);
    std::vector<Batch> expected;
    for (int i = 0; i < 17; ++i) expected.push_back(reference.next());
    CHECK(expected[4].views[0].size(0) == 3);
    CHECK(expected[5].position.epoch == 1);
    CHECK_FALSE(same(expected[0], expected[5]));

    for (const int threads : {2, 5}) {
      options.threads = threads;
      options.prefetch = threads == 5 ? 1 : 7;
      Loader loader(set, options);
      for (const Batch& batch : expected) CHECK(same(loader.next(), batch));
    }
    options.threads = 2;
    options.prefetch = 3;
    for (const std::int64_t start : {1, 4, 5, 13}) {
      Loader loader(set, options, {start / 5, start % 5});
      for (std::size_t i = start; i < expected.size(); ++i) CHECK(same(loader.next(), expected[i]));
    }
  }
}

TEST_CASE("an epoch visits every sample once, shuffled anew", "[data]") {
  const Dataset set = numbered(20);
  LoaderOptions options;
  options.batch_size = 6;
  Loader loader(set, options);
  CHECK(loader.batches_per_epoch() == 4);
  at::Tensor orders[2];
  for (at::Tensor& order : orders) {
    std::vector<at::Tensor> first_pixels;
    for (int b = 0; b < 4; ++b)
      first_pixels.push_back(loader.next().views.at(0).select(1, 0).select(1, 0).select(1, 0));
    order = at::cat(first_pixels);
    const at::Tensor expected = normalised_batch(set, 0, 20).select(1, 0).select(1, 0).select(1, 0);
    CHECK(std::get<0>(order.sort()).equal(std::get<0>(expected.sort())));
    CHECK_FALSE(order.equal(expected));
  }
  CHECK_FALSE(orders[0].equal(orders[1]));

  options.shuffle = false;
  Loader in_order(set, options);
  CHECK(in_order.next().views[0].equal(normalised_batch(set, 0, 6)));
}

/// Image i holds 10 (i + 1) everywhere, label i: recognised as long as a pixel is left of it.
Dataset constants(std::int64_t n) {
  Dataset set;
  set.images = ((at::arange(n) + 1) * 10).view({n, 1, 1, 1}).expand({n, 1, 8, 8});
  set.images = set.images.to(at::kByte).contiguous();
  set.labels = at::arange(n);
  set.classes = n;
  set.where = "constants";
  return set;
}

/// Which samples of such a set a view shows; what comes in from outside is 0.
std::vector<std::int64_t> samples_shown(const at::Tensor& view) {
  const at::Tensor largest = view.flatten(1).amax(1) * 255 / 10;
  std::vector<std::int64_t> samples;
  for (std::int64_t i = 0; i < view.size(0); ++i)
    samples.push_back(std::lround(largest[i].item<double>()) - 1);
  return samples;
}

std::vector<std::int64_t> values_of(const at::Tensor& labels) {
  return {labels.data_ptr<std::int64_t>(), labels.data_ptr<std::int64_t>() + labels.size(0)};
}

/// Four views, two of them by pipelines that are alike.
LoaderOptions four_views() {
  LoaderOptions options;
  options.batch_size = 5;
  options.seed = 3;
  const auto crop = testing::augmentation(Augmentation::Name::kRandomCrop);
  options.pipelines = {
      {}, {crop}, {crop}, {crop, testing::augmentation(Augmentation::Name::kRotation)}};
  return options;
}

TEST_CASE("every view shows the same samples, augmented differently by head", "[data]") {
  const Dataset set = constants(12);
  for (const bool on_device : {false, true}) {
    LoaderOptions options = four_views();
    if (on_device) options.device = at::Device(at::kCPU);
    Loader loader(set, options);
    for (int b = 0; b < 6; ++b) {
      const Batch batch = loader.next();
      INFO("batch " << b << (on_device ? ", on a device" : ""));
      REQUIRE(batch.views.size() == 4);
      CHECK_FALSE(batch.views[1].equal(batch.views[2]));
      for (std::size_t v = 0; v < batch.views.size(); ++v) {
        INFO("view " << v);
        CHECK(samples_shown(batch.views[v]) == values_of(batch.labels[0]));
        CHECK(batch.labels[v].equal(batch.labels[0]));
      }
    }
  }
}

TEST_CASE("drawn independently, every view visits every sample once, in an order of its own",
          "[data]") {
  const Dataset set = constants(12);
  for (const bool on_device : {false, true}) {
    LoaderOptions options = four_views();
    options.same_samples = false;
    if (on_device) options.device = at::Device(at::kCPU);
    Loader loader(set, options);
    std::set<std::vector<std::int64_t>> orders;
    for (int epoch = 0; epoch < 2; ++epoch) {
      INFO("epoch " << epoch << (on_device ? ", on a device" : ""));
      std::vector<std::vector<std::int64_t>> seen(4);
      for (int b = 0; b < 3; ++b) {
        const Batch batch = loader.next();
        for (std::size_t v = 0; v < 4; ++v) {
          const std::vector<std::int64_t> shown = samples_shown(batch.views[v]);
          CHECK(shown == values_of(batch.labels[v]));
          seen[v].insert(seen[v].end(), shown.begin(), shown.end());
        }
      }
      for (std::vector<std::int64_t>& order : seen) {
        orders.insert(order);
        std::sort(order.begin(), order.end());
        CHECK(order == values_of(set.labels));
      }
    }
    CHECK(orders.size() == 2 * 4);  // no two alike
  }
}

TEST_CASE("a last batch of one sample is left out, unless it is the only one", "[data]") {
  LoaderOptions options;
  options.batch_size = 5;
  CHECK(Loader(numbered(11), options).batches_per_epoch() == 2);
  CHECK(Loader(numbered(12), options).batches_per_epoch() == 3);
  CHECK(Loader(numbered(1), options).batches_per_epoch() == 1);
}

TEST_CASE("what fails in a loader's thread reaches the consumer, every time", "[data]") {
  const Dataset set = numbered(8);
  LoaderOptions options;
  options.pipelines = {{{Augmentation::Name::kRandomCrop}}};
  options.pipelines[0][0].padding = -1;  // breaks an invariant of augment()
  options.threads = 2;
  Loader loader(set, options);
  CHECK_THROWS(loader.next());
  CHECK_THROWS(loader.next());
}

TEST_CASE("a loader that is dropped early stops at once", "[data]") {
  const Dataset set = numbered(200);
  for (int i = 0; i < 50; ++i) {
    Loader loader(set, options_of(3));
    if (i % 2 == 0) loader.next();
  }
}

TEST_CASE("pipelines are refused for samples that are not images", "[data]") {
  Dataset set = numbered(8);
  set.images = set.images.flatten(1);
  const std::string error =
      testing::error_of(ErrorKind::kConfig, [&] { Loader loader(set, options_of(1)); });
  CHECK_THAT(error, Catch::Contains("augmentations"));
  LoaderOptions options;
  options.batch_size = 4;
  CHECK(Loader(set, options).next().views[0].sizes() == at::IntArrayRef({4, 16}));
}

TEST_CASE("changes of colour are refused for floats and for other channels", "[data]") {
  LoaderOptions options;
  options.pipelines = {{testing::augmentation(Augmentation::Name::kAutoAugment)}};
  Dataset set = numbered(8);
  Loader(set, options).next();
  set.images = set.images.to(at::kFloat);
  CHECK_THAT(testing::error_of(ErrorKind::kConfig, [&] { Loader loader(set, options); }),
             Catch::Contains("autoaugment") && Catch::Contains("Float"));
  set.images = at::zeros({8, 2, 4, 4}, at::kByte);
  CHECK_THAT(testing::error_of(ErrorKind::kConfig, [&] { Loader loader(set, options); }),
             Catch::Contains("2 channels"));
  // What moves pixels takes any.
  options.pipelines = {{testing::augmentation(Augmentation::Name::kRandomCrop),
                        testing::augmentation(Augmentation::Name::kRotation),
                        testing::augmentation(Augmentation::Name::kRandomErasing)}};
  CHECK(Loader(set, options).next().views[0].sizes() == at::IntArrayRef({8, 2, 4, 4}));
}

/// Many images that differ, and pipelines that end in bytes, in floats, in another size and mixed.
std::pair<Dataset, LoaderOptions> mixed_set() {
  at::manual_seed(2);
  Dataset set = numbered(23);
  set.images = at::randint(256, {23, 3, 9, 12}, at::kByte);
  set.mean = {0.2, 0.3, 0.4};
  set.std = {0.5, 2.0, 1.5};
  LoaderOptions options = options_of(2);
  Augmentation noise = testing::augmentation(Augmentation::Name::kRandomErasing);
  noise.fill = Augmentation::Fill::kNoise;
  const auto plain = [](Augmentation::Name name) { return testing::augmentation(name); };
  options.pipelines.push_back({});
  options.pipelines.push_back({plain(Augmentation::Name::kAutoAugment), noise,
                               plain(Augmentation::Name::kMixup),
                               plain(Augmentation::Name::kCutmix)});
  options.pipelines.push_back({plain(Augmentation::Name::kRandomResizedCrop),
                               plain(Augmentation::Name::kVerticalFlip),
                               plain(Augmentation::Name::kCutmix)});
  return {set, options};
}

void check_same(const Batch& found, const Batch& expected) {
  CHECK(found.position.epoch == expected.position.epoch);
  CHECK(found.position.batch == expected.position.batch);
  REQUIRE(found.views.size() == expected.views.size());
  REQUIRE(found.labels.size() == expected.labels.size());
  for (std::size_t v = 0; v < found.views.size(); ++v) {
    INFO("view " << v);
    CHECK(found.labels[v].equal(expected.labels[v]));
    REQUIRE(found.views[v].sizes() == expected.views[v].sizes());
    CHECK(found.views[v].equal(expected.views[v]));
    CHECK(found.mixing[v].share == expected.mixing[v].share);
    REQUIRE(found.mixing[v].labels.defined() == expected.mixing[v].labels.defined());
    if (expected.mixing[v].labels.defined())
      CHECK(found.mixing[v].labels.equal(expected.mixing[v].labels));
  }
}

TEST_CASE("a device makes the batches that threads make, from any start", "[data]") {
  auto [set, options] = mixed_set();
  const at::Tensor before = set.images.clone();
  for (const bool same_samples : {true, false}) {
    INFO((same_samples ? "same samples" : "independent"));
    options.same_samples = same_samples;
    Loader reference(set, options);
    std::vector<Batch> expected;
    for (int i = 0; i < 12; ++i) expected.push_back(reference.next());
    CHECK(expected[4].labels[0].size(0) == 3);
    LoaderOptions on_device = options;
    on_device.device = at::Device(at::kCPU);
    for (const std::int64_t start : {0, 3, 5, 9})
      for (const int threads : {1, 3}) {
        on_device.threads = threads;
        Loader loader(set, on_device, {start / 5, start % 5});
        for (std::size_t i = start; i < expected.size(); ++i)
          check_same(loader.next(), expected[i]);
      }
  }
  CHECK(set.images.equal(before));
}

TEST_CASE("a device takes samples of bytes in memory, images or not", "[data]") {
  Dataset set = numbered(9);
  LoaderOptions options;
  options.batch_size = 4;
  options.shuffle = false;
  options.device = at::Device(at::kCPU);
  set.images = set.images.flatten(1);
  CHECK(Loader(set, options).next().views[0].equal(normalised_batch(set, 0, 4)));
  set.images = set.images.to(at::kFloat);
  CHECK_THAT(testing::error_of(ErrorKind::kConfig, [&] { Loader loader(set, options); }),
             Catch::Contains("augment_on") && Catch::Contains("Float") && Catch::Contains("cpu"));
}

TEST_CASE("what fails while a device's batch is drawn reaches the consumer", "[data]") {
  const Dataset set = numbered(8);
  LoaderOptions options;
  options.pipelines = {{{Augmentation::Name::kRandomCrop}}};
  options.pipelines[0][0].padding = -1;
  options.device = at::Device(at::kCPU);
  Loader loader(set, options);
  CHECK_THROWS(loader.next());
  CHECK_THROWS(loader.next());
}

TEST_CASE("a view has the size that its pipeline makes", "[data]") {
  LoaderOptions options;
  options.batch_size = 4;
  Augmentation crop = testing::augmentation(Augmentation::Name::kRandomResizedCrop);
  crop.size = 7;
  options.pipelines = {{crop, testing::augmentation(Augmentation::Name::kHorizontalFlip)}, {}};
  const Dataset set = numbered(8);
  const Batch batch = Loader(set, options).next();
  CHECK(batch.views[0].sizes() == at::IntArrayRef({4, 1, 7, 7}));
  CHECK(batch.views[1].sizes() == at::IntArrayRef({4, 1, 4, 4}));
}

}  // namespace
}  // namespace weightsmith
