#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "weightsmith/core/file_listing.h"

namespace weightsmith {

/// What a run reads.
struct RunInputs {
  std::vector<std::filesystem::path> files;
  std::vector<FileListing> listings;  ///< of folders with too many files to read each twice

  void add(const RunInputs& other);
};

/// What run.json says of a run: where, when, with what, how long each phase took.
class RunRecord {
 public:
  RunRecord(std::string tool, std::string device, int threads, std::int64_t seed);

  /// Notes an input file and its SHA-256. Throws Error{kInput} when it cannot be read.
  void add_input(const std::filesystem::path& path);
  /// The same for one whose content is known, because reading it again might give something else.
  void add_input(const std::filesystem::path& path, std::string sha256);
  /// Notes files as above, and listings as they are.
  void add_inputs(const RunInputs& inputs);
  /// The files noted so, and their hashes; without those of listings.
  const std::map<std::string, std::string>& inputs() const { return inputs_; }
  /// Notes a file that the run wrote, relative to its folder.
  void add_output(const std::filesystem::path& path);
  /// Adds wall time to a phase; phases are listed in the order of their first end.
  void add_phase(const std::string& name, double seconds);
  /// Adds a figure of the tool's own.
  void set(const std::string& key, nlohmann::json value);

  nlohmann::json to_json() const;

 private:
  std::string tool_;
  std::string device_;
  int threads_;
  std::int64_t seed_;
  std::chrono::system_clock::time_point started_;
  std::chrono::steady_clock::time_point clock_;
  std::map<std::string, std::string> inputs_;
  std::vector<FileListing> listings_;
  std::set<std::string> outputs_;
  std::vector<std::pair<std::string, double>> phases_;
  std::vector<std::pair<std::string, std::string>> extra_;  // values as JSON text
};

/// The largest resident set of this process so far, in bytes.
std::int64_t peak_memory_bytes();

}  // namespace weightsmith
