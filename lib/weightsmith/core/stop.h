#pragma once

namespace weightsmith {

/// Asks every long-running loop to stop at its next safe point; async-signal-safe. 0 withdraws the
/// request.
void request_stop(int signal) noexcept;

/// The signal of a pending request, else 0.
int stop_requested() noexcept;

/// Throws Interrupted when a stop was requested. Call it where nothing would be lost.
void stop_here_if_requested();

}  // namespace weightsmith
