#include "weightsmith/core/run_record.h"

#include <nlohmann/json.hpp>

#include "support/expect_error.h"
#include "support/temporary_folder.h"
#include "weightsmith/core/atomic_file.h"
#include "weightsmith/core/sha256.h"
#include "weightsmith/core/stop.h"

namespace weightsmith {
namespace {

using testing::expect_error;
using testing::TemporaryFolder;

TEST_CASE("SHA-256 agrees with the published test vectors", "[core]") {
  // FIPS 180-2, appendix B.1 and the empty message.
  CHECK(sha256_of_text("abc") ==
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(sha256_of_text("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

TEST_CASE("a run record lists inputs with their hashes and phases with their times", "[core]") {
  const TemporaryFolder folder;
  write_text_atomically(folder / "in", "abc");
  RunRecord record("tool", "cpu", 2, 7);
  record.add_input(folder / "in");
  record.add_phase("load", 1.0);
  record.add_phase("match", 2.0);
  record.add_phase("load", 0.5);
  record.set("figure", 3);
  record.add_input("pipe", sha256_of_text("what it said"));
  record.add_output("b/net.pt");
  record.add_output("a.txt");
  record.add_output("b/net.pt");
  const auto json = record.to_json();
  CHECK(json["inputs_sha256"][(folder / "in").string()] == sha256_of_text("abc"));
  CHECK(json["phases_s"]["load"] == 1.5);
  CHECK(json["phases_s"]["match"] == 2.0);
  CHECK(json["threads"] == 2);
  CHECK(json["seed"] == 7);
  CHECK(json["figure"] == 3);
  CHECK(json["inputs_sha256"]["pipe"] == sha256_of_text("what it said"));
  CHECK(json["outputs"] == nlohmann::json{"a.txt", "b/net.pt"});
  CHECK(json["peak_memory_bytes"] > 1000000);
  expect_error(ErrorKind::kInput, {"absent"}, [&] { record.add_input(folder / "absent"); });
}

TEST_CASE("a stop request is seen until it is withdrawn", "[core]") {
  CHECK_NOTHROW(stop_here_if_requested());
  request_stop(15);
  CHECK(stop_requested() == 15);
  try {
    stop_here_if_requested();
    FAIL("no exception");
  } catch (const Interrupted& e) {
    CHECK(e.signal() == 15);
  }
  request_stop(0);
  CHECK_NOTHROW(stop_here_if_requested());
}

}  // namespace
}  // namespace weightsmith
