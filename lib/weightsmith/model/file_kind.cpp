#include "weightsmith/model/file_kind.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <string_view>

#include "weightsmith/core/error.h"
#include "weightsmith/model/zip_archive.h"

namespace weightsmith {
namespace fs = std::filesystem;
namespace {

constexpr std::uint64_t kMaxSafetensorsHeader = 100'000'000;

FileKind zip_kind(const fs::path& path) {
  const ZipArchive archive(path);
  bool pickle = false;
  for (const ZipArchive::Entry& entry : archive.entries()) {
    const std::string_view name(entry.name);
    if (name.ends_with("/constants.pkl") || name.find("/code/") != std::string_view::npos)
      return FileKind::kTorchScript;
    pickle = pickle || name.ends_with("/data.pkl");
  }
  return pickle ? FileKind::kPythonPickle : FileKind::kOtherZip;
}

bool is_safetensors(std::string_view head, std::uint64_t file_bytes) {
  std::uint64_t length = 0;
  if (head.size() < sizeof(length) + 1) return false;
  std::memcpy(&length, head.data(), sizeof(length));
  return length <= kMaxSafetensorsHeader && length <= file_bytes - sizeof(length) &&
         head[sizeof(length)] == '{';
}

bool is_text(std::string_view head) {
  return std::all_of(head.begin(), head.end(), [](char c) {
    return static_cast<unsigned char>(c) >= 0x20 || c == '\n' || c == '\r' || c == '\t';
  });
}

}  // namespace

FileKind detect_file_kind(const fs::path& path) {
  std::error_code error;
  const auto fail = [&](const char* what) {
    throw Error(ErrorKind::kInput, path.string(), what, "check the path and its permissions");
  };
  if (!fs::exists(path, error)) fail("no such file");
  if (!fs::is_regular_file(path, error)) fail("not a regular file");
  std::ifstream in(path, std::ios::binary);
  if (!in) fail("cannot read the file");
  const std::uint64_t file_bytes = fs::file_size(path, error);
  if (file_bytes == 0) return FileKind::kEmpty;
  std::array<char, 512> buffer{};
  in.read(buffer.data(), buffer.size());
  const std::string_view head(buffer.data(), static_cast<std::size_t>(in.gcount()));

  if (head.starts_with("PK\x03\x04")) {
    // The list of records stands at a zip archive's end, so a cut loses it.
    constexpr std::string_view kEndOfList("PK\x05\x06");
    std::string tail(std::min<std::uint64_t>(file_bytes, 66'000), '\0');
    in.clear();
    in.seekg(-static_cast<std::streamoff>(tail.size()), std::ios::end);
    in.read(tail.data(), static_cast<std::streamsize>(tail.size()));
    if (tail.rfind(kEndOfList) == std::string::npos) return FileKind::kTruncatedZip;
    return zip_kind(path);
  }
  if (is_safetensors(head, file_bytes)) return FileKind::kSafetensors;
  if (head.size() >= 2 && head[0] == '\x80' && head[1] >= 2 && head[1] <= 5)
    return FileKind::kLegacyPickle;
  return is_text(head) ? FileKind::kText : FileKind::kUnknown;
}

std::string file_kind_text(FileKind kind) {
  switch (kind) {
    case FileKind::kTorchScript:
      return "a TorchScript archive";
    case FileKind::kPythonPickle:
      return "a file of Python's torch.save (weights without code)";
    case FileKind::kOtherZip:
      return "a zip archive without a network";
    case FileKind::kTruncatedZip:
      return "a zip archive that was cut short";
    case FileKind::kLegacyPickle:
      return "a bare pickle (torch.save before torch 1.6, or another program's)";
    case FileKind::kSafetensors:
      return "a safetensors file (weights without code)";
    case FileKind::kEmpty:
      return "an empty file";
    case FileKind::kText:
      return "a text file";
    case FileKind::kUnknown:
      break;
  }
  return "a file of unknown kind";
}

}  // namespace weightsmith
