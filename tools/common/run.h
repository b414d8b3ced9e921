#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>

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
  };

  Run(const std::string& tool, Settings settings, Progress& progress);

  const Settings& settings() const { return settings_; }
  Progress& progress() { return progress_; }
  RunRecord& record() { return record_; }

  /// The body calls this when everything that may refuse the run has been checked, before it
  /// writes: the output folder becomes this run's. Not with --dry-run.
  void start() { start_(); }
  void on_start(std::function<void()> action) { start_ = std::move(action); }

  /// Writes the table a person wants to see at the end to standard error.
  void show(const std::string& text);

 private:
  Settings settings_;
  RunRecord record_;
  Progress& progress_;
  std::function<void()> start_;
};

}  // namespace weightsmith
