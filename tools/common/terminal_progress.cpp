#include "common/terminal_progress.h"

#include <spdlog/fmt/fmt.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cstdio>

namespace weightsmith {
namespace {

constexpr double kTerminalInterval_s = 0.1;
constexpr double kPlainInterval_s = 5.0;

}  // namespace

std::string format_duration(double seconds) {
  const auto total = static_cast<std::int64_t>(seconds + 0.5);
  const std::int64_t hours = total / 3600;
  const std::int64_t minutes = total / 60 % 60;
  return hours > 0 ? fmt::format("{}:{:02}:{:02}", hours, minutes, total % 60)
                   : fmt::format("{}:{:02}", minutes, total % 60);
}

TerminalProgress::TerminalProgress(bool quiet)
    : quiet_(quiet), terminal_(::isatty(STDERR_FILENO) == 1) {}

void TerminalProgress::begin(std::string_view phase, std::int64_t total, std::string_view unit) {
  open_.push_back({std::string(phase), std::string(unit), total, Clock::now()});
  last_shown_ = Clock::now();
  spdlog::debug("{}: begins", phase);
}

void TerminalProgress::update(std::int64_t done, std::string_view detail) {
  if (quiet_ || open_.empty()) return;
  const auto now = Clock::now();
  const std::chrono::duration<double> since = now - last_shown_;
  if (since.count() < (terminal_ ? kTerminalInterval_s : kPlainInterval_s)) return;
  last_shown_ = now;
  const Open& phase = open_.back();
  const double elapsed_s = std::chrono::duration<double>(now - phase.started).count();
  const double rate = elapsed_s > 0 ? static_cast<double>(done) / elapsed_s : 0;
  std::string line = phase.total > 0
                         ? fmt::format("{}: {}/{} {}", phase.name, done, phase.total, phase.unit)
                         : fmt::format("{}: {} {}", phase.name, done, phase.unit);
  if (rate > 0) line += fmt::format(", {:.1f} {}/s", rate, phase.unit);
  if (rate > 0 && phase.total > 0)
    line +=
        fmt::format(", {} left", format_duration(static_cast<double>(phase.total - done) / rate));
  if (!detail.empty()) line += fmt::format(", {}", detail);
  if (terminal_) {
    fmt::print(stderr, "\r\x1b[K{}", line);
    std::fflush(stderr);
    line_shown_ = true;
  } else {
    spdlog::info("{}", line);
  }
}

void TerminalProgress::end() {
  if (open_.empty()) return;
  erase_line();
  const std::chrono::duration<double> elapsed = Clock::now() - open_.back().started;
  const std::string name = open_.back().name;
  open_.pop_back();
  spdlog::debug("{}: {:.2f} s", name, elapsed.count());
  if (phase_ended_) phase_ended_(name, elapsed.count());
}

void TerminalProgress::warn(std::string_view message) {
  erase_line();
  spdlog::warn("{}", message);
}

void TerminalProgress::erase_line() {
  if (!line_shown_) return;
  fmt::print(stderr, "\r\x1b[K");
  std::fflush(stderr);
  line_shown_ = false;
}

}  // namespace weightsmith
