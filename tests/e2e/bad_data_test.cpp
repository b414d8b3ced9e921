// What the tools say of data that cannot be used.
#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "support/files.h"
#include "support/golden.h"
#include "support/temporary_folder.h"
#include "tools.h"
#include "weightsmith/tensor/safetensors.h"

using namespace weightsmith;
using namespace weightsmith::testing;
using nlohmann::json;

namespace {

/// Trains on `data`, which must fail and leave nothing half-written behind.
void check_refused(const TemporaryFolder& folder, const json& data, int code,
                   const std::vector<std::string>& parts) {
  INFO(data);
  json config = small_training();
  config["data"] = {{"train", data}};
  const std::string out = (folder / "out").string();
  check_failure(lookaround_train({"--config", write_config(folder / "train.json", config), "--out",
                                  out, "--quiet"}),
                "lookaround-train", code, parts);
  check_nothing_half_written(out);
}

json tensors(const std::string& path) { return {{"format", "tensors"}, {"path", path}}; }

}  // namespace

TEST_CASE("data files that cannot be used end with 3 and the file's name") {
  const TemporaryFolder folder;
  check_refused(folder, tensors("none.safetensors"), 3,
                {(folder / "none.safetensors").string(), "no such file"});

  const at::Tensor images = at::rand({12, 1, 8, 8});
  const at::Tensor labels = at::arange(12, at::kLong).remainder(10);
  write_safetensors(folder / "unlabelled.safetensors", {{"images", images}});
  check_refused(folder, tensors("unlabelled.safetensors"), 3, {"unlabelled.safetensors", "labels"});
  write_safetensors(folder / "fewer.safetensors",
                    {{"images", images}, {"labels", labels.narrow(0, 0, 11)}});
  check_refused(folder, tensors("fewer.safetensors"), 3,
                {"fewer.safetensors", "12 images", "11 labels"});
  write_safetensors(folder / "small.safetensors",
                    {{"images", at::rand({12, 1, 7, 7})}, {"labels", labels}});
  check_refused(folder, tensors("small.safetensors"), 3, {"mlp", "49", "64"});

  write_safetensors(folder / "whole.safetensors", {{"images", images}, {"labels", labels}});
  const std::string whole = read_bytes(folder / "whole.safetensors");
  write_bytes(folder / "short.safetensors", whole.substr(0, whole.size() - 5));
  check_refused(folder, tensors("short.safetensors"), 3,
                {"short.safetensors", "truncated", "3168", "3163"});
  write_bytes(folder / "text.safetensors", "label,image\n");
  check_refused(folder, tensors("text.safetensors"), 3, {"text.safetensors", "safetensors"});
}

TEST_CASE("labels that the network has no output for are refused before anything is written") {
  const TemporaryFolder folder;
  const at::Tensor images = at::rand({12, 1, 8, 8});
  const at::Tensor labels = at::arange(12, at::kLong);
  write_safetensors(folder / "high.safetensors", {{"images", images}, {"labels", labels}});
  const std::vector<std::string> said{"(B, 12)", "12 classes", "0 to 11"};
  check_refused(folder, tensors("high.safetensors"), 3, said);
  CHECK_FALSE(std::filesystem::exists(folder / "out"));
  write_safetensors(folder / "low.safetensors", {{"images", images}, {"labels", labels - 1}});
  check_refused(folder, tensors("low.safetensors"), 3, {"low.safetensors", "negative"});

  // In the test set alone: not after an epoch of training, either.
  json config = small_training();
  config["data"]["test"] = tensors("high.safetensors");
  const auto out = folder / "tested";
  check_failure(lookaround_train({"--config", write_config(folder / "test.json", config), "--out",
                                  out.string(), "--quiet"}),
                "lookaround-train", 3, said);
  CHECK_FALSE(std::filesystem::exists(out));
}

TEST_CASE("data folders that cannot be used end with 3 and the file's name") {
  const TemporaryFolder folder;
  check_refused(folder, {{"format", "cifar10"}, {"path", "nowhere"}}, 3, {"nowhere", "data_batch"});
  for (const char* name : {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin",
                           "data_batch_4.bin", "data_batch_5.bin", "test_batch.bin"})
    write_bytes(folder / name, std::string(3073 + 100, '\1'));
  check_refused(folder, {{"format", "cifar10"}, {"path", "."}, {"split", "train"}}, 3,
                {"data_batch_1.bin", "3173", "3073"});
  check_refused(folder, {{"format", "cifar100"}, {"path", "."}}, 3, {"train.bin", "cannot read"});
  write_bytes(folder / "train.bin", std::string(3074, '\x65'));
  check_refused(folder, {{"format", "cifar100"}, {"path", "."}, {"split", "train"}}, 3,
                {"train.bin", "coarse label 101", "CIFAR-100"});
  check_refused(folder, {{"format", "cifar100"}, {"path", "."}, {"labels", "all"}}, 2,
                {"data.train.labels", "coarse"});
  check_refused(folder, {{"format", "idx"}, {"path", "."}, {"split", "train"}}, 3,
                {"train-images", folder.path().string()});
  write_bytes(
      folder / "train-images-idx3-ubyte",
      std::string("\0\0\x08\x03\0\0\0\x02\0\0\0\x08\0\0\0\x08", 16) + std::string(100, 'x'));
  write_bytes(folder / "train-labels-idx1-ubyte", std::string("\0\0\x08\x01\0\0\0\x02\1\2", 10));
  check_refused(folder, {{"format", "idx"}, {"path", "."}, {"split", "train"}}, 3,
                {"train-images-idx3-ubyte", "116", "144"});
}

TEST_CASE("selections that data cannot meet are refused") {
  const TemporaryFolder folder;
  check_refused(folder, {{"classes", {3, 12}}}, 3, {"12"});
  check_refused(folder, {{"path", "x"}}, 2, {"data.train.path"});
  check_refused(folder, {{"std", 0}}, 2, {"data.train.std"});
  check_refused(folder, {{"mean", {1, 2, 3}}}, 3, {"mean", "3"});
}

TEST_CASE("samples that a device cannot augment are refused where it is asked to") {
  const TemporaryFolder folder;
  write_safetensors(folder / "floats.safetensors",
                    {{"images", at::rand({12, 1, 8, 8})}, {"labels", at::arange(12) % 10}});
  json config = small_training();
  config["data"] = {{"train", tensors("floats.safetensors")}};
  const std::string file = write_config(folder / "train.json", config);
  const std::vector<std::string> arguments{"--config", file, "--out", (folder / "out").string(),
                                           "--quiet"};
  std::vector<std::string> on_device = arguments;
  on_device.insert(on_device.end(), {"--set", "augment_on=device"});
  check_failure(lookaround_train(on_device), "lookaround-train", 2,
                {"augment_on", "uint8", "Float", "cpu"});
  CHECK_FALSE(std::filesystem::exists(folder / "out"));
  summary_of(lookaround_train(arguments));
}

TEST_CASE("embeddings that do not fit the classes or the network are refused") {
  const TemporaryFolder folder;
  json config = small_training();
  config["objective"] = {{"type", "embedding"}, {"embeddings", "classes.safetensors"}};
  const std::string file = write_config(folder / "train.json", config);
  const std::string out = (folder / "out").string();
  const auto train = [&] { return lookaround_train({"--config", file, "--out", out, "--quiet"}); };
  check_failure(train(), "lookaround-train", 3, {"classes.safetensors", "no such file"});
  write_safetensors(folder / "classes.safetensors", {{"embeddings", at::rand({9, 10})}});
  check_failure(train(), "lookaround-train", 3, {"classes.safetensors", "9", "10"});
  write_safetensors(folder / "classes.safetensors", {{"embeddings", at::rand({10, 12})}});
  check_failure(train(), "lookaround-train", 3, {"10", "12"});
  check_nothing_half_written(out);
}

TEST_CASE("a damaged image ends with 3 and its name, or is left out and counted") {
  const TemporaryFolder folder;
  const auto images = folder / "images";
  const std::filesystem::path source = golden("images");
  for (const char* name : {"a", "b"}) {
    std::filesystem::create_directories(images / name);
    for (const char* file : {"rgb.png", "grey.png", "palette.png"})
      std::filesystem::copy_file(source / file, images / name / file);
  }
  write_bytes(images / "b" / "cut.png", read_bytes(source / "rgb.png").substr(0, 90));
  const json data{{"format", "folder"}, {"path", images.string()}, {"resize", 8}};
  check_refused(folder, data, 3, {"cut.png", "on_error"});

  json config = small_training();
  config["data"] = {{"train", data}};
  config["data"]["train"]["on_error"] = "skip";
  config["model"] = {{"builtin", "convnet"},
                     {"options", {{"width", 4}, {"channels", 3}, {"outputs", 2}}}};
  const std::string file = write_config(folder / "skip.json", config);
  const ProgramResult result =
      lookaround_train({"--config", file, "--out", (folder / "skipped").string()});
  CHECK(summary_of(result)["skipped_images"] == 1);
  CHECK_THAT(result.err, Catch::Contains("1 of 7 images") && Catch::Contains("cut.png"));
}

TEST_CASE("images beyond their memory are not held") {
  constexpr int kCount = 800;
  constexpr std::int64_t kBytesEach = 3 * 224 * 224;
  const TemporaryFolder folder;
  for (int i = 0; i < kCount; ++i) {
    const auto at = folder / "images" / (i % 2 == 0 ? "a" : "b");
    std::filesystem::create_directories(at);
    std::filesystem::copy_file(golden("images/small.png"), at / (std::to_string(i) + ".png"));
  }
  json config = small_training();
  config["data"] = {
      {"train", {{"format", "folder"}, {"path", (folder / "images").string()}, {"resize", 224}}}};
  config["model"] = {{"builtin", "convnet"},
                     {"options", {{"width", 1}, {"channels", 3}, {"outputs", 2}}}};
  config["batch_size"] = 2;
  const std::string file = write_config(folder / "train.json", config);
  const auto peak = [&](const std::string& gb) {
    const ProgramResult result =
        lookaround_train({"--config", file, "--out", (folder / "out").string(), "--dry-run",
                          "--quiet", "--set", "data.train.cache_gb=" + gb});
    CHECK(summary_of(result)["training_samples"] == kCount);
    return result.peak_bytes;
  };
  CHECK(peak("1") - peak("0.01") > kCount * kBytesEach * 3 / 4);
}
