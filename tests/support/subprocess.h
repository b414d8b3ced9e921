#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace weightsmith::testing {

/// A signal for a running program: once the file is there (if one is named) and standard error
/// shows the text (if one is given), and then `delay` has passed.
struct SignalPlan {
  int number = 0;
  std::filesystem::path once_exists;
  std::string once_shown;
  std::chrono::milliseconds delay{0};
};

struct ProgramOptions {
  std::string input;                               ///< standard input
  std::filesystem::path folder;                    ///< working folder; empty: this process's
  std::map<std::string, std::string> environment;  ///< beside what this process has
  std::optional<std::uint64_t> file_size_limit;    ///< RLIMIT_FSIZE: no file grows beyond it
  std::optional<SignalPlan> signal;
  std::chrono::seconds timeout{120};
};

struct ProgramResult {
  int exit_code = -1;  ///< -1 when a signal or the timeout ended it
  int killed_by = 0;   ///< the signal that ended it, if one did
  bool timed_out = false;
  std::int64_t peak_bytes = 0;  ///< largest resident memory
  std::string out;
  std::string err;
};

/// Runs a program to its end and returns what it said. Throws std::system_error when the machine
/// has no process or pipe to give; a program that cannot be started ends with 127.
ProgramResult run_program(const std::filesystem::path& program,
                          const std::vector<std::string>& arguments,
                          const ProgramOptions& options = {});

}  // namespace weightsmith::testing
