// Runs of lookaround-train that are ended from outside, and what comes of resuming them.
#include <catch2/catch.hpp>
#include <csignal>

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
