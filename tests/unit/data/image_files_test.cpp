#include "weightsmith/data/image_files.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <spdlog/fmt/fmt.h>

#include <catch2/catch.hpp>
#include <csignal>
#include <thread>

#include "support/expect_error.h"
#include "support/files.h"
#include "support/golden.h"
#include "support/images.h"
#include "support/temporary_folder.h"
#include "weightsmith/core/stop.h"
#include "weightsmith/data/dataset.h"
#include "weightsmith/data/loader.h"
#include "weightsmith/eval/fingerprint.h"

namespace weightsmith {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kBytesEach = 3 * 8 * 8;
constexpr std::int64_t kImages = 23;

/// Images of all kinds in two classes, to be read as 8 × 8.
DataConfig image_folder(const fs::path& folder) {
  const std::vector<std::string> kinds{"rgb.png",   "rgb.jpg",  "palette.png",     "cmyk.jpg",
                                       "alpha.png", "grey.png", "progressive.JPG", "bilevel.png"};
  for (std::int64_t i = 0; i < kImages; ++i) {
    const fs::path source = testing::golden("images/" + kinds[i % kinds.size()]);
    const fs::path at = folder / (i % 3 == 0 ? "a" : "b");
    fs::create_directories(at);
    fs::copy_file(source, at / fmt::format("{:02}{}", i, source.extension().string()));
  }
  DataConfig config;
  config.format = DataConfig::Format::kFolder;
  config.path = folder;
  config.resize = 9;
  config.crop = 8;
  config.mean = {0.4, 0.5, 0.6};
  return config;
}

/// Keeps so many images decoded.
DataConfig keeping(DataConfig config, double images) {
  config.cache_gb = images * kBytesEach / (1 << 30);
  return config;
}

at::Tensor all_of(const Dataset& set) { return stored_batch(set, 0, set.size()); }

TEST_CASE("a folder is known by the images that were read of it", "[data]") {
  const testing::TemporaryFolder folder;
  DataConfig config = image_folder(folder / "images");
  const Dataset all = load_dataset(config);
  REQUIRE(all.listing.has_value());
  CHECK(all.listing->folder == config.path);
  CHECK(all.listing->files == kImages);
  CHECK((*all.listing == list_files(config.path, all.files)));
  CHECK(all.inputs().files.empty());
  REQUIRE(all.inputs().listings.size() == 1);
  CHECK((all.inputs().listings[0] == *all.listing));
  config.limit = 4;
  const Dataset some = load_dataset(config);
  CHECK(some.listing->files == 4);
  CHECK((subset(some, {2, 1}).listing == some.listing));  // what was read stays the same

  const Dataset digits = load_dataset(DataConfig{});
  CHECK_FALSE(digits.listing.has_value());
  CHECK(digits.inputs().files == digits.files);
}

TEST_CASE("what is kept decoded of a folder changes nothing that is read", "[data]") {
  const testing::TemporaryFolder folder;
  DataConfig config = image_folder(folder.path());
  for (const bool limited : {false, true}) {
    if (limited) config.limit = 17;
    const Dataset whole = load_dataset(config);
    const std::int64_t n = limited ? 17 : kImages;
    REQUIRE(whole.images.defined());
    CHECK(whole.on_demand == nullptr);
    CHECK(whole.memory_bytes() == n * kBytesEach);
    const std::vector<std::int64_t> chosen{5, 0, 16, 5, 2};
    for (const std::int64_t kept : {0, 1, 7, 16}) {
      INFO(kept << " kept");
      const Dataset some = load_dataset(keeping(config, static_cast<double>(kept) + 0.5));
      REQUIRE(some.on_demand != nullptr);
      CHECK_FALSE(some.images.defined());
      CHECK(some.memory_bytes() == kept * kBytesEach);
      CHECK(some.labels.equal(whole.labels));
      CHECK(some.files == whole.files);
      CHECK(some.sample_shape() == whole.sample_shape());
      CHECK(some.dtype() == whole.dtype());
      CHECK(all_of(some).equal(whole.images));
      CHECK(normalised_batch(some, 4, 9).equal(normalised_batch(whole, 4, 9)));
      CHECK(all_of(subset(some, chosen)).equal(subset(whole, chosen).images));
      CHECK(all_of(subset(subset(some, chosen), {2, 0})).equal(subset(whole, {16, 5}).images));
      CHECK(Fingerprint("t").add(some).hex() == Fingerprint("t").add(whole).hex());
      CHECK(Fingerprint("t").add(subset(some, chosen)).hex() != Fingerprint("t").add(some).hex());
    }
    CHECK(load_dataset(keeping(config, static_cast<double>(n))).on_demand == nullptr);
  }
}

TEST_CASE("parts of a folder count what is kept of them", "[data]") {
  const testing::TemporaryFolder folder;
  const Dataset some = load_dataset(keeping(image_folder(folder.path()), 7));
  CHECK(subset(some, {6, 7, 8, 0}).memory_bytes() == 2 * kBytesEach);
}

TEST_CASE("batches of images on demand are those of images in memory", "[data]") {
  const testing::TemporaryFolder folder;
  const DataConfig config = image_folder(folder.path());
  const Dataset whole = load_dataset(config);
  LoaderOptions options;
  options.batch_size = 5;
  options.seed = 3;
  options.prefetch = 3;
  options.pipelines = {{{Augmentation::Name::kRandomCrop}, {Augmentation::Name::kHorizontalFlip}},
                       {testing::augmentation(Augmentation::Name::kRandAugment),
                        testing::augmentation(Augmentation::Name::kRotation)},
                       {}};
  for (const bool same_samples : {true, false}) {
    options.same_samples = same_samples;
    Loader expected(whole, options);
    std::vector<Batch> batches;
    for (int i = 0; i < 12; ++i) batches.push_back(expected.next());
    for (const double kept : {0.0, 7.0})
      for (const int threads : {1, 2, 5}) {
        INFO(kept << " kept, " << threads << " threads" << (same_samples ? "" : ", independent"));
        const Dataset some = load_dataset(keeping(config, kept));
        LoaderOptions own = options;
        own.threads = threads;
        Loader loader(some, own);
        for (const Batch& batch : batches) {
          const Batch found = loader.next();
          for (std::size_t v = 0; v < 3; ++v) {
            CHECK(found.labels[v].equal(batch.labels[v]));
            CHECK(found.views[v].equal(batch.views[v]));
          }
        }
      }
  }
}

TEST_CASE("images that cannot be read are left out whatever is kept", "[data]") {
  const testing::TemporaryFolder folder;
  DataConfig config = image_folder(folder.path());
  const std::string whole = testing::read_bytes(folder / "b" / "01.jpg");
  for (const char* name : {"a/00.png", "b/01.jpg", "b/11.jpg"})  // of those kept and not
    testing::write_bytes(folder / name, whole.substr(0, whole.size() / 2));
  testing::expect_error(ErrorKind::kInput, {"on_error"}, [&] { load_dataset(keeping(config, 0)); });
  config.on_error = DataConfig::OnError::kSkip;
  const Dataset expected = load_dataset(config);
  CHECK(expected.skipped.size() == 3);
  for (const double kept : {0.0, 4.0}) {
    const Dataset some = load_dataset(keeping(config, kept));
    CHECK(some.size() == kImages - 3);
    CHECK(some.skipped == expected.skipped);
    CHECK(some.labels.equal(expected.labels));
    CHECK(all_of(some).equal(expected.images));
  }
}

TEST_CASE("an image that is damaged after the start is an error that names it", "[data]") {
  const testing::TemporaryFolder folder;
  const Dataset some = load_dataset(keeping(image_folder(folder.path()), 3));
  const fs::path path = some.files[9];
  LoaderOptions options;
  options.batch_size = kImages;
  const auto refused = [&](const char* what) {
    INFO(what);
    const std::string name = path.filename().string();
    testing::expect_error(ErrorKind::kInput, {name, what}, [&] { all_of(some); });
    Loader loader(some, options);
    testing::expect_error(ErrorKind::kInput, {name, what}, [&] { loader.next(); });
  };
  testing::write_bytes(path, "nothing");
  refused("neither JPEG nor PNG");
  fs::remove(path);
  refused("cannot read the file");
  CHECK(stored_batch(some, 0, 9).size(0) == 9);

  // Without `resize` and `crop` sizes are the files' own.
  const testing::TemporaryFolder other;
  DataConfig plain = image_folder(other.path());
  plain.resize.reset();
  plain.crop.reset();
  plain.cache_gb = 0;
  const Dataset loaded = load_dataset(plain);
  fs::copy_file(testing::golden("images/small.png"), loaded.files[4],
                fs::copy_options::overwrite_existing);
  testing::expect_error(ErrorKind::kInput,
                        {loaded.files[4].filename().string(), "5 × 5", "12 × 17"},
                        [&] { all_of(loaded); });
}

TEST_CASE("reading a folder stops where it is asked to", "[data]") {
  const testing::TemporaryFolder folder;
  const DataConfig config = image_folder(folder.path());
  request_stop(SIGTERM);
  CHECK_THROWS_AS(load_dataset(config), Interrupted);
  request_stop(0);
  CHECK(load_dataset(config).size() == kImages);
}

TEST_CASE("only folders have a memory for decoded images", "[data]") {
  DataConfig config;
  config.cache_gb = 1;
  testing::expect_error(ErrorKind::kConfig, {"data.cache_gb", "folder"},
                        [&] { config.validate("data"); });
  config.format = DataConfig::Format::kFolder;
  config.path = "images";
  CHECK_NOTHROW(config.validate("data"));
  CHECK(config.cache_bytes() == 1 << 30);
  config.cache_gb.reset();
  CHECK(config.cache_bytes() == 2.0 * (1 << 30));
  config.cache_gb = -1;
  testing::expect_error(ErrorKind::kConfig, {"data.cache_gb"}, [&] { config.validate("data"); });
}

}  // namespace
}  // namespace weightsmith
