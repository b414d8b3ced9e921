#include "weightsmith/train/checkpoint.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <fstream>

#include "support/expect_error.h"
#include "support/temporary_folder.h"
#include "weightsmith/tensor/safetensors.h"

namespace weightsmith {
namespace {

Checkpoint example(std::int64_t epoch, std::int64_t batch) {
  Checkpoint c;
  c.position = {epoch, batch};
  c.steps = 77;
  c.loss_sum = 1.0 / 3.0;
  c.loss_count = 5;
  c.elapsed_s = 0.1;
  c.history.push_back({{"epoch", 1}, {"train_loss", 0.1}});
  c.config = {{"epochs", 3}};
  c.data = {{"train", "abc"}};
  c.loss_scale = {{"value", 1.0 / 3.0}, {"good_steps", 12}};
  c.optimizer = {{"heads", at::randn({2, 8})}};
  c.buffers = {{"bn.running_mean", at::randn({3})}, {"bn.count", at::tensor({4}, at::kLong)}};
  return c;
}

TEST_CASE("a checkpoint is read as it was written", "[train]") {
  testing::TemporaryFolder folder;
  CHECK(checkpoints_in(folder.path()).empty());
  const Checkpoint c = example(2, 9);
  const auto path = write_checkpoint(folder.path(), c, 2);
  CHECK(checkpoints_in(folder.path()) == std::vector{path});
  const Checkpoint read = read_checkpoint(path);
  CHECK(read.position.epoch == 2);
  CHECK(read.position.batch == 9);
  CHECK(read.steps == 77);
  CHECK(read.loss_sum == c.loss_sum);
  CHECK(read.history == c.history);
  CHECK(read.config == c.config);
  CHECK(read.data == c.data);
  CHECK(read.loss_scale == c.loss_scale);
  CHECK(read.optimizer.at("heads").equal(c.optimizer.at("heads")));
  CHECK(read.buffers.at("bn.count").equal(c.buffers.at("bn.count")));
  CHECK(read.buffers.size() == 2);
}

TEST_CASE("the newest checkpoints are kept", "[train]") {
  testing::TemporaryFolder folder;
  for (const auto& [epoch, batch] : {std::pair{1, 0}, {1, 30}, {2, 4}, {10, 0}})
    write_checkpoint(folder.path(), example(epoch, batch), 2);
  CHECK(checkpoints_in(folder.path()) ==
        std::vector{folder / "checkpoint-000010-00000000.safetensors",
                    folder / "checkpoint-000002-00000004.safetensors"});
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 2);
  // A run that goes on from the older one, because the newest is damaged, leaves its own.
  const auto path = write_checkpoint(folder.path(), example(2, 8), 1);
  CHECK(checkpoints_in(folder.path()) == std::vector{path});
  remove_checkpoints(folder.path());
  CHECK(checkpoints_in(folder.path()).empty());
}

TEST_CASE("damaged and foreign checkpoints are named", "[train]") {
  testing::TemporaryFolder folder;
  const auto refused = [](const std::filesystem::path& path) {
    return testing::error_of(ErrorKind::kInput, [&] { read_checkpoint(path); });
  };
  const auto path = write_checkpoint(folder.path(), example(1, 0), 2);
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 9);
  CHECK_THAT(refused(path), Catch::Contains(path.string()));
  write_safetensors(path, {{"x", at::ones({2})}}, {});
  CHECK_THAT(refused(path), Catch::Contains("not a checkpoint"));
  write_safetensors(path, {{"x", at::ones({2})}}, {{"weightsmith", R"({"version": 7})"}});
  CHECK_THAT(refused(path), Catch::Contains("version 7"));
  write_safetensors(path, {{"x", at::ones({2})}}, {{"weightsmith", R"({"version": 2})"}});
  CHECK_THAT(refused(path), Catch::Contains("damaged"));
}

TEST_CASE("configurations that differ are told apart by key", "[train]") {
  const nlohmann::json saved = {{"epochs", 3}, {"optimizer", {{"lr", 0.1}, {"momentum", 0.9}}}};
  nlohmann::json present = saved;
  check_same_config(saved, present, "c");
  present["optimizer"]["lr"] = 0.2;
  present["extra"] = 1;
  const std::string error =
      testing::error_of(ErrorKind::kConfig, [&] { check_same_config(saved, present, "c"); });
  CHECK_THAT(error, Catch::Contains("extra, optimizer.lr") && !Catch::Contains("momentum"));
}

}  // namespace
}  // namespace weightsmith
