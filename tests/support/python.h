#pragma once

#include <filesystem>
#include <string>

namespace weightsmith::testing {

/// The Python interpreter that the tests may use: the environment's WEIGHTSMITH_TEST_PYTHON, else
/// the system's python3.
std::string python();

/// True when it can import a module; tests that need it are skipped with a message otherwise.
bool python_has(const std::string& module);
bool python_has_torch();

/// Runs a script in `folder`; true when it ends with 0. What it says goes to `folder`/python.log.
bool run_python(const std::filesystem::path& folder, const std::string& script);
std::string python_log(const std::filesystem::path& folder);

}  // namespace weightsmith::testing
