#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace weightsmith {

/// A zip archive, read-only (zip64 included), as TorchScript and Python's torch.save write them.
/// Every read verifies the record's CRC-32, which LibTorch's own reader does not. Not thread-safe.
class ZipArchive {
 public:
  struct Entry {
    std::string name;
    std::uint64_t bytes = 0;  ///< uncompressed
    std::uint64_t compressed_bytes = 0;
  };

  /// Reads the list of records. Throws Error{kInput} naming the file when it is missing, not a zip
  /// archive or cut short, when two records have one name, when a record is encrypted or compressed
  /// in an unknown way, and when the records would expand beyond all proportion to the file
  /// (20-fold and 64 MiB).
  explicit ZipArchive(const std::filesystem::path& path);
  ~ZipArchive();
  ZipArchive(ZipArchive&&) noexcept;
  ZipArchive& operator=(ZipArchive&&) = delete;

  const std::filesystem::path& path() const { return path_; }
  const std::vector<Entry>& entries() const { return entries_; }
  bool contains(const std::string& name) const { return index_.count(name) != 0; }
  const Entry& entry(const std::string& name) const;

  /// A record's contents. Throws Error{kInput} naming file and record when it is not there or
  /// damaged.
  std::string read(const std::string& name) const;
  /// The same into memory of entry(name).bytes bytes.
  void read_into(const std::string& name, char* out) const;
  /// Reads everything once, keeping nothing; throws at the first damaged record.
  void verify_all() const;

 private:
  struct Handle;

  void stream(std::size_t index, const std::function<void(const char*, std::size_t)>& take) const;
  [[noreturn]] void fail(const std::string& what, const std::string& remedy = {}) const;

  std::filesystem::path path_;
  std::unique_ptr<Handle> handle_;
  std::vector<Entry> entries_;
  std::map<std::string, std::size_t> index_;
};

}  // namespace weightsmith
