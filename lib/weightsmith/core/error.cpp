#include "weightsmith/core/error.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>

namespace weightsmith {
namespace {

/// Errors are one line each, so that scripts can read them: line breaks of third parties become
/// spaces.
std::string one_line(std::string_view where, std::string_view what, std::string_view remedy) {
  std::string text = where.empty() ? std::string(what) : fmt::format("{}: {}", where, what);
  if (!remedy.empty()) text += fmt::format(" ({})", remedy);
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c == '\n' || c == '\r'; }, ' ');
  return text;
}

}  // namespace

Error::Error(ErrorKind kind, std::string_view where, std::string_view what, std::string_view remedy)
    : std::runtime_error(one_line(where, what, remedy)), kind_(kind) {}

Interrupted::Interrupted(int signal, std::string_view saved)
    : std::runtime_error(saved.empty() ? fmt::format("stopped by signal {}", signal)
                                       : fmt::format("stopped by signal {}: {}", signal, saved)),
      signal_(signal) {}

void fail_check(const char* condition, const char* file, int line, std::string_view detail) {
  const std::string_view path(file);
  const std::string_view name = path.substr(path.find_last_of('/') + 1);
  throw Error(ErrorKind::kInternal, fmt::format("{}:{}", name, line),
              detail.empty() ? fmt::format("check failed: {}", condition)
                             : fmt::format("check failed: {}: {}", condition, detail),
              "a bug in weightsmith, please report it");
}

}  // namespace weightsmith
