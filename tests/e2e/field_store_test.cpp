// modelgif-dist: what becomes of fields and results on the disk, also when a run is stopped, killed
// or beside another.
#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <csignal>
#include <cstring>
#include <thread>

#include "family.h"
#include "support/files.h"
#include "support/networks.h"
#include "support/temporary_folder.h"
#include "tools.h"
#include "weightsmith/core/rng.h"
#include "weightsmith/tensor/safetensors.h"

using namespace weightsmith;
using namespace weightsmith::testing;
using nlohmann::json;
namespace fs = std::filesystem;

TEST_CASE("a field of the subcommand, and the distance of two") {
  const TemporaryFolder folder;
  const std::string file = write_config(folder / "gif.json", family().config());
  for (const char* name : {"victim", "other0"}) {
    const json summary = summary_of(
        modelgif_dist({"field", name, "--config", file, "--out",
                       (folder / (std::string(name) + ".safetensors")).string(), "--quiet"}));
    CHECK(summary["shape"] == json({64, 8, 64}));
  }
  const auto stored = read_safetensors(folder / "victim.safetensors").tensors.at("field");
  CHECK(stored.sizes() == at::IntArrayRef({64, 8, 64}));
  const auto distance = [&](const std::string& kind) {
    return summary_of(modelgif_dist({"distance", (folder / "victim.safetensors").string(),
                                     (folder / "other0.safetensors").string(), "--distance",
                                     kind}))["distance"]
        .get<double>();
  };
  json config = family().config();
  const json matrix = measure(folder.path(), config);
  CHECK(distance("cosine") == Approx(matrix["distances"][0][4].get<double>()).margin(1e-5));
  CHECK(distance("euclidean") > 0);
}

TEST_CASE("what --set says of a subcommand's paths starts from the current folder") {
  const TemporaryFolder folder;
  json config = family().config();
  const fs::path script = config["models"][1]["script"].get<std::string>();
  const std::string name = config["models"][1]["name"];
  config["models"][1]["script"] = "missing.pt";
  fs::create_directory(folder / "here");
  fs::copy_file(script, folder / "here" / "network.pt");
  ProgramOptions options;
  options.folder = folder / "here";
  const json summary = summary_of(
      modelgif_dist({"field", name, "--config", write_config(folder / "gif.json", config), "--set",
                     R"(models.1.script="network.pt")", "--out", "field.safetensors", "--quiet"},
                    options));
  CHECK(summary["shape"] == json({64, 8, 64}));
  CHECK(fs::exists(folder / "here" / "field.safetensors"));
}

TEST_CASE("a field that cannot be computed leaves the file of its name as it was") {
  const TemporaryFolder folder;
  // A root of zero has no gradient: the second sample fails after the first went well.
  const fs::path root = folder / "root.pt";
  ScriptModel(
      make_network({{"w", {10, 64}}}, "return torch.matmul(x.abs().sqrt().flatten(1), self.w.t())"),
      "root.pt")
      .save(root);
  write_safetensors(folder / "data.safetensors",
                    {{"images", at::cat({at::ones({1, 1, 8, 8}), at::zeros({1, 1, 8, 8})})},
                     {"labels", at::zeros({2}, at::kLong)}});
  const json config = {
      {"models", {root.string()}},
      {"reference",
       {{"data", {{"format", "tensors"}, {"path", (folder / "data.safetensors").string()}}}}}};
  const fs::path out = write_bytes(folder / "field.safetensors", "the former field");
  check_failure(
      modelgif_dist({"field", root.string(), "--config", write_config(folder / "gif.json", config),
                     "--out", out.string(), "--quiet"}),
      "modelgif-dist", 5, {"root.pt", "sample 1", "not finite"});
  CHECK(read_bytes(out) == "the former field");
}

TEST_CASE("fields are never in memory at once") {
  const TemporaryFolder folder;
  json config;
  for (const char* name : {"a", "b"}) {
    const fs::path path = folder / (std::string(name) + ".pt");
    save_builtin(path, "mlp", {{"inputs", 1024}, {"hidden", {8}}}, name[0]);
    config["models"].push_back(path.string());
  }
  const auto peak = [&](std::int64_t samples) {
    at::manual_seed(1);
    const fs::path data = folder / "data.safetensors";
    write_safetensors(data, {{"images", at::randn({samples, 1, 32, 32})},
                             {"labels", at::zeros({samples}, at::kLong)}});
    config["reference"] = {{"data", {{"format", "tensors"}, {"path", data.string()}}}};
    config["field"] = {{"steps", 50}};
    config["bootstrap"] = 0;
    const ProgramResult result =
        modelgif_dist({"--config", write_config(folder / "gif.json", config), "--out",
                       (folder / "out").string(), "--quiet", "--overwrite"});
    summary_of(result);
    return result.peak_bytes;
  };
  // 2 x 200 kB a sample. The distances take up to 256 MB whatever there is to compare, CKA
  // likewise.
  const std::int64_t some = peak(300), more = peak(1500);
  const double field = 1200.0 * 50 * 1024 * 4;  // that each model has more in the second run
  INFO(some << " and " << more << " bytes, " << field << " of each field");
  // The peak of one and the same run moves by 40 MB; half a field of either model is 123 MB.
  CHECK(static_cast<double>(more - some) < 0.5 * field);
}

TEST_CASE("a dry run writes nothing; damaged fields are computed again") {
  const TemporaryFolder folder;
  json config = family().config();
  config["cache"] = (folder / "cache").string();
  const json plan = measure(folder.path(), config, {"--dry-run"});
  CHECK(plan["fields_to_compute"] == 9);
  CHECK(plan["field_bytes"] == 64 * 8 * 64 * 4);
  CHECK_FALSE(fs::exists(folder / "out"));
  CHECK_FALSE(fs::exists(folder / "cache"));
  const json first = measure(folder.path(), config);
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder / "cache")) files.push_back(entry.path());
  REQUIRE(files.size() == 18);  // field-… and gradient-… of each
  std::sort(files.begin(), files.end());
  fs::resize_file(files[0], fs::file_size(files[0]) - 1);
  fs::copy_file(files[1], files[2], fs::copy_options::overwrite_existing);  // of another model
  CHECK(measure(folder.path(), config, {"--dry-run"})["fields_to_compute"] == 2);
  CHECK(measure(folder.path(), config)["distances"] == first["distances"]);
}

TEST_CASE("a stopped run ends soon, and resumed it gives the bytes of one that never was") {
  // A number of steps that the run chose is chosen again by the resumed run, and is the same.
  for (const json& steps : {json(400), json("auto")}) {
    INFO("steps " << steps);
    const TemporaryFolder folder;
    json config = family().config();
    config["cache"] = (folder / "cache").string();
    config["field"] = {{"steps", steps}, {"steps_tolerance", 1e-5}};
    config["batch_size"] = steps.is_string() ? 5 : 25;
    const std::string file = write_config(folder / "gif.json", config);
    const fs::path out = folder / "out";
    const std::vector<std::string> arguments{"--config",   file,       "--out",
                                             out.string(), "--resume", "--verbose"};
    ProgramOptions options;
    options.signal = SignalPlan{SIGTERM, "", "field of tuned0", std::chrono::milliseconds(5)};
    const ProgramResult stopped = modelgif_dist(arguments, options);
    INFO(stopped.err);
    REQUIRE(stopped.exit_code == 128 + SIGTERM);
    CHECK(stopped.out.empty());
    CHECK_THAT(stopped.err, Catch::Contains("stopped by signal 15"));
    // Between two fields there is no part of one to tell of.
    for (const std::string& name : files_under(folder / "cache"))
      if (name.ends_with(".part"))
        CHECK_THAT(stopped.err,
                   Catch::Contains("of 64 samples of") && Catch::Contains("--resume continues"));
    CHECK_FALSE(fs::exists(out / "results.json"));
    const auto kept = files_under(folder / "cache");
    // The field in which the signal arrived, on a busy machine a later one than was shown, is the
    // last: most were not begun.
    CHECK(kept.size() >= 2);
    CHECK(kept.size() < 9);

    const ProgramResult resumed = modelgif_dist(arguments);
    const json results = summary_of(resumed);
    CHECK_THAT(resumed.err, !Catch::Contains("field of victim"));
    CHECK_THAT(resumed.err, Catch::Contains("field of other4"));

    config["cache"] = (folder / "undisturbed fields").string();
    json wanted = measure(folder / "undisturbed", config);
    if (steps.is_string()) {
      CHECK(results["steps"] == wanted["steps"]);
      CHECK(wanted["steps"].get<int>() > 16);  // enough for the signal to come in between
    }
    REQUIRE(files_under(folder / "cache") == files_under(folder / "undisturbed fields"));
    for (const std::string& name : files_under(folder / "cache"))
      CHECK(read_bytes(folder / "cache" / name) ==
            read_bytes(folder / "undisturbed fields" / name));
    for (const char* name : {"distances.csv", "distances.npy", "distances.svg", "tree.newick"})
      CHECK(read_bytes(out / name) == read_bytes(folder / "undisturbed" / "out" / name));
  }
}

TEST_CASE("a run killed at any moment computes at most one chunk of a field again") {
  const TemporaryFolder folder;
  json config = family().config();
  config["cache"] = (folder / "cache").string();
  config["field"]["steps"] = 200;
  config["batch_size"] = 200;  // a chunk is one sample
  const std::string file = write_config(folder / "gif.json", config);
  const std::vector<std::string> arguments{
      "--config", file, "--out", (folder / "out").string(), "--resume", "--verbose"};
  Rng rng(3);
  int kills = 0, resumed = 0;
  std::string wanted;   // what the next run must find
  double longest = 50;  // milliseconds into the first field; more where they leave nothing
  for (int attempt = 0; attempt < 30; ++attempt) {
    ProgramOptions options;
    if (kills < 3 || resumed < 2)
      options.signal =
          SignalPlan{SIGKILL, "", "field of ",
                     std::chrono::milliseconds(static_cast<int>(rng.uniform(0, longest)))};
    const ProgramResult run = modelgif_dist(arguments, options);
    const bool killed = run.killed_by == SIGKILL;
    kills += killed ? 1 : 0;
    INFO(run.err);
    if (!wanted.empty() && run.err.find("samples are there already") != std::string::npos) {
      CHECK_THAT(run.err, Catch::Contains(wanted));
      ++resumed;
    }
    wanted.clear();
    if (!killed) {
      CHECK(run.exit_code == 0);
      break;
    }
    // Whole samples behind the header and the two scalars a sample: all of them are taken over.
    for (const auto& entry : fs::directory_iterator(folder / "cache"))
      if (entry.path().extension() == ".part" &&
          entry.path().filename().string().find("field-") != std::string::npos) {
        const std::string bytes = read_bytes(entry.path());
        std::uint64_t header = 0;
        if (bytes.size() < 8) continue;
        std::memcpy(&header, bytes.data(), 8);
        const std::uint64_t rows = 8 + header + 64 * 16;
        const std::uint64_t sample = 200 * 64 * 4;
        if (bytes.size() >= rows + sample)
          wanted = std::to_string((bytes.size() - rows) / sample) + " samples are there already";
      }
    if (wanted.empty()) longest *= 1.5;
  }
  CHECK(kills >= 3);
  CHECK(resumed >= 1);
  const json whole = measure(folder.path(), config);
  config["cache"] = (folder / "other").string();
  CHECK(measure(folder.path(), config)["distances"] == whole["distances"]);
}

TEST_CASE("two runs share a cache") {
  const TemporaryFolder folder;
  json config = family().config();
  config["cache"] = (folder / "cache").string();
  config["field"]["steps"] = 60;
  const std::string file = write_config(folder / "gif.json", config);
  std::vector<ProgramResult> results(2);
  std::vector<std::thread> runs;
  for (int i = 0; i < 2; ++i)
    runs.emplace_back([&, i] {
      results[i] = modelgif_dist(
          {"--config", file, "--out", (folder / ("out" + std::to_string(i))).string(), "--quiet"});
    });
  for (std::thread& run : runs) run.join();
  const json first = summary_of(results[0]), second = summary_of(results[1]);
  CHECK(first["distances"] == second["distances"]);
  CHECK(files_under(folder / "cache").size() == 18);
  config["cache"] = (folder / "other").string();
  CHECK(measure(folder.path(), config)["distances"] == first["distances"]);
}
