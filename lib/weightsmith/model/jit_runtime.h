#pragma once

#include <string>
#include <string_view>

#include "weightsmith/core/error.h"

namespace weightsmith {

/// Sets how TorchScript runs in this process; called whenever a ScriptModel is made:
/// - the simple executor instead of the profiling one, which specialises graphs to the shapes it
///   meets and is slower where LibTorch has no CPU fuser (ResNet-20, batch 128, one thread: 471
///   against 590 ms a training step);
/// - `print` in a network's code says nothing: standard output belongs to the summary.
void prepare_jit_runtime();

/// Makes the allocator keep the memory of large blocks that are freed, for the rest of the process.
/// By default glibc hands it back and the next batch's activations are paged in anew: gradients to
/// inputs then take up to four times as long. Does nothing with another C library.
void keep_freed_memory();

/// Hands the system back what is free now, and, as long as keep_freed_memory was not called, large
/// blocks as soon as they are freed. By default the C library comes to keep blocks of up to 32 MiB,
/// so that a process may hold far more than it uses. Does nothing where it is not glibc.
void return_freed_memory();

/// Whether the message of a LibTorch exception says that memory ran out, on any device.
bool is_out_of_memory(std::string_view message);

/// The one line of a LibTorch or TorchScript message that gives the reason, without the traces
/// around it; at most 300 bytes.
std::string jit_error_reason(std::string_view message);

/// What to do about a network that refuses its input, by the reason that LibTorch gives.
std::string_view input_remedy(std::string_view reason);

/// For a `catch (...)` block around LibTorch: throws Error{kind} at `where` reading "`what`:
/// REASON", or Error{kNumeric} when memory ran out. Error and Interrupted pass through unchanged.
[[noreturn]] void throw_jit_error(ErrorKind kind, std::string_view where, std::string_view what,
                                  std::string_view remedy = {});

}  // namespace weightsmith
