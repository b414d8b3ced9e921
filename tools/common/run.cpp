#include "common/run.h"

#include <spdlog/spdlog.h>

#include <sstream>

#include "weightsmith/core/atomic_file.h"

namespace weightsmith {

Run::Run(const std::string& tool, Settings settings, Progress& progress)
    : settings_(std::move(settings)),
      record_(tool, settings_.device.str(), settings_.threads,
              static_cast<std::int64_t>(settings_.seed)),
      progress_(progress) {}

void Run::start() {
  start_();
  started_ = true;
}

void Run::wrote(const std::filesystem::path& path) {
  outputs_.insert(path.lexically_relative(settings_.out).string());
}

void Run::write_text(const std::filesystem::path& path, const std::string& text) {
  write_text_atomically(path, text);
  wrote(path);
}

void Run::show(const std::string& text) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) spdlog::info("{}", line);
}

}  // namespace weightsmith
