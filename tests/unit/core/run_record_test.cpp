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

TEST_CASE("a listing knows files by name and size, in any order and without reading", "[core]") {
  const TemporaryFolder folder;
  const auto below = folder / "images";
  std::filesystem::create_directories(below / "a b");
  std::filesystem::create_directories(below / "a");
  const std::vector<std::filesystem::path> files{below / "a b" / "1", below / "a" / "2",
                                                 below / "a" / "10"};
  for (const auto& path : files) write_text_atomically(path, path.filename().string());
  const FileListing listing = list_files(below, files);
  CHECK(listing.files == 3);
  CHECK(listing.bytes == 4);
  CHECK(listing.sha256 == sha256_of_text("a b/1\t1\na/10\t2\na/2\t1\n"));
  CHECK(list_files(below.string() + "/", {files[2], files[0], files[1]}).sha256 == listing.sha256);

  write_text_atomically(files[0], "x");  // what the documents say it does not notice
  CHECK((list_files(below, files) == listing));
  write_text_atomically(files[0], "xy");
  CHECK(list_files(below, files).sha256 != listing.sha256);
  CHECK(list_files(below, {files[1], files[2]}).sha256 != listing.sha256);
  expect_error(ErrorKind::kInput, {"absent"}, [&] { list_files(below, {below / "absent"}); });

  RunRecord record("tool", "cpu", 2, 7);
  CHECK_FALSE(record.to_json().contains("inputs_listed"));
  RunInputs inputs{{files[1]}, {listing}};
  inputs.add({{files[2]}, {listing}});
  record.add_inputs(inputs);
  record.add_inputs(inputs);
  const auto json = record.to_json();
  CHECK(json["inputs_sha256"].size() == 2);
  CHECK(json["inputs_listed"] == nlohmann::json{{{"folder", below.string()},
                                                 {"files", 3},
                                                 {"bytes", 4},
                                                 {"names_and_sizes_sha256", listing.sha256}}});
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
