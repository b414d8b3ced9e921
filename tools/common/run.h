#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>

#include "weightsmith/config/fields.h"
#include "weightsmith/core/error.h"
#include "weightsmith/core/progress.h"
#include "weightsmith/core/run_record.h"

namespace weightsmith {

/// What a tool's body needs to know of the run it is part of, beside its own configuration.
class Run {
 public:
  struct Settings {
    std::filesystem::path out;
    at::Device device = at::kCPU;
    int threads = 1;
    std::uint64_t seed = 0;
    bool resume = false;
    bool overwrite = false;
    bool dry_run = false;
    bool trust = false;
    /// Of a subcommand that asks for one (Command::takes_config), not yet validated; else null.
    nlohmann::json raw_config;
    std::filesystem::path config_folder;  ///< where its relative paths start
    OverriddenKeys overridden;            ///< but those of --set
  };

  Run(const std::string& tool, Settings settings, Progress& progress);

  const Settings& settings() const { return settings_; }
  Progress& progress() { return progress_; }
  RunRecord& record() { return record_; }

  /// The body calls this when everything that may refuse the run has been checked, before it
  /// writes: the output folder becomes this run's. Not with --dry-run.
  void start();
  bool started() const { return started_; }
  void on_start(std::function<void()> action) { start_ = std::move(action); }

  /// Notes a file below `out` that the body wrote: it belongs to this run, and goes when another
  /// run replaces it.
  void wrote(const std::filesystem::path& path);
  /// Writes a text file atomically, and notes it.
  void write_text(const std::filesystem::path& path, const std::string& text);
  /// All of them, relative to `out`.
  const std::set<std::string>& outputs() const { return outputs_; }

  /// The body has results worth printing and yet failed: after the summary, `error` is raised.
  void fail_at_end(Error error) { failure_ = std::move(error); }
  const std::optional<Error>& failure() const { return failure_; }

  /// Writes the table a person wants to see at the end to standard error.
  void show(const std::string& text);

 private:
  Settings settings_;
  RunRecord record_;
  Progress& progress_;
  std::function<void()> start_;
  bool started_ = false;
  std::set<std::string> outputs_;
  std::optional<Error> failure_;
};

}  // namespace weightsmith
