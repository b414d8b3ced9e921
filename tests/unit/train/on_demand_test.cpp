// Training on a folder of images that memory does not hold.
#include <catch2/catch.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/expect_error.h"
#include "support/files.h"
#include "support/golden.h"
#include "support/images.h"
#include "support/temporary_folder.h"
#include "unit/train/tiny_training.h"
#include "weightsmith/core/progress.h"
#include "weightsmith/train/trainer.h"

namespace weightsmith {
namespace {

namespace fs = std::filesystem;

TrainConfig folder_training(const fs::path& images, const fs::path& out) {
  TrainConfig config = testing::tiny_training(out);
  const std::vector<std::string> kinds{"rgb.png", "palette.png", "cmyk.jpg", "grey.png"};
  for (int i = 0; i < 30; ++i) {
    const fs::path at = images / (i % 2 == 0 ? "a" : "b");
    fs::create_directories(at);
    const std::string& kind = kinds[i % kinds.size()];
    const fs::path to = at / (std::to_string(100 + i) + fs::path(kind).extension().string());
    if (!fs::exists(to)) fs::copy_file(testing::golden("images/" + kind), to);
  }
  config.model.options = {{"width", 4}, {"channels", 3}, {"outputs", 2}};
  config.data.train = DataConfig{};
  config.data.train.format = DataConfig::Format::kFolder;
  config.data.train.path = images;
  config.data.train.resize = 8;
  config.data.test = config.data.train;
  config.data.validation = 0.2;
  config.method.heads = 2;
  config.method.batch_norm = NormMode::kRecompute;
  config.augmentations = {{{Augmentation::Name::kRandomCrop}},
                          {testing::augmentation(Augmentation::Name::kTrivialAugment)}};
  config.epochs = 2;
  config.batch_size = 7;
  return config;
}

void keep(TrainConfig& config, double images) {
  const double gb = images * 3 * 8 * 8 / (1 << 30);
  config.data.train.cache_gb = gb;
  config.data.test->cache_gb = gb;
}

TEST_CASE("weights do not depend on how many images are kept decoded", "[train]") {
  const testing::TemporaryFolder folder;
  TrainConfig config = folder_training(folder / "images", folder / "whole");
  NoProgress progress;
  const TrainResult expected = train(config, {}, progress);
  const std::string weights = testing::read_bytes(expected.weights);
  const nlohmann::json plan = training_plan(config, {});
  CHECK(plan["training_samples"] == 24);

  for (const double kept : {0.0, 11.0}) {
    INFO(kept << " kept");
    keep(config, kept);
    config.out = folder / ("kept-" + std::to_string(static_cast<int>(kept)));
    // Training and validation samples are all images, each kept once.
    const auto saved = static_cast<std::int64_t>((30 - kept) * 3 * 8 * 8);
    CHECK(plan["estimated_memory_bytes"].get<std::int64_t>() -
              training_plan(config, {})["estimated_memory_bytes"].get<std::int64_t>() ==
          2 * saved);
    const TrainResult found = train(config, {}, progress);
    CHECK(testing::read_bytes(found.weights) == weights);
    CHECK(found.validation->loss == expected.validation->loss);
    CHECK(found.test->loss == expected.test->loss);
  }
}

TEST_CASE("a device does not augment images that are not all in memory", "[train]") {
  const testing::TemporaryFolder folder;
  TrainConfig config = folder_training(folder / "images", folder / "out");
  config.augment_on = AugmentOn::kDevice;
  CHECK(training_plan(config, {})["training_samples"] == 24);
  keep(config, 11);
  NoProgress progress;
  for (const bool plan : {false, true})
    testing::expect_error(ErrorKind::kConfig,
                          {"augment_on", "decoded on demand", "cache_gb", "cpu"}, [&] {
                            if (plan)
                              training_plan(config, {});
                            else
                              train(config, {}, progress);
                          });
  CHECK_FALSE(fs::exists(config.out));
}

TEST_CASE("a run goes on with another memory for images", "[train]") {
  const testing::TemporaryFolder folder;
  TrainConfig config = folder_training(folder / "images", folder / "out");
  const nlohmann::json lasting = lasting_config(config);
  NoProgress progress;
  train(config, {}, progress);
  keep(config, 5);
  CHECK(lasting_config(config) == lasting);
  TrainOptions options;
  options.resume = true;
  CHECK(train(config, options, progress).resumed_from->epoch == 2);
}

}  // namespace
}  // namespace weightsmith
