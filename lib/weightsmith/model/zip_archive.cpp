#include "weightsmith/model/zip_archive.h"

#include <minizip/unzip.h>
#include <spdlog/fmt/fmt.h>

#include <array>
#include <cstring>
#include <utility>

#include "weightsmith/core/error.h"

namespace weightsmith {
namespace fs = std::filesystem;
namespace {

constexpr std::uint64_t kMaxEntries = 1'000'000;
constexpr std::uint64_t kMaxExpansion = 20;
constexpr std::uint64_t kFreeBytes = 64u << 20;  // small files may be all text
constexpr unsigned kStored = 0;
constexpr unsigned kDeflated = 8;
constexpr const char* kDamageRemedy = "copy or download the file again";

}  // namespace

struct ZipArchive::Handle {
  unzFile file = nullptr;
  std::vector<unz64_file_pos> positions;  // beside entries_
  ~Handle() {
    if (file != nullptr) unzClose(file);
  }
};

ZipArchive::ZipArchive(const fs::path& path) : path_(path), handle_(std::make_unique<Handle>()) {
  std::error_code error;
  if (!fs::exists(path_, error)) fail("no such file", "check the path");
  if (!fs::is_regular_file(path_, error)) fail("not a regular file", "check the path");
  handle_->file = unzOpen64(path_.c_str());
  if (handle_->file == nullptr) fail("not a zip archive, or cut short", kDamageRemedy);

  unz_global_info64 global{};
  if (unzGetGlobalInfo64(handle_->file, &global) != UNZ_OK)
    fail("the zip archive has no list of records", kDamageRemedy);
  if (global.number_entry > kMaxEntries)
    fail(fmt::format("the zip archive claims {} records", global.number_entry), kDamageRemedy);

  const std::uint64_t file_bytes = fs::file_size(path_, error);
  std::uint64_t budget = file_bytes * kMaxExpansion + kFreeBytes;
  for (std::uint64_t i = 0; i < global.number_entry; ++i) {
    unz_file_info64 info{};
    std::array<char, 65536> name{};
    unz64_file_pos position{};
    if ((i == 0 ? unzGoToFirstFile(handle_->file) : unzGoToNextFile(handle_->file)) != UNZ_OK ||
        unzGetCurrentFileInfo64(handle_->file, &info, name.data(), name.size(), nullptr, 0, nullptr,
                                0) != UNZ_OK ||
        unzGetFilePos64(handle_->file, &position) != UNZ_OK)
      fail("the zip archive's list of records is damaged", kDamageRemedy);
    Entry entry{std::string(name.data()), info.uncompressed_size, info.compressed_size};
    if (entry.name.size() != info.size_filename)
      fail("a record's name in the zip archive is damaged", kDamageRemedy);
    if ((info.flag & 1u) != 0) fail(fmt::format("record {} is encrypted", entry.name));
    if (info.compression_method != kStored && info.compression_method != kDeflated)
      fail(fmt::format("record {} is compressed by the unknown method {}", entry.name,
                       info.compression_method));
    if (entry.bytes > budget || entry.compressed_bytes > file_bytes)
      fail(fmt::format("record {} would expand beyond all proportion to the file", entry.name));
    budget -= entry.bytes;
    if (!index_.emplace(entry.name, entries_.size()).second)
      fail(fmt::format("record {} occurs twice", entry.name));
    entries_.push_back(std::move(entry));
    handle_->positions.push_back(position);
  }
}

ZipArchive::~ZipArchive() = default;
ZipArchive::ZipArchive(ZipArchive&&) noexcept = default;

void ZipArchive::fail(const std::string& what, const std::string& remedy) const {
  throw Error(ErrorKind::kInput, path_.string(), what, remedy);
}

const ZipArchive::Entry& ZipArchive::entry(const std::string& name) const {
  const auto it = index_.find(name);
  if (it == index_.end()) fail(fmt::format("the archive has no record {}", name));
  return entries_[it->second];
}

void ZipArchive::stream(std::size_t index,
                        const std::function<void(const char*, std::size_t)>& take) const {
  const Entry& entry = entries_[index];
  const auto damaged = [&](const char* how) {
    fail(fmt::format("record {} is damaged ({})", entry.name, how), kDamageRemedy);
  };
  if (unzGoToFilePos64(handle_->file, &handle_->positions[index]) != UNZ_OK ||
      unzOpenCurrentFile(handle_->file) != UNZ_OK)
    damaged("its header");
  std::vector<char> buffer(1u << 18);
  std::uint64_t total = 0;
  int count = 0;
  while ((count = unzReadCurrentFile(handle_->file, buffer.data(),
                                     static_cast<unsigned>(buffer.size()))) > 0) {
    total += static_cast<std::uint64_t>(count);
    if (total > entry.bytes) break;
    take(buffer.data(), static_cast<std::size_t>(count));
  }
  // minizip compares the CRC on closing, and only once all was read.
  const int status = unzCloseCurrentFile(handle_->file);
  if (count < 0) damaged("its compressed data");
  if (total != entry.bytes) damaged("its size");
  if (status == UNZ_CRCERROR) damaged("its checksum");
  if (status != UNZ_OK) damaged("its end");
}

void ZipArchive::read_into(const std::string& name, char* out) const {
  const std::size_t index = static_cast<std::size_t>(&entry(name) - entries_.data());
  stream(index, [&](const char* data, std::size_t size) {
    std::memcpy(out, data, size);
    out += size;
  });
}

std::string ZipArchive::read(const std::string& name) const {
  std::string contents(entry(name).bytes, '\0');
  read_into(name, contents.data());
  return contents;
}

void ZipArchive::verify_all() const {
  for (std::size_t i = 0; i < entries_.size(); ++i) stream(i, [](const char*, std::size_t) {});
}

}  // namespace weightsmith
