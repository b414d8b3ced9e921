#include "support/subprocess.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <system_error>

extern char** environ;

namespace weightsmith::testing {
namespace {

using Clock = std::chrono::steady_clock;

[[noreturn]] void fail(const char* what) {
  throw std::system_error(errno, std::generic_category(), what);
}

/// One end is the child's. Closed on exec, so that a child that outlives a test holds no pipe of
/// another.
struct Pipe {
  Pipe() {
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) fail("pipe");
  }
  ~Pipe() {
    close(0);
    close(1);
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  void close(int end) {
    if (ends[end] >= 0) ::close(ends[end]);
    ends[end] = -1;
  }
  std::array<int, 2> ends{-1, -1};
};

/// Strings as execve wants them.
struct PointerList {
  explicit PointerList(std::vector<std::string> items) : texts(std::move(items)) {
    for (std::string& text : texts) pointers.push_back(text.data());
    pointers.push_back(nullptr);
  }
  std::vector<std::string> texts;
  std::vector<char*> pointers;
};

std::vector<std::string> environment_with(const std::map<std::string, std::string>& changes) {
  std::vector<std::string> all;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    if (!changes.contains(text.substr(0, text.find('=')))) all.push_back(text);
  }
  for (const auto& [name, value] : changes) all.push_back(name + "=" + value);
  return all;
}

/// Appends what a pipe holds; false at its end.
bool drain(int fd, std::string& text) {
  std::array<char, 1 << 14> buffer;
  const ssize_t count = ::read(fd, buffer.data(), buffer.size());
  if (count > 0) text.append(buffer.data(), static_cast<std::size_t>(count));
  return count > 0 || (count < 0 && errno == EINTR);
}

/// The child's side of fork: async-signal-safe calls only.
[[noreturn]] void become(const std::filesystem::path& program, char* const* arguments,
                         char* const* environment, const ProgramOptions& options, int in, int out,
                         int err) {
  ::dup2(in, STDIN_FILENO);
  ::dup2(out, STDOUT_FILENO);
  ::dup2(err, STDERR_FILENO);
  if (options.file_size_limit) {
    const rlimit limit{*options.file_size_limit, *options.file_size_limit};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) ::_exit(126);
  }
  if (!options.folder.empty() && ::chdir(options.folder.c_str()) != 0) ::_exit(126);
  ::execve(program.c_str(), arguments, environment);
  ::_exit(127);
}

}  // namespace

ProgramResult run_program(const std::filesystem::path& program,
                          const std::vector<std::string>& arguments,
                          const ProgramOptions& options) {
  std::vector<std::string> words{program.string()};
  words.insert(words.end(), arguments.begin(), arguments.end());
  const PointerList argv(words);
  const PointerList envp(environment_with(options.environment));
  Pipe in;
  Pipe out;
  Pipe err;
  const pid_t child = ::fork();
  if (child < 0) fail("fork");
  if (child == 0)
    become(program, argv.pointers.data(), envp.pointers.data(), options, in.ends[0], out.ends[1],
           err.ends[1]);
  in.close(0);
  out.close(1);
  err.close(1);
  // Small enough for the pipe's buffer, so that this does not wait for the child to read.
  if (!options.input.empty() &&
      ::write(in.ends[1], options.input.data(), options.input.size()) < 0 && errno != EPIPE)
    fail("write");
  in.close(1);

  ProgramResult result;
  const auto give_up = Clock::now() + options.timeout;
  std::optional<Clock::time_point> armed;
  bool signalled = !options.signal;
  while (out.ends[0] >= 0 || err.ends[0] >= 0) {
    std::array<pollfd, 2> fds{pollfd{out.ends[0], POLLIN, 0}, pollfd{err.ends[0], POLLIN, 0}};
    if (::poll(fds.data(), fds.size(), signalled ? 100 : 1) < 0 && errno != EINTR) fail("poll");
    if (fds[0].revents != 0 && !drain(out.ends[0], result.out)) out.close(0);
    if (fds[1].revents != 0 && !drain(err.ends[0], result.err)) err.close(0);
    if (!signalled) {
      const SignalPlan& plan = *options.signal;
      if (!armed && (plan.once_exists.empty() || std::filesystem::exists(plan.once_exists)) &&
          result.err.find(plan.once_shown) != std::string::npos)
        armed = Clock::now() + plan.delay;
      if (armed && Clock::now() >= *armed) {
        ::kill(child, plan.number);
        signalled = true;
      }
    }
    if (!result.timed_out && Clock::now() > give_up) {
      result.timed_out = true;
      ::kill(child, SIGKILL);
    }
  }
  int status = 0;
  rusage usage{};
  while (::wait4(child, &status, 0, &usage) < 0)
    if (errno != EINTR) fail("wait4");
  result.peak_bytes = static_cast<std::int64_t>(usage.ru_maxrss) * 1024;
  if (WIFSIGNALED(status)) result.killed_by = WTERMSIG(status);
  if (WIFEXITED(status)) result.exit_code = WEXITSTATUS(status);
  return result;
}

}  // namespace weightsmith::testing
