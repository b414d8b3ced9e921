// lookaround-train from configuration to network.
#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "support/files.h"
#include "support/golden.h"
#include "support/temporary_folder.h"
#include "tools.h"
#include "weightsmith/core/progress.h"
#include "weightsmith/core/sha256.h"
#include "weightsmith/data/dataset.h"
#include "weightsmith/eval/evaluation.h"
#include "weightsmith/eval/objective.h"
#include "weightsmith/model/script_model.h"
#include "weightsmith/tensor/safetensors.h"
#include "weightsmith/train/checkpoint.h"

using namespace weightsmith;
using namespace weightsmith::testing;
using nlohmann::json;

namespace {

/// The first network of a pair with disjoint classes and one output space.
json embedding_training(const std::vector<int>& classes) {
  json config = small_training();
  config["model"] = {{"builtin", "convnet"}, {"options", {{"width", 4}, {"outputs", 16}}}};
  config["data"]["train"]["classes"] = classes;
  config["data"]["test"]["classes"] = classes;
  config["objective"] = {
      {"type", "embedding"}, {"embeddings", {{"random", 16}, {"seed", 0}}}, {"candidates", "data"}};
  return config;
}

}  // namespace

TEST_CASE("training two networks on a split of the classes") {
  const TemporaryFolder folder;
  for (const auto& classes : {std::vector{0, 1, 2, 3, 4}, std::vector{5, 6, 7, 8, 9}}) {
    const json config = embedding_training(classes);
    const std::string file = write_config(folder / "train.json", config);
    const auto out = folder / std::to_string(classes.front());
    const json summary =
        summary_of(lookaround_train({"--config", file, "--out", out.string(), "--quiet"}));
    CHECK(summary == json::parse(read_bytes(out / "results.json")));
    CHECK(summary["epochs"] == 2);
    CHECK(files_under(out) ==
          std::vector<std::string>{
              "checkpoint-000001-00000000.safetensors", "checkpoint-000002-00000000.safetensors",
              "config.json", "curves.svg", "events.out.tfevents.0.weightsmith", "log.txt",
              "metrics.jsonl", "model.pt", "model.safetensors", "results.json", "run.json"});

    // The archive is the network that the summary speaks of, and the safetensors file is its state.
    ScriptModel model = load_archive(out / "model.pt");
    CHECK(model.metadata().at("builtin") == "convnet");
    const TensorMap weights = read_safetensors(out / "model.safetensors").tensors;
    REQUIRE(weights.size() == model.state_dict().size());
    for (const auto& [name, tensor] : model.state_dict())
      CHECK(at::equal(tensor, weights.at(name)));
    DataConfig data;
    data.split = DataConfig::Split::kTest;
    data.limit = 100;
    data.classes.assign(classes.begin(), classes.end());
    const Dataset test = load_dataset(data);
    ObjectiveConfig objective;
    objective.type = ObjectiveConfig::Type::kEmbedding;
    objective.random_embeddings = RandomEmbeddings{16, 0, 0.0};
    NoProgress progress;
    const Evaluation evaluation = evaluate(
        model, test, Objective(objective, 10).restricted_to(classes_in(test)), {}, progress);
    CHECK(evaluation.accuracy == summary["test"]["accuracy"]);
    CHECK(evaluation.loss == Approx(summary["test"]["loss"].get<double>()).epsilon(1e-5));

    const json run = json::parse(read_bytes(out / "run.json"));
    CHECK(run["tool"] == "lookaround-train");
    CHECK(run["inputs_sha256"][file] == sha256_of_file(file));
    CHECK(run["phases_s"]["train"].get<double>() > 0);
    CHECK(run["wall_s"].get<double>() >= run["phases_s"]["train"].get<double>());
    CHECK(run["peak_memory_bytes"].get<double>() > 1e7);
    CHECK(run["images_per_s"].get<double>() > 0);
    CHECK(run["outputs"] == json{"curves.svg", "metrics.jsonl", "model.pt", "model.safetensors"});
    CHECK(run["threads"] == 1);
    CHECK(run["seed"] == 0);
    for (const char* key :
         {"version", "git_revision", "libtorch_version", "device", "host", "started"})
      CHECK_FALSE(run[key].get<std::string>().empty());
  }
}

TEST_CASE("a run ends with a table on standard error") {
  const TemporaryFolder folder;
  json config = small_training();
  config["epochs"] = 1;
  const std::string file = write_config(folder / "train.json", config);
  const auto out = folder / "out";
  const ProgramResult result = lookaround_train({"--config", file, "--out", out.string()});
  summary_of(result);
  for (const std::string& text : {result.err, read_bytes(out / "log.txt")}) {
    CHECK_THAT(text, Catch::Contains("| scored on | accuracy, % |"));
    CHECK_THAT(text, Catch::Contains("1 epochs, 21 steps in ") && Catch::Contains(" images/s; "));
  }
}

TEST_CASE("one seed gives one network, and the resolved configuration replays it") {
  const TemporaryFolder folder;
  const std::string file = write_config(folder / "train.json", small_training());
  const auto train = [&](const std::string& config, const std::string& out,
                         const std::string& seed) {
    summary_of(lookaround_train(
        {"--config", config, "--out", (folder / out).string(), "--seed", seed, "--quiet"}));
    return read_bytes(folder / out / "model.safetensors");
  };
  const std::string first = train(file, "first", "3");
  CHECK(train(file, "again", "3") == first);
  CHECK(train(file, "other", "4") != first);
  CHECK(train((folder / "first" / "config.json").string(), "replayed", "3") == first);
  CHECK(read_bytes(folder / "first" / "model.pt") == read_bytes(folder / "again" / "model.pt"));

  // What --print-config shows is the same as what the run wrote beside its results.
  const json printed = summary_of(lookaround_train(
      {"--config", file, "--out", (folder / "first").string(), "--seed", "3", "--print-config"}));
  CHECK(printed == json::parse(read_bytes(folder / "first" / "config.json")));
}

TEST_CASE("run.json names every file that a training read") {
  const TemporaryFolder folder;
  write_safetensors(
      folder / "data.safetensors",
      {{"images", at::rand({12, 1, 8, 8})}, {"labels", at::arange(12, at::kLong).remainder(10)}});
  write_safetensors(folder / "classes.safetensors", {{"embeddings", at::rand({10, 10})}});
  save_mlp(folder / "start.pt", 1);
  json config = small_training();
  config["model"] = "start.pt";
  config["data"] = {{"train", {{"format", "tensors"}, {"path", "data.safetensors"}}}};
  config["objective"] = {{"type", "embedding"}, {"embeddings", "classes.safetensors"}};
  const std::string file = write_config(folder / "train.json", config);
  summary_of(lookaround_train({"--config", file, "--out", (folder / "out").string(), "--quiet"}));
  const json inputs = json::parse(read_bytes(folder / "out" / "run.json"))["inputs_sha256"];
  REQUIRE(inputs.size() == 4);
  for (const char* name : {"train.json", "start.pt", "data.safetensors", "classes.safetensors"})
    CHECK(inputs.value((folder / name).string(), "") == sha256_of_file(folder / name));
}

TEST_CASE("run.json lists a folder of images in place of hashing each") {
  const TemporaryFolder folder;
  std::uint64_t bytes = 0;
  for (const char* name : {"train/a", "train/b", "test/a", "test/b"}) {
    std::filesystem::create_directories(folder / "images" / name);
    for (const char* file : {"rgb.png", "grey.png", "palette.png"}) {
      std::filesystem::copy_file(golden("images") / file, folder / "images" / name / file);
      bytes += std::filesystem::file_size(golden("images") / file);
    }
  }
  json config = small_training();
  const auto part = [](const char* split) {
    return json{{"format", "folder"}, {"path", "images"}, {"split", split}, {"resize", 8}};
  };
  config["data"] = {{"train", part("train")}, {"test", part("test")}};
  config["model"] = {{"builtin", "convnet"},
                     {"options", {{"width", 4}, {"channels", 3}, {"outputs", 2}}}};
  const std::string file = write_config(folder / "train.json", config);
  summary_of(lookaround_train({"--config", file, "--out", (folder / "out").string(), "--quiet"}));
  const json run = json::parse(read_bytes(folder / "out" / "run.json"));
  CHECK(run["inputs_sha256"].size() == 1);
  CHECK(run["inputs_sha256"].contains(file));
  const json& listed = run["inputs_listed"];
  REQUIRE(listed.size() == 2);
  CHECK(listed[0]["folder"] == (folder / "images" / "train").string());
  CHECK(listed[1]["folder"] == (folder / "images" / "test").string());
  CHECK(listed[0]["files"] == 6);
  CHECK(listed[0]["bytes"].get<std::uint64_t>() * 2 == bytes);
  CHECK(listed[0]["names_and_sizes_sha256"] == listed[1]["names_and_sizes_sha256"]);

  // As docs/formats.md says to make it again.
  const ProgramResult again = run_program(
      "/bin/sh",
      {"-c", "cd \"$0\" && find . -type f -printf '%P\\t%s\\n' | LC_ALL=C sort | sha256sum",
       listed[0]["folder"]});
  CHECK(again.exit_code == 0);
  CHECK(again.out.substr(0, 64) == listed[0]["names_and_sizes_sha256"]);
}

TEST_CASE("run.json knows a configuration that can be read only once") {
  const TemporaryFolder folder;
  json config = small_training();
  config["epochs"] = 1;
  ProgramOptions options;
  options.input = config.dump();
  for (const std::string name : {"-", "/dev/stdin"}) {
    INFO(name);
    summary_of(lookaround_train(
        {"--config", name, "--out", (folder / "out").string(), "--overwrite", "--quiet"}, options));
    CHECK(json::parse(read_bytes(folder / "out" / "run.json"))["inputs_sha256"][name] ==
          sha256_of_text(options.input));
  }
}

TEST_CASE("a finished run is refused, reused or replaced") {
  const TemporaryFolder folder;
  const std::string file = write_config(folder / "train.json", small_training());
  const std::string out = (folder / "out").string();
  const auto train = [&](std::vector<std::string> more) {
    std::vector<std::string> arguments{"--config", file, "--out", out, "--quiet"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return lookaround_train(arguments);
  };
  const json first = summary_of(train({}));
  const auto written = [&] {
    return std::filesystem::last_write_time(folder / "out" / "model.pt");
  };
  const auto when = written();

  check_failure(train({}), "lookaround-train", 2, {out, "finished run", "--resume", "--overwrite"});
  CHECK(summary_of(train({"--resume"})) == first);
  check_failure(train({"--resume", "--set", "optimizer.lr=0.2", "--set", "epochs=3", "--set",
                       "augmentations=[[],[],[]]"}),
                "lookaround-train", 2,
                {out, "differs in augmentations, epochs, optimizer.lr", "--overwrite"});
  // A version that did not know these keys left them at what is the default now.
  json config = json::parse(read_bytes(folder / "out" / "config.json"));
  REQUIRE(config.erase("augment_on") == 1);
  REQUIRE(config["data"].erase("draw") == 1);
  REQUIRE(config["optimizer"].erase("groups") == 1);
  write_bytes(folder / "out" / "config.json", config.dump());
  CHECK(summary_of(train({"--resume"})) == first);
  check_failure(train({"--resume", "--set", "augment_on=device"}), "lookaround-train", 2,
                {out, "augment_on", "--overwrite"});
  CHECK(written() == when);

  const std::string results = read_bytes(folder / "out" / "results.json");
  for (const std::string& damaged : {results.substr(0, results.size() / 2), std::string("[1]")}) {
    write_bytes(folder / "out" / "results.json", damaged);
    check_failure(train({"--resume"}), "lookaround-train", 3, {"results.json", "--overwrite"});
  }
  write_bytes(folder / "out" / "results.json", results);
  CHECK(summary_of(train({"--resume"})) == first);

  const json second = summary_of(train({"--overwrite", "--set", "epochs=1"}));
  CHECK(second["epochs"] == 1);
  CHECK(written() != when);
  CHECK(json::parse(read_bytes(folder / "out" / "results.json")) == second);
  CHECK_FALSE(std::filesystem::exists(folder / "out" / "checkpoint-000002-00000000.safetensors"));

  // A section that is asked for later, though with its defaults, was not there before.
  const json flat = summary_of(train({"--resume", "--set", "epochs=1", "--set", "flatness={}"}));
  CHECK(flat["flatness"]["top_eigenvalue"].is_number());
}

TEST_CASE("a dry run of the trainer checks, plans and writes nothing") {
  const TemporaryFolder folder;
  const std::string file = write_config(folder / "train.json", small_training());
  const std::string out = (folder / "out").string();
  const json plan =
      summary_of(lookaround_train({"--config", file, "--out", out, "--dry-run", "--quiet"}));
  CHECK(plan["dry_run"] == true);
  CHECK(plan["parameters"] == 64 * 16 + 16 + 16 * 16 + 16 + 16 * 10 + 10);
  CHECK(plan["training_samples"] == 200);
  CHECK(plan["test_samples"] == 100);
  CHECK(plan["batches_per_epoch"] == 7);
  CHECK(plan["steps"] == 7 * 2 * 3);
  CHECK(plan["estimated_memory_bytes"].get<double>() > 0);
  CHECK_FALSE(std::filesystem::exists(out));

  check_failure(lookaround_train({"--config", file, "--out", out, "--dry-run", "--quiet", "--set",
                                  "model.options.inputs=63"}),
                "lookaround-train", 3, {"mlp", "64"});
  check_failure(lookaround_train({"--config", file, "--out", out, "--dry-run", "--quiet", "--set",
                                  "model.options.outputs=7"}),
                "lookaround-train", 3, {"7", "10"});
  CHECK_FALSE(std::filesystem::exists(out));
}

TEST_CASE("a loss that is not finite ends training with 5") {
  const TemporaryFolder folder;
  const std::string file = write_config(folder / "train.json", small_training());
  const std::string out = (folder / "out").string();
  check_failure(lookaround_train({"--config", file, "--out", out, "--quiet", "--set",
                                  "optimizer.lr=1e30", "--set", "schedule.warmup_epochs=0"}),
                "lookaround-train", 5, {"the loss is", "epoch 1, batch ", "head ", "optimizer.lr"});
  check_nothing_half_written(out);
}

TEST_CASE("a loss that is lost after a checkpoint leaves that checkpoint") {
  const TemporaryFolder folder;
  json config = small_training();
  // The rate of the averaged epochs ends the second one: its first batch still has a loss.
  config["method"] = {{"type", "swa"}, {"start_epoch", 1}, {"lr", 1e30}, {"anneal_epochs", 0}};
  config["augmentations"] = json::array();
  const std::string file = write_config(folder / "train.json", config);
  const auto out = folder / "out";
  const auto checkpoint = out / "checkpoint-000001-00000000.safetensors";
  std::string kept;
  for (const char* more : {"--overwrite", "--resume"}) {  // what is resumed is lost again, there
    INFO(more);
    check_failure(lookaround_train({"--config", file, "--out", out.string(), "--quiet", more}),
                  "lookaround-train", 5,
                  {"the loss is", "epoch 2, batch 2, head 0", "checkpoints were kept"});
    check_nothing_half_written(out);
    REQUIRE(checkpoints_in(out) == std::vector{checkpoint});
    if (kept.empty()) kept = read_bytes(checkpoint);
    CHECK(read_bytes(checkpoint) == kept);
    const Checkpoint good = read_checkpoint(checkpoint);
    CHECK(good.steps == 7);
    for (const auto& [name, tensor] : good.optimizer)
      CHECK(at::isfinite(tensor).all().item<bool>());
    CHECK_FALSE(std::filesystem::exists(out / "model.pt"));
  }
}

TEST_CASE("methods are compared, and a comparison is reused") {
  const TemporaryFolder folder;
  json config = small_training();
  config["data"]["validation"] = 0.2;
  config["compare"] = {"sgd", "swad", {{"type", "lookaround"}, {"k", 1}, {"name", "every-round"}}};
  config["seeds"] = {4, 5};
  const std::string file = write_config(folder / "compare.json", config);
  const std::string out = (folder / "out").string();
  const json plan =
      summary_of(lookaround_train({"--config", file, "--out", out, "--quiet", "--dry-run"}));
  CHECK(plan["runs"] == 6);
  CHECK(plan["methods"]["every-round"]["heads"] == 3);
  CHECK_FALSE(std::filesystem::exists(out));

  const json summary = summary_of(lookaround_train({"--config", file, "--out", out, "--quiet"}));
  CHECK(summary == json::parse(read_bytes(folder / "out" / "comparison.json")));
  CHECK(summary["methods"][2]["name"] == "every-round");
  CHECK(summary["methods"][2]["accuracies"].size() == 2);
  CHECK(summary["compute"]["gradient_evaluations"] == 2 * 5 * 3);
  load_archive(folder / "out" / "swad" / "seed-5" / "model.pt");

  // The first run is lost, and what told that all was finished: only that run is made again.
  std::filesystem::remove_all(folder / "out" / "sgd" / "seed-4");
  std::filesystem::remove(folder / "out" / "results.json");
  json again =
      summary_of(lookaround_train({"--config", file, "--out", out, "--quiet", "--resume"}));
  CHECK(again["reused"] == 5);
  CHECK(again["methods"] == summary["methods"]);

  // A finished comparison goes on with another seed and measures what it had not, but does not mix
  // with one of other runs.
  again = summary_of(lookaround_train(
      {"--config", file, "--out", out, "--quiet", "--resume", "--set", "seeds=[4,5,6]", "--set",
       "flatness.power_iterations=2", "--set", "flatness.samples=20"}));
  CHECK(again["reused"] == 6);
  CHECK(again["runs"] == 9);
  CHECK(again["methods"][0]["accuracies"][1] == summary["methods"][0]["accuracies"][1]);
  CHECK(again["methods"][2]["flatness"]["top_eigenvalue"].is_number());
  CHECK(again["methods"][2]["ensemble"]["samples"] == summary["methods"][2]["ensemble"]["samples"]);
  check_failure(lookaround_train({"--config", file, "--out", out, "--quiet", "--resume", "--set",
                                  "optimizer.lr=0.01"}),
                "lookaround-train", 2, {"another configuration", "--overwrite"});
  check_failure(lookaround_train({"--config", file, "--out", (folder / "none").string(), "--quiet",
                                  "--set", "compare=[\"sgb\"]"}),
                "lookaround-train", 2, {"compare[0]", "sgb"});
}
