// scripts/lookaround_study.py on random images in the layout of CIFAR-10.
#include <catch2/catch.hpp>
#include <random>

#include "support/files.h"
#include "support/python.h"
#include "support/temporary_folder.h"
#include "tools.h"

using namespace weightsmith;
using namespace weightsmith::testing;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

ProgramResult study(const std::vector<std::string>& arguments) {
  const fs::path script = fs::path(WEIGHTSMITH_SOURCE_DIR) / "scripts" / "lookaround_study.py";
  std::vector<std::string> all{script.string(), "--tools", tools_folder().string()};
  all.insert(all.end(), arguments.begin(), arguments.end());
  return run_program(python(), all);
}

/// 20 training and 10 test images.
void write_cifar(const fs::path& folder) {
  std::mt19937 random(1);
  const auto records = [&random](int count) {
    std::string bytes;
    for (int i = 0; i < count; ++i) {
      bytes.push_back(static_cast<char>(i % 10));
      for (int pixel = 0; pixel < 3072; ++pixel) bytes.push_back(static_cast<char>(random() % 256));
    }
    return bytes;
  };
  for (int i = 1; i <= 5; ++i)
    write_bytes(folder / ("data_batch_" + std::to_string(i) + ".bin"), records(4));
  write_bytes(folder / "test_batch.bin", records(10));
}

}  // namespace

TEST_CASE("the study of Lookaround compares at equal compute, and goes on where it was") {
  const TemporaryFolder folder;
  write_cifar(folder.path());
  const fs::path out = folder / "study";
  std::vector<std::string> arguments{"--cifar",
                                     folder.path().string(),
                                     "--images",
                                     "16",
                                     "--batch-size",
                                     "4",
                                     "--epochs",
                                     "2",
                                     "--seeds",
                                     "2",
                                     "--schedules",
                                     "constant",
                                     "--without",
                                     "lookahead",
                                     "lookaround-epoch",
                                     "lookaround-epoch-recomputed",
                                     "--",
                                     out.string()};
  const ProgramResult first = study(arguments);
  INFO(first.err);
  REQUIRE(first.exit_code == 0);
  CHECK_THAT(first.out, Catch::Contains("Constant, 24 gradients a run") &&
                            Catch::Contains("| minus SWA, points |") &&
                            Catch::Contains("\n| Lookaround, k = 5, recomputed | "));
  const json comparison = json::parse(read_bytes(out / "constant" / "comparison.json"));
  CHECK(comparison["methods"].size() == 5);
  CHECK(comparison["seeds"].size() == 2);

  // What is finished is not trained again.
  const auto written = fs::last_write_time(out / "constant" / "sgd" / "seed-1" / "model.pt");
  fs::remove(out / "constant" / "results.json");
  const ProgramResult second = study(arguments);
  CHECK(second.out == first.out);
  CHECK(fs::last_write_time(out / "constant" / "sgd" / "seed-1" / "model.pt") == written);

  const ProgramResult none = study({"--cifar", (folder / "none").string(), out.string()});
  CHECK(none.exit_code == 0);
  CHECK_THAT(none.out, Catch::StartsWith("skipped: "));
}

TEST_CASE("the study's ablation takes as many gradients whatever the number of heads") {
  const TemporaryFolder folder;
  write_cifar(folder.path());
  const std::vector<std::string> arguments{
      "--cifar", folder.path().string(), "--ablation", "--images",
      "8",       "--batch-size",         "4",          "--seeds",
      "1",       "--schedules",          "cosine",     "--epochs"};
  const auto with = [&](const std::string& epochs) {
    std::vector<std::string> all = arguments;
    all.insert(all.end(), {epochs, "--", (folder / "study").string()});
    return study(all);
  };
  const ProgramResult result = with("10");
  INFO(result.err);
  REQUIRE(result.exit_code == 0);
  CHECK_THAT(result.out, Catch::Contains("Cosine, 60 gradients a run"));
  for (const char* row : {"| SGD, 1 stream (Lookaround, d = 1) | ", "| Lookaround, d = 2, k = 1 | ",
                          "| Lookaround, d = 5, k = 10 | "})
    CHECK_THAT(result.out, Catch::Contains(row));
  CHECK(with("8").exit_code == 2);
}
