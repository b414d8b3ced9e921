#include "weightsmith/core/atomic_file.h"

#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <fstream>

#include "support/expect_error.h"
#include "support/temporary_folder.h"

namespace weightsmith {
namespace {

namespace fs = std::filesystem;
using testing::expect_error;
using testing::TemporaryFolder;

std::size_t files_in(const fs::path& folder) {
  return static_cast<std::size_t>(
      std::distance(fs::directory_iterator(folder), fs::directory_iterator{}));
}

TEST_CASE("an atomic write replaces the file and leaves nothing else", "[core]") {
  const TemporaryFolder folder;
  write_text_atomically(folder / "a.txt", "first");
  write_text_atomically(folder / "a.txt", "second");
  CHECK(read_text(folder / "a.txt") == "second");
  CHECK(files_in(folder.path()) == 1);
}

TEST_CASE("a write that fails leaves the old file and no temporary one", "[core]") {
  const TemporaryFolder folder;
  write_text_atomically(folder / "a.txt", "old");
  CHECK_THROWS_AS(write_file_atomically(folder / "a.txt",
                                        [](const fs::path& temporary) {
                                          std::ofstream(temporary) << "half";
                                          throw std::runtime_error("interrupted");
                                        }),
                  std::runtime_error);
  CHECK(read_text(folder / "a.txt") == "old");
  CHECK(files_in(folder.path()) == 1);
}

TEST_CASE("a missing folder is an output error that names the file", "[core]") {
  const TemporaryFolder folder;
  expect_error(ErrorKind::kOutput, {"nowhere/a.txt", "No such file"},
               [&] { write_text_atomically(folder / "nowhere/a.txt", "x"); });
}

TEST_CASE("a file that cannot grow is an output error, and is removed", "[core]") {
  const TemporaryFolder folder;
  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit small = before;
  small.rlim_cur = 1000;
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
  expect_error(ErrorKind::kOutput, {"big.txt", "cannot write"},
               [&] { write_text_atomically(folder / "big.txt", std::string(1 << 20, 'x')); });
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &before) == 0);
  std::signal(SIGXFSZ, handler);
  CHECK(files_in(folder.path()) == 0);
}

TEST_CASE("reading what is not there is an input error", "[core]") {
  const TemporaryFolder folder;
  expect_error(ErrorKind::kInput, {"none.txt"}, [&] { read_text(folder / "none.txt"); });
  expect_error(ErrorKind::kInput, {"cannot read"}, [&] { read_text(folder.path()); });
  write_text_atomically(folder / "empty.txt", "");
  CHECK(read_text(folder / "empty.txt").empty());
}

}  // namespace
}  // namespace weightsmith
