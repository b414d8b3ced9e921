#pragma once

#include <cstdint>
#include <string_view>

namespace weightsmith {

/// Where the library reports how far it is. The library itself never prints; tools/common shows
/// this on a terminal.
class Progress {
 public:
  virtual ~Progress() = default;
  /// A phase begins: `total` units of work, called `unit` ("images", "groups"); 0 where the total
  /// is not known.
  virtual void begin(std::string_view phase, std::int64_t total, std::string_view unit) = 0;
  /// `done` units of the phase are finished; `detail` may hold a figure worth showing ("loss
  /// 0.31").
  virtual void update(std::int64_t done, std::string_view detail = {}) = 0;
  /// The phase is over; its wall time goes to run.json.
  virtual void end() = 0;
  /// Something the user should know that is not an error; one line.
  virtual void warn(std::string_view /*message*/) {}
};

/// Reports nothing.
class NoProgress final : public Progress {
 public:
  void begin(std::string_view, std::int64_t, std::string_view) override {}
  void update(std::int64_t, std::string_view) override {}
  void end() override {}
};

/// Begins a phase and ends it on leaving the scope.
class Phase {
 public:
  Phase(Progress& progress, std::string_view name, std::int64_t total = 0,
        std::string_view unit = "steps")
      : progress_(progress) {
    progress_.begin(name, total, unit);
  }
  ~Phase() { progress_.end(); }
  Phase(const Phase&) = delete;
  Phase& operator=(const Phase&) = delete;
  void update(std::int64_t done, std::string_view detail = {}) { progress_.update(done, detail); }

 private:
  Progress& progress_;
};

}  // namespace weightsmith
