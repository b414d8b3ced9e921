#pragma once

#include <filesystem>
#include <string>

namespace weightsmith::testing {

/// A file of tests/data/golden.
inline std::filesystem::path golden(const std::string& name) {
  return std::filesystem::path(WEIGHTSMITH_TEST_DATA) / "golden" / name;
}

}  // namespace weightsmith::testing
