#include "weightsmith/data/shipped_data.h"

#include <spdlog/fmt/fmt.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "weightsmith/core/error.h"

namespace weightsmith {
namespace fs = std::filesystem;

fs::path shipped_data_folder(const std::string& name) {
  std::vector<fs::path> roots;
  if (const char* chosen = std::getenv("WEIGHTSMITH_DATA_DIR"); chosen != nullptr && *chosen) {
    roots.emplace_back(chosen);
  } else {
    std::error_code unknown;
    const fs::path executable = fs::read_symlink("/proc/self/exe", unknown);
    if (!unknown)
      roots.push_back(executable.parent_path().parent_path() / "share/weightsmith/data");
    roots.emplace_back(WEIGHTSMITH_SOURCE_DATA_DIR);
  }
  std::string tried;
  for (const fs::path& root : roots) {
    std::error_code ignored;
    if (fs::is_directory(root / name, ignored)) return root / name;
    tried += (tried.empty() ? "" : ", ") + (root / name).string();
  }
  throw Error(ErrorKind::kInput, name,
              fmt::format("the shipped data set was not found in {}", tried),
              "set WEIGHTSMITH_DATA_DIR to the folder that holds it");
}

}  // namespace weightsmith
