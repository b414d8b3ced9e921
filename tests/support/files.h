#pragma once

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

namespace weightsmith::testing {

/// Writes `bytes` as a file and returns its path.
inline std::filesystem::path write_bytes(const std::filesystem::path& path,
                                         const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
  return path;
}

inline std::string read_bytes(const std::filesystem::path& path) {
  std::ostringstream out;
  out << std::ifstream(path, std::ios::binary).rdbuf();
  return out.str();
}

}  // namespace weightsmith::testing
