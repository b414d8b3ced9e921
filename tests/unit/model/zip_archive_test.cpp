#include "weightsmith/model/zip_archive.h"

#include <random>

#include "support/archives.h"
#include "support/expect_error.h"
#include "support/files.h"
#include "support/temporary_folder.h"
#include "weightsmith/model/file_kind.h"

using namespace weightsmith;
using testing::expect_error;
using testing::read_bytes;
using testing::TemporaryFolder;
using testing::write_archive;
using testing::write_bytes;

namespace {

std::string noise(std::size_t size) {
  std::mt19937 random(static_cast<unsigned>(size));
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

/// The end-of-archive record of a zip file and one entry of its list, patched by a test.
void patch(std::string& bytes, std::size_t at, std::initializer_list<int> values) {
  for (const int value : values) bytes.at(at++) = static_cast<char>(value);
}

}  // namespace

TEST_CASE("zip archives give back their records", "[zip_archive]") {
  TemporaryFolder folder;
  const testing::Records records{
      {"a", ""}, {"data/0", noise(100)}, {"data/1", noise(1'000'000)}, {"x.txt", "text"}};
  const ZipArchive archive(write_archive(folder / "file.pt", records));
  archive.verify_all();
  for (const auto& [name, contents] : records) {
    CHECK(archive.contains("file/" + name));
    CHECK(archive.entry("file/" + name).bytes == contents.size());
    CHECK(archive.read("file/" + name) == contents);
  }
  CHECK_FALSE(archive.contains("data/0"));
  expect_error(ErrorKind::kInput, {"file.pt", "no record nothing"},
               [&] { archive.read("nothing"); });
}

TEST_CASE("damaged zip archives are refused", "[zip_archive]") {
  TemporaryFolder folder;
  const std::string good =
      read_bytes(write_archive(folder / "file.pt", {{"data/0", noise(4000)}, {"b", "bb"}}));
  const auto refuse = [&](const std::string& bytes, const std::string& message) {
    const auto path = write_bytes(folder / "bad.pt", bytes);
    expect_error(ErrorKind::kInput, {"bad.pt", message}, [&] { ZipArchive(path).verify_all(); });
  };
  SECTION("a flipped bit of a record's data names the record") {
    std::string bytes = good;
    bytes[bytes.find(noise(4000)) + 1234] ^= 4;
    refuse(bytes, "file/data/0 is damaged (its checksum)");
  }
  SECTION("missing, empty, text and truncated files") {
    expect_error(ErrorKind::kInput, {"none.pt", "no such file"},
                 [&] { ZipArchive(folder / "none.pt"); });
    refuse("", "not a zip archive");
    refuse("hello there", "not a zip archive");
    refuse(good.substr(0, good.size() / 2), "cut short");
    expect_error(ErrorKind::kInput, {"not a regular file"}, [&] { ZipArchive{folder.path()}; });
  }
  SECTION("a record that claims far more than the file can hold") {
    std::string bytes = good;
    const std::size_t entry = bytes.find("PK\x01\x02");
    patch(bytes, entry + 24, {0xf0, 0xff, 0xff, 0x7f});
    refuse(bytes, "beyond all proportion");
  }
  SECTION("encryption and unknown compression") {
    std::string bytes = good;
    const std::size_t entry = bytes.find("PK\x01\x02");
    bytes[entry + 8] |= 1;
    refuse(bytes, "encrypted");
    bytes = good;
    bytes[entry + 10] = 12;
    refuse(bytes, "unknown method 12");
  }
  SECTION("two records of one name") {
    std::string bytes = write_archive(folder / "twin.pt", {{"aa", "1"}, {"ab", "2"}}).string();
    bytes = read_bytes(folder / "twin.pt");
    for (std::size_t at = bytes.find("twin/ab"); at != std::string::npos;
         at = bytes.find("twin/ab", at + 1))
      bytes[at + 6] = 'a';
    refuse(bytes, "twin/aa occurs twice");
  }
  SECTION("no single flipped bit in a record's data passes") {
    const std::size_t data = good.find(noise(4000));
    std::mt19937 random(2);
    for (int i = 0; i < 100; ++i) {
      std::string bytes = good;
      bytes[data + random() % 4000] ^= static_cast<char>(1u << (random() % 8));
      refuse(bytes, "checksum");
    }
  }
  SECTION("flips anywhere are errors or harmless, never a crash") {
    std::mt19937 random(3);
    for (int i = 0; i < 500; ++i) {
      std::string bytes = good;
      bytes[random() % bytes.size()] ^= static_cast<char>(1u << (random() % 8));
      try {
        ZipArchive(write_bytes(folder / "bad.pt", bytes)).verify_all();
      } catch (const Error& error) {
        REQUIRE(error.kind() == ErrorKind::kInput);
      }
    }
  }
}

TEST_CASE("files are told apart by their contents", "[file_kind]") {
  TemporaryFolder folder;
  const auto kind = [&](const std::string& bytes) {
    return detect_file_kind(write_bytes(folder / "f", bytes));
  };
  CHECK(kind("") == FileKind::kEmpty);
  CHECK(kind("layer: 3\n") == FileKind::kText);
  CHECK(kind(std::string("\x02\0\0\0\0\0\0\0{}", 10)) == FileKind::kSafetensors);
  CHECK(kind("\x80\x02}.") == FileKind::kLegacyPickle);
  CHECK(kind(std::string("\x7f"
                         "ELF\0",
                         5)) == FileKind::kUnknown);
  CHECK(kind("PK\x03\x04 and then nothing") == FileKind::kTruncatedZip);
  CHECK(detect_file_kind(write_archive(folder / "a.pt", {{"x", "y"}})) == FileKind::kOtherZip);
  CHECK(detect_file_kind(write_archive(folder / "b.pt", {{"data.pkl", "y"}})) ==
        FileKind::kPythonPickle);
  CHECK(detect_file_kind(write_archive(
            folder / "c.pt", {{"data.pkl", ""}, {"constants.pkl", ""}})) == FileKind::kTorchScript);
  expect_error(ErrorKind::kInput, {"nowhere", "no such file"},
               [&] { detect_file_kind(folder / "nowhere"); });
}
