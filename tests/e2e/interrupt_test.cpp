// Runs of lookaround-train that are ended from outside, and what comes of resuming them.
#include <catch2/catch.hpp>
#include <chrono>
#include <csignal>
#include <sstream>

#include "support/event_reader.h"
#include "support/files.h"
#include "support/temporary_folder.h"
#include "tools.h"
#include "weightsmith/core/rng.h"

using namespace weightsmith;
using namespace weightsmith::testing;
using nlohmann::json;

namespace {

/// Long enough to be met in mid-training.
constexpr int kEpochs = 40;

json long_training() {
  json config = small_training();
  config["epochs"] = kEpochs;
  config["batch_size"] = 8;
  return config;
}

/// The networks of a run that nothing disturbed.
struct Undisturbed {
  Undisturbed() {
    const TemporaryFolder folder;
    const std::string file = write_config(folder / "train.json", long_training());
    const std::string out = (folder / "out").string();
    summary = summary_of(lookaround_train({"--config", file, "--out", out, "--quiet"}));
    archive = read_bytes(folder / "out" / "model.pt");
    weights = read_bytes(folder / "out" / "model.safetensors");
  }
  json summary;
  std::string archive;
  std::string weights;
};

const Undisturbed& undisturbed() {
  static const Undisturbed run;
  return run;
}

}  // namespace

TEST_CASE("a signal ends training with a checkpoint, and --resume ends with the same bits") {
  for (const int signal : {SIGTERM, SIGINT, SIGUSR1}) {
    INFO("signal " << signal);
    const TemporaryFolder folder;
    const std::string file = write_config(folder / "train.json", long_training());
    const auto out = folder / "out";
    const std::vector<std::string> arguments{"--config",   file,      "--out",
                                             out.string(), "--quiet", "--resume"};
    ProgramOptions options;
    options.signal = SignalPlan{signal, out / "checkpoint-000003-00000000.safetensors", "",
                                std::chrono::milliseconds(7)};
    const ProgramResult stopped = lookaround_train(arguments, options);
    CHECK(stopped.exit_code == 128 + signal);
    CHECK(stopped.killed_by == 0);
    CHECK(stopped.out.empty());
    CHECK_THAT(stopped.err,
               Catch::Matches("lookaround-train: stopped by signal " + std::to_string(signal) +
                              ": checkpoint-[0-9-]+\\.safetensors was written, "
                              "--resume continues\n"));
    check_nothing_half_written(out);
    CHECK_FALSE(std::filesystem::exists(out / "model.pt"));

    const json summary = summary_of(lookaround_train(arguments));
    CHECK(summary["resumed_from"]["epoch"] >= 3);
    CHECK(read_bytes(out / "model.pt") == undisturbed().archive);
    CHECK(read_bytes(out / "model.safetensors") == undisturbed().weights);
    CHECK(summary["test"] == undisturbed().summary["test"]);
    CHECK(summary["train_loss"] == undisturbed().summary["train_loss"]);
  }
}

TEST_CASE("a run killed again and again ends with the same bits") {
  const TemporaryFolder folder;
  const std::string file = write_config(folder / "train.json", long_training());
  const auto out = folder / "out";
  const std::vector<std::string> arguments{"--config",   file,      "--out",
                                           out.string(), "--quiet", "--resume"};
  Rng rng(7);
  int kills = 0;
  for (const char* epoch : {"000001", "000009", "000021"}) {
    ProgramOptions options;
    options.signal =
        SignalPlan{SIGKILL, out / ("checkpoint-" + std::string(epoch) + "-00000000.safetensors"),
                   "", std::chrono::milliseconds(static_cast<int>(rng.uniform(0, 60)))};
    const ProgramResult killed = lookaround_train(arguments, options);
    INFO(killed.err);
    kills += killed.killed_by == SIGKILL ? 1 : 0;
    CHECK_FALSE(std::filesystem::exists(out / "results.json"));
  }
  CHECK(kills == 3);
  summary_of(lookaround_train(arguments));
  CHECK(read_bytes(out / "model.pt") == undisturbed().archive);
  CHECK(read_bytes(out / "model.safetensors") == undisturbed().weights);
}

TEST_CASE("a run that augments on the device is killed and ends with the same bits") {
  const TemporaryFolder folder;
  json config = long_training();
  config["augment_on"] = "device";
  config["data"]["validation"] = 0.1;
  config["augmentations"][2] = {"randaugment", "rotation", "cutmix"};
  const std::string file = write_config(folder / "train.json", config);
  const auto undisturbed_out = folder / "undisturbed";
  const json expected = summary_of(
      lookaround_train({"--config", file, "--out", undisturbed_out.string(), "--quiet"}));
  const auto out = folder / "out";
  const std::vector<std::string> arguments{"--config",   file,      "--out",
                                           out.string(), "--quiet", "--resume"};
  ProgramOptions options;
  options.signal = SignalPlan{SIGKILL, out / "checkpoint-000009-00000000.safetensors", "",
                              std::chrono::milliseconds(20)};
  CHECK(lookaround_train(arguments, options).killed_by == SIGKILL);
  // In mid-epoch.
  options.signal = SignalPlan{SIGTERM, out / "checkpoint-000021-00000000.safetensors", "",
                              std::chrono::milliseconds(7)};
  CHECK(lookaround_train(arguments, options).exit_code == 128 + SIGTERM);
  const json summary = summary_of(lookaround_train(arguments));
  CHECK(summary["resumed_from"]["epoch"] >= 21);
  CHECK(summary["test"] == expected["test"]);
  CHECK(summary["best"]["epoch"] == expected["best"]["epoch"]);
  for (const char* name : {"model.pt", "model-best.pt", "curves.svg"}) {
    INFO(name);
    CHECK((read_bytes(out / name) == read_bytes(undisturbed_out / name)));
  }
}

TEST_CASE("a run killed at any moment ends with the same bits") {
  // From the start of the process on: while it loads, in mid-epoch, while it writes.
  const TemporaryFolder folder;
  const std::string file = write_config(folder / "train.json", long_training());
  const auto out = folder / "out";
  const std::vector<std::string> arguments{"--config",   file,      "--out",
                                           out.string(), "--quiet", "--resume"};
  Rng rng(11);
  int kills = 0;
  double longest = 1500;
  for (int attempts = 0; attempts < 60; ++attempts) {
    if (std::filesystem::exists(out / "results.json")) {
      if (kills > 0) break;
      // A fast machine was done before: from the start, and sooner.
      std::filesystem::remove_all(out);
      longest /= 2;
    }
    ProgramOptions options;
    options.signal =
        SignalPlan{SIGKILL,
                   {},
                   "",
                   std::chrono::milliseconds(static_cast<int>(rng.uniform(longest / 15, longest)))};
    const ProgramResult result = lookaround_train(arguments, options);
    INFO(result.err);
    kills += result.killed_by == SIGKILL ? 1 : 0;
    REQUIRE((result.killed_by == SIGKILL || result.exit_code == 0));
    if (kills == 6) break;  // a slow machine may never get far in a second
  }
  CHECK(kills >= 1);
  summary_of(lookaround_train(arguments));
  CHECK(read_bytes(out / "model.pt") == undisturbed().archive);
  CHECK(read_bytes(out / "model.safetensors") == undisturbed().weights);
  // One event an epoch, although some epochs were run more than once: that of its row.
  const auto events = read_events(out / "events.out.tfevents.0.weightsmith");
  REQUIRE(events.size() == 1 + kEpochs);
  CHECK(events[0].version == "brain.Event:2");
  std::istringstream rows(read_bytes(out / "metrics.jsonl"));
  for (int e = 1; e <= kEpochs; ++e) {
    INFO("epoch " << e);
    std::string line;
    REQUIRE(std::getline(rows, line));
    const json row = json::parse(line);
    CHECK(events[e].step == row["steps"].get<std::uint64_t>());
    CHECK(events[e].wall_time >= events[e - 1].wall_time);
    const auto& values = events[e].values;
    CHECK(values.at("epoch") == static_cast<float>(e));
    CHECK(values.at("lr") == row["lr"].get<float>());
    CHECK(values.at("train/loss") == row["train_loss"].get<float>());
    for (const char* score : {"accuracy", "loss", "ece"})
      CHECK(values.at(std::string("test/") + score) == row["test"][score].get<float>());
    CHECK(values.size() == 6);
  }
}

TEST_CASE("a signal in mid-epoch or in the middle of an evaluation ends the run within seconds") {
  // Undisturbed, the long part takes minutes: two thousand images through a network that needs
  // milliseconds for each, again and again.
  struct Case {
    const char* phase;
    int signal;
    json train, test;
  };
  const json small{{"split", "test"}, {"limit", 16}, {"resize", 32}};
  const json large{{"split", "all"}, {"resize", 32}};
  for (const auto& [phase, signal, train, test] :
       {Case{"train", SIGTERM, large, small}, Case{"evaluate", SIGUSR1, small, large}}) {
    INFO(phase << ", signal " << signal);
    const TemporaryFolder folder;
    const auto out = folder / "out";
    json config = small_training();
    config["model"] = {{"builtin", "resnet20"}, {"options", {{"channels", 1}, {"width", 2}}}};
    config["data"] = {{"train", train}, {"test", test}};
    config["augmentations"] = json::array({{"random_crop"}});
    config["method"] = {{"type", "sgd"}};
    config["epochs"] = 50;
    ProgramOptions options;
    options.signal =
        SignalPlan{signal, {}, std::string(phase) + ": begins", std::chrono::milliseconds(1000)};
    const auto start = std::chrono::steady_clock::now();
    const ProgramResult stopped = lookaround_train(
        {"--config", write_config(folder / "train.json", config), "--out", out.string(), "-v"},
        options);
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    INFO(stopped.err);
    CHECK(stopped.exit_code == 128 + signal);
    CHECK(stopped.killed_by == 0);
    CHECK_THAT(stopped.err, Catch::Contains("checkpoint-000000-0000000"));  // in the first epoch
    CHECK(elapsed.count() < 60);  // with loading, on a busy machine
    check_nothing_half_written(out);
  }
}

TEST_CASE("an unfinished run is neither mixed with another configuration nor lost unasked") {
  const TemporaryFolder folder;
  const std::string file = write_config(folder / "train.json", long_training());
  const auto out = folder / "out";
  ProgramOptions options;
  options.signal = SignalPlan{SIGTERM, out / "checkpoint-000001-00000000.safetensors", "", {}};
  const std::vector<std::string> arguments{"--config", file, "--out", out.string(), "--quiet"};
  REQUIRE(lookaround_train(arguments, options).exit_code == 128 + SIGTERM);
  const std::string config = read_bytes(out / "config.json");
  std::vector<std::string> changed = arguments;
  changed.insert(changed.end(), {"--resume", "--set", "optimizer.momentum=0.5"});
  check_failure(lookaround_train(changed), "lookaround-train", 2,
                {"optimizer.momentum", "differs", "--overwrite"});
  const auto checkpoints = files_under(out);
  check_failure(lookaround_train(arguments), "lookaround-train", 2,
                {out.string(), "earlier run", "--resume", "--overwrite"});
  CHECK(files_under(out) == checkpoints);
  // Neither refusal touched what says how the checkpoints were made.
  CHECK(read_bytes(out / "config.json") == config);
  check_nothing_half_written(out);
}
