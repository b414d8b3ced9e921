#include "weightsmith/model/jit_runtime.h"

#include <c10/util/Exception.h>
#include <spdlog/fmt/fmt.h>
#include <torch/csrc/jit/frontend/error_report.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/csrc/jit/runtime/print_handler.h>

#include <limits>
#include <new>

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace weightsmith {
namespace {

constexpr std::size_t kMaxReason = 300;

/// "RuntimeError: the reason" is how the interpreter ends its traces.
std::string_view after_exception_name(std::string_view line) {
  const std::size_t colon = line.find(": ");
  if (colon == std::string_view::npos) return {};
  const std::string_view name = line.substr(0, colon);
  const bool one_word = name.find_first_of(" \t\"'(") == std::string_view::npos;
  return one_word && (name.ends_with("Error") || name.ends_with("Exception"))
             ? line.substr(colon + 2)
             : std::string_view();
}

}  // namespace

void prepare_jit_runtime() {
  torch::jit::getExecutorMode() = true;
  torch::jit::getProfilingMode() = false;
  torch::jit::setPrintHandler([](const std::string&) {});
}

void keep_freed_memory() {
#ifdef __GLIBC__
  ::mallopt(M_MMAP_MAX, 0);
  ::mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
#endif
}

void return_freed_memory() {
#ifdef __GLIBC__
  ::mallopt(M_MMAP_THRESHOLD, 1 << 20);  // a fixed one; by default it grows
  ::malloc_trim(0);
#endif
}

bool is_out_of_memory(std::string_view message) {
  return message.find("can't allocate memory") != std::string_view::npos ||
         message.find("out of memory") != std::string_view::npos;
}

std::string jit_error_reason(std::string_view message) {
  std::string_view first, named;
  while (!message.empty()) {
    const std::size_t end = message.find('\n');
    std::string_view line = message.substr(0, end);
    message = end == std::string_view::npos ? std::string_view() : message.substr(end + 1);
    const std::size_t begin = line.find_first_not_of(" \t\r");
    if (begin == std::string_view::npos) continue;
    line.remove_prefix(begin);
    if (first.empty()) first = line;
    if (const std::string_view reason = after_exception_name(line); !reason.empty()) named = reason;
  }
  std::string reason(named.empty() ? first : named);
  if (reason.size() > kMaxReason) reason = reason.substr(0, kMaxReason - 3) + "...";
  return reason.empty() ? "no reason given" : reason;
}

std::string_view input_remedy(std::string_view reason) {
  if (reason.find("missing value for argument") != std::string_view::npos)
    return "give the inputs that its forward takes";
  // Networks are run in float32 or wider, whatever type they are stored in.
  return reason.find("type") != std::string_view::npos
             ? "let the network convert to the type of its parameters, not to a fixed one"
             : "give inputs of the shape that the network takes";
}

void throw_jit_error(ErrorKind kind, std::string_view where, std::string_view what,
                     std::string_view remedy) {
  const auto fail = [&](const std::string& message) {
    if (is_out_of_memory(message))
      throw Error(ErrorKind::kNumeric, where,
                  fmt::format("{}: out of memory: {}", what, jit_error_reason(message)),
                  "use a smaller batch");
    throw Error(kind, where, fmt::format("{}: {}", what, jit_error_reason(message)), remedy);
  };
  try {
    throw;
  } catch (const Error&) {
    throw;
  } catch (const Interrupted&) {
    throw;
  } catch (const c10::Error& error) {
    fail(error.what_without_backtrace());
  } catch (const torch::jit::ErrorReport& error) {
    fail(error.what());
  } catch (const std::bad_alloc&) {
    fail("out of memory");
  } catch (const std::exception& error) {
    fail(error.what());
  }
  throw Error(kind, where, what, remedy);
}

}  // namespace weightsmith
