#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "weightsmith/core/progress.h"

namespace weightsmith {

/// Progress on standard error: one rewritten line with rate and time left on a terminal, a plain
/// line every few seconds otherwise, nothing with --quiet. Each phase's wall time is handed on when
/// it ends.
class TerminalProgress final : public Progress {
 public:
  using PhaseEnded = std::function<void(const std::string& phase, double seconds)>;

  explicit TerminalProgress(bool quiet);
  void on_phase_end(PhaseEnded callback) { phase_ended_ = std::move(callback); }

  void begin(std::string_view phase, std::int64_t total, std::string_view unit) override;
  void update(std::int64_t done, std::string_view detail) override;
  void end() override;
  void warn(std::string_view message) override;

 private:
  using Clock = std::chrono::steady_clock;
  struct Open {
    std::string name;
    std::string unit;
    std::int64_t total;
    Clock::time_point started;
  };
  void erase_line();

  bool quiet_;
  bool terminal_;
  bool line_shown_ = false;
  std::vector<Open> open_;  // phases may nest; the innermost is shown
  Clock::time_point last_shown_;
  PhaseEnded phase_ended_;
};

/// "1:02:03" or "2:03".
std::string format_duration(double seconds);

}  // namespace weightsmith
