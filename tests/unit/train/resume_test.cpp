// Trainings that are stopped, killed or damaged, and go on.
#include "weightsmith/train/trainer.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "support/expect_error.h"
#include "support/temporary_folder.h"
#include "unit/train/trainer_runs.h"
#include "weightsmith/core/progress.h"
#include "weightsmith/core/rng.h"
#include "weightsmith/core/stop.h"
#include "weightsmith/tensor/safetensors.h"
#include "weightsmith/train/checkpoint.h"
#include "weightsmith/train/train_data.h"

namespace weightsmith {
namespace {

using namespace testing;

TEST_CASE("mixed batches train alike in parts, and to the same bits when resumed", "[train]") {
  const TemporaryFolder folder;
  NoProgress progress;
  TrainConfig config = tiny_training(folder / "whole");
  config.model.options["norm"] = "none";  // batch norms see the parts
  config.method.type = MethodConfig::Type::kSgd;
  config.epochs = 2;
  config.augmentations = {{augmentation(Augmentation::Name::kRandAugment),
                           augmentation(Augmentation::Name::kMixup),
                           augmentation(Augmentation::Name::kCutmix)}};
  train(config, {}, progress);

  config.out = folder / "parts";
  config.optimizer.accumulate = 3;
  train(config, {}, progress);
  const TensorMap whole = weights_of(folder / "whole");
  for (const auto& [name, tensor] : weights_of(folder / "parts")) {
    INFO(name);
    CHECK(at::allclose(tensor, whole.at(name), 1e-4, 1e-5));
  }

  config.out = folder / "resumed";
  config.optimizer.accumulate = 1;
  StopAt stop(3);
  CHECK_THROWS_AS(train(config, {}, stop), Interrupted);
  request_stop(0);
  TrainOptions resume;
  resume.resume = true;
  train(config, resume, progress);
  CHECK(same(weights_of(folder / "resumed"), whole));

  // Weights that stay as they are: the loss of the epoch by the definition.
  config.out = folder / "still";
  config.epochs = 1;
  config.optimizer.lr = 1e-12;
  config.schedule.min_lr = 0;
  const double loss = train(config, {}, progress).train_loss;
  const TrainData data = load_train_data(config.data, config.seed);
  LoaderOptions options;
  options.batch_size = config.batch_size;
  options.pipelines = config.augmentations;
  Loader loader(data.train, options);
  ScriptModel model = ScriptModel::load(config.model, {});
  double expected = 0;
  for (std::int64_t b = 0; b < loader.batches_per_epoch(); ++b) {
    const Batch batch = loader.next();
    const at::Tensor scores = at::log_softmax(model.forward(batch.views[0]), 1).detach();
    const auto mean_loss = [&](const at::Tensor& labels) {
      return -scores.gather(1, labels.unsqueeze(1)).mean().item<double>();
    };
    const double share = batch.mixing[0].share;
    expected +=
        share * mean_loss(batch.labels[0]) + (1 - share) * mean_loss(batch.mixing[0].labels);
  }
  CHECK(loss == Approx(expected / static_cast<double>(loader.batches_per_epoch())).epsilon(1e-5));
}

TEST_CASE("a run of any method stopped anywhere and resumed ends with the same bits", "[train]") {
  TemporaryFolder folder;
  for (auto& [name, config] : all_kinds_of_runs(folder.path())) {
    INFO(name);
    train_quietly(config);
    const TensorMap expected = weights_of(config.out);
    const auto rows = metrics_of(config.out);
    const TensorMap best = network_of(config.out / "model-best.pt");
    // 3 epochs of 3 batches, each with at least one evaluation, report 12 times and more: stop once
    // at every report (or every third), and at random ones until the end.
    Rng rng(4);
    const std::int64_t apart = name == "lookaround" || name == "swad every batch" ? 1 : 3;
    for (std::int64_t first = 1; first <= 12; first += apart) {
      config.out = folder / ("stopped" + std::to_string(first));
      bool resume = false;
      int stops = 0;
      for (std::int64_t at = first;; at = 1 + static_cast<std::int64_t>(rng.below(5))) {
        StopAt progress(at);
        TrainOptions options;
        options.resume = resume;
        options.losses_together = first % 2 == 0 ? 4 : 1;  // as on a GPU, or as here
        try {
          train(config, options, progress);
          request_stop(0);
          break;
        } catch (const Interrupted& interrupted) {
          CHECK(interrupted.signal() == 15);
          CHECK_FALSE(checkpoints_in(config.out).empty());
          request_stop(0);
          resume = true;
          ++stops;
        }
      }
      CHECK(stops >= (first < 12 ? 1 : 0));
      CHECK(same(weights_of(config.out), expected));
      CHECK(metrics_of(config.out) == rows);
      CHECK(same(network_of(config.out / "model-best.pt"), best));
      std::filesystem::remove_all(config.out);
    }
  }
}

TEST_CASE("resuming a finished run writes its results again", "[train]") {
  TemporaryFolder folder;
  const TrainConfig config = small_config(folder / "run");
  train_quietly(config);
  const TensorMap expected = weights_of(config.out);
  const auto rows = metrics_of(config.out);
  std::filesystem::remove(config.out / "model.safetensors");
  std::filesystem::remove(config.out / "metrics.jsonl");
  NoProgress progress;
  const TrainResult result = train(config, {at::kCPU, true}, progress);
  CHECK(result.resumed_from->epoch == 3);
  CHECK(same(weights_of(config.out), expected));
  CHECK(metrics_of(config.out) == rows);
}

TEST_CASE("a run is resumed with its own configuration, or started anew", "[train]") {
  TemporaryFolder folder;
  TrainConfig config = small_config(folder / "run");
  train_quietly(config);
  const TensorMap before = weights_of(config.out);
  config.optimizer.lr = 0.05;
  const std::string error = error_of(ErrorKind::kConfig, [&] {
    NoProgress progress;
    train(config, {at::kCPU, true}, progress);
  });
  CHECK_THAT(error, Catch::Contains("optimizer.lr"));
  // Checkpoints are never removed unasked.
  expect_error(ErrorKind::kConfig, {"checkpoint-", "--overwrite"}, [&] { train_quietly(config); });
  CHECK(same(weights_of(config.out), before));
  TrainOptions anew;
  anew.overwrite = true;
  NoProgress progress;
  train(config, anew, progress);
  CHECK_FALSE(same(weights_of(config.out), before));
}

TEST_CASE("a run is resumed with its own data", "[train]") {
  TemporaryFolder folder;
  TrainConfig config = small_config(folder / "run");
  const auto file = folder / "data.safetensors";
  show_colours(config, file);
  train_quietly(config);
  const TensorMap expected = weights_of(config.out);
  const TensorMap data = read_safetensors(file).tensors;
  const auto resume = [&] {
    NoProgress progress;
    train(config, {at::kCPU, true}, progress);
  };
  TensorMap other = data;
  other["labels"] = data.at("labels").flip(0);
  write_safetensors(file, other);
  expect_error(ErrorKind::kInput, {"data.t", "checkpoint-", "--overwrite"}, resume);
  write_safetensors(file, {{"images", data.at("images").narrow(0, 0, 89)},
                           {"labels", data.at("labels").narrow(0, 0, 89)}});
  config.data.train.limit = 50;
  expect_error(ErrorKind::kInput, {"data.t", "checkpoint-"}, resume);
  write_safetensors(file, data);
  resume();
  CHECK(same(weights_of(config.out), expected));

  // Of an older version, which did not keep what its data were.
  for (const auto& path : checkpoints_in(config.out)) {
    Checkpoint older = read_checkpoint(path);
    REQUIRE(older.data.contains("train"));
    older.data = nullptr;
    write_checkpoint(config.out, older, 2);
  }
  resume();
  CHECK(same(weights_of(config.out), expected));
}

TEST_CASE("a damaged checkpoint is passed over for the one before", "[train]") {
  TemporaryFolder folder;
  const TrainConfig config = small_config(folder / "run");
  train_quietly(config);
  const TensorMap expected = weights_of(config.out);
  const auto checkpoints = checkpoints_in(config.out);
  REQUIRE(checkpoints.size() == 2);
  std::filesystem::resize_file(checkpoints[0], 100);
  Warnings progress;
  const TrainResult result = train(config, {at::kCPU, true}, progress);
  CHECK_THAT(progress.text,
             Catch::Contains(checkpoints[0].string()) &&
                 Catch::Contains("going on from " + checkpoints[1].filename().string()));
  CHECK(result.resumed_from->epoch == 2);
  CHECK(same(weights_of(config.out), expected));

  // With none left to go on from, the newest is what is wrong.
  for (const auto& path : checkpoints_in(config.out)) std::filesystem::resize_file(path, 100);
  expect_error(ErrorKind::kInput, {checkpoints[0].string()}, [&] {
    train(config, {at::kCPU, true}, progress);
  });
}

TEST_CASE("weights that are lost never replace the last good checkpoint", "[train]") {
  TemporaryFolder folder;
  for (const bool scored : {false, true}) {
    TrainConfig config = small_config(folder / std::to_string(static_cast<int>(scored)));
    // The rate of the averaged epochs makes an end of the second: its single batch has a finite
    // loss and leaves weights that are not.
    config.method.type = MethodConfig::Type::kSwa;
    config.method.start_epoch = 1;
    config.method.lr = 1e39;  // more than a float holds
    config.method.anneal_epochs = 0;
    config.schedule.warmup_epochs = 0;
    config.augmentations.clear();
    config.batch_size = 50;
    config.checkpoint.keep = 1;
    if (!scored) config.data.test.reset();
    expect_error(ErrorKind::kNumeric, {"finite"}, [&] { train_quietly(config); });
    const auto checkpoints = checkpoints_in(config.out);
    REQUIRE(checkpoints.size() == 1);
    const Checkpoint good = read_checkpoint(checkpoints[0]);
    CHECK(good.position.epoch == 1);
    for (const auto& [name, tensor] : good.optimizer)
      CHECK(at::isfinite(tensor).all().item<bool>());
    CHECK_FALSE(std::filesystem::exists(config.out / "model.pt"));
  }
}

}  // namespace
}  // namespace weightsmith
