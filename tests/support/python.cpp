#include "support/python.h"

#include <cstdlib>
#include <fstream>
#include <iterator>

namespace weightsmith::testing {

std::string python() {
  const char* chosen = std::getenv("WEIGHTSMITH_TEST_PYTHON");
  return chosen != nullptr ? chosen : "/usr/bin/python3";
}

bool python_has(const std::string& module) {
  return std::system((python() + " -c 'import " + module + "' > /dev/null 2>&1").c_str()) == 0;
}

bool python_has_torch() {
  static const bool has = python_has("torch");
  return has;
}

bool run_python(const std::filesystem::path& folder, const std::string& script) {
  std::ofstream(folder / "script.py") << script;
  const std::string command =
      "cd '" + folder.string() + "' && " + python() + " script.py > python.log 2>&1";
  return std::system(command.c_str()) == 0;
}

std::string python_log(const std::filesystem::path& folder) {
  std::ifstream file(folder / "python.log");
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace weightsmith::testing
