#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

namespace weightsmith::test {

/// The Python interpreter that the tests may use: WEIGHTSMITH_TEST_PYTHON, else python3 of the
/// system.
inline std::string python() {
  const char* chosen = std::getenv("WEIGHTSMITH_TEST_PYTHON");
  return chosen != nullptr ? chosen : "/usr/bin/python3";
}

inline bool python_has_torch() {
  static const bool has =
      std::system((python() + " -c 'import torch' > /dev/null 2>&1").c_str()) == 0;
  return has;
}

/// A fresh folder, removed with its contents at the end of the test.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "weightsmith-XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// Runs a script in `folder`; true when it ends with 0. What it says goes to `folder`/python.log.
inline bool run_python(const std::filesystem::path& folder, const std::string& script) {
  std::ofstream(folder / "script.py") << script;
  const std::string command =
      "cd '" + folder.string() + "' && " + python() + " script.py > python.log 2>&1";
  return std::system(command.c_str()) == 0;
}

inline std::string python_log(const std::filesystem::path& folder) {
  std::ifstream file(folder / "python.log");
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace weightsmith::test
