#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace weightsmith {

/// Why a run failed. The value is the process's exit code (docs/exit-codes.md).
enum class ErrorKind {
  kConfig = 2,     ///< command line or configuration
  kInput = 3,      ///< unreadable, corrupt or mismatched model or data
  kOutput = 4,     ///< cannot write
  kNumeric = 5,    ///< non-finite values, failed verification, out of memory
  kInternal = 70,  ///< a bug of ours
};

/// The one exception for expected failures. Reads `WHERE: WHAT (REMEDY)` on one line.
class Error : public std::runtime_error {
 public:
  /// `where` names the file, layer or key; `what` the value seen and wanted; `remedy` what to do
  /// (may be empty).
  Error(ErrorKind kind, std::string_view where, std::string_view what,
        std::string_view remedy = {});

  ErrorKind kind() const { return kind_; }
  int exit_code() const { return static_cast<int>(kind_); }

 private:
  ErrorKind kind_;
};

/// Ends a run that was asked to stop; `signal` is SIGINT, SIGTERM or SIGUSR1 (exit code 128 +
/// signal). `saved` says what was written to go on from; nothing is ever left half-written.
class Interrupted : public std::runtime_error {
 public:
  explicit Interrupted(int signal, std::string_view saved = {});
  int signal() const { return signal_; }

 private:
  int signal_;
};

/// Throws Error{kInternal} naming the place when an invariant of ours does not hold.
[[noreturn]] void fail_check(const char* condition, const char* file, int line,
                             std::string_view detail);

}  // namespace weightsmith

/// Guards an invariant: `WS_CHECK(rows == cols)` or `WS_CHECK(rows == cols, "sims is 3x4")`. Always
/// on.
#define WS_CHECK(condition, ...)                                                                \
  do {                                                                                          \
    if (!(condition)) [[unlikely]]                                                              \
      ::weightsmith::fail_check(#condition, __FILE__, __LINE__, std::string_view{__VA_ARGS__}); \
  } while (false)
