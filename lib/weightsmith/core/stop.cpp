#include "weightsmith/core/stop.h"

#include <atomic>

#include "weightsmith/core/error.h"

namespace weightsmith {
namespace {
std::atomic<int> g_signal{0};
static_assert(std::atomic<int>::is_always_lock_free, "request_stop runs in a signal handler");
}  // namespace

void request_stop(int signal) noexcept { g_signal.store(signal, std::memory_order_relaxed); }

int stop_requested() noexcept { return g_signal.load(std::memory_order_relaxed); }

void stop_here_if_requested() {
  if (const int signal = stop_requested(); signal != 0) throw Interrupted(signal);
}

}  // namespace weightsmith
