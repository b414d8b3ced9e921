#include "weightsmith/core/atomic_file.h"

#include <fcntl.h>
#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include "weightsmith/core/error.h"

namespace weightsmith {
namespace fs = std::filesystem;
namespace {

[[noreturn]] void fail_output(const fs::path& path, int error) {
  const char* remedy = error == ENOSPC   ? "free some space or choose another --out"
                       : error == ENOENT ? "create the folder first"
                                         : "choose another --out";
  throw Error(ErrorKind::kOutput, path.string(),
              fmt::format("cannot write: {}", std::strerror(error)), remedy);
}

/// The temporary file being written, for signal handlers; files are written one at a time.
char g_temporary[4096] = "";

/// Removes the temporary file unless it was renamed away.
struct TemporaryFile {
  fs::path path;
  bool kept = false;
  explicit TemporaryFile(fs::path p) : path(std::move(p)) {
    if (path.native().size() < sizeof(g_temporary)) std::strcpy(g_temporary, path.c_str());
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() {
    g_temporary[0] = '\0';
    std::error_code ignored;
    if (!kept) fs::remove(path, ignored);
  }
};

/// Makes the contents (or, for a folder, its list of names) survive a crash of the machine.
int sync_path(const fs::path& path, int flags) {
  const int fd = ::open(path.c_str(), flags | O_CLOEXEC);
  if (fd < 0) return errno;
  const int status = ::fsync(fd) == 0 ? 0 : errno;
  ::close(fd);
  return status == EINVAL || status == EROFS
             ? 0
             : status;  // file systems without fsync on this kind of file
}

}  // namespace

void write_file_atomically(const fs::path& path,
                           const std::function<void(const fs::path&)>& write) {
  TemporaryFile temporary(fs::path(path.string() + fmt::format(".tmp-{}", ::getpid())));
  // Created here, so that a folder that is missing or not writable is told apart from what `write`
  // may throw.
  const int fd = ::open(temporary.path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) {
    const int error = errno;
    temporary.kept = true;
    fail_output(path, error);
  }
  ::close(fd);
  write(temporary.path);
  if (const int error = sync_path(temporary.path, O_RDONLY); error != 0) fail_output(path, error);
  std::error_code error;
  fs::rename(temporary.path, path, error);
  if (error) fail_output(path, error.value());
  temporary.kept = true;
  sync_path(path.has_parent_path() ? path.parent_path() : fs::path("."), O_RDONLY | O_DIRECTORY);
}

void remove_temporary_file_now() noexcept {
  if (g_temporary[0] != '\0') ::unlink(g_temporary);
}

void write_text_atomically(const fs::path& path, std::string_view contents) {
  write_file_atomically(path, [&](const fs::path& temporary) {
    std::ofstream out(temporary, std::ios::binary);
    out.write(contents.data(), static_cast<std::streamsize>(contents.size()));
    out.close();
    if (!out) fail_output(path, errno != 0 ? errno : EIO);
  });
}

void make_folder(const fs::path& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error || !fs::is_directory(path)) fail_output(path, error ? error.value() : ENOTDIR);
}

std::string read_text(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream contents;
  if (!in || fs::is_directory(path) || !(contents << in.rdbuf() || in.peek() == EOF))
    throw Error(ErrorKind::kInput, path.string(), "cannot read the file",
                "check the path and its permissions");
  return contents.str();
}

}  // namespace weightsmith
