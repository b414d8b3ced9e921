#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "support/files.h"
#include "support/networks.h"
#include "support/temporary_folder.h"
#include "tools.h"

namespace weightsmith::testing {

inline std::string print(const std::filesystem::path& path) { return path.string(); }

/// Networks of their own seeds, unscored unless told otherwise, matched on few digits.
inline nlohmann::json merge_of(const TemporaryFolder& folder, const std::string& name,
                               const nlohmann::json& options, int models) {
  nlohmann::json config = {{"models", nlohmann::json::array()},
                           {"activations", {{"data", {{"split", "train"}, {"limit", 100}}}}}};
  for (int i = 0; i < models; ++i)
    config["models"].push_back(
        print(save_builtin(folder / (std::string(1, static_cast<char>('a' + i)) + ".pt"), name,
                           options, static_cast<std::uint64_t>(i) + 1)));
  return config;
}

inline nlohmann::json scored(nlohmann::json config) {
  config["evaluation"]["sets"] = {
      {{"name", "joint"}, {"data", {{"split", "test"}, {"limit", 100}}}},
      {{"name", "low"},
       {"data", {{"split", "test"}, {"classes", {0, 1, 2, 3, 4}}, {"limit", 60}}},
       {"candidates", "data"}},
      {{"name", "high"},
       {"data", {{"split", "test"}, {"classes", {5, 6, 7, 8, 9}}, {"limit", 60}}},
       {"candidates", "data"}}};
  return config;
}

inline nlohmann::json run(const TemporaryFolder& folder, const nlohmann::json& config,
                          const std::string& out, std::vector<std::string> more = {}) {
  std::vector<std::string> arguments{"--config", write_config(folder / "merge.json", config),
                                     "--out", print(folder / out), "--quiet"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return summary_of(mudsc_merge(arguments));
}

inline std::vector<std::string> lines_of(const std::filesystem::path& file) {
  std::vector<std::string> lines;
  std::istringstream in(read_bytes(file));
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

}  // namespace weightsmith::testing
