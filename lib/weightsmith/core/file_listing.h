#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace weightsmith {

/// What tells one folder of many files from another without reading them all: their names and
/// sizes. A file that was changed in place and kept its size is not noticed.
struct FileListing {
  std::filesystem::path folder;
  std::int64_t files = 0;
  std::int64_t bytes = 0;  ///< of all of them
  /// Of one line a file, "NAME<tab>SIZE\n", in the order of their bytes; names are relative to
  /// `folder`. In it, `find . -type f -printf '%P\t%s\n' | LC_ALL=C sort | sha256sum` says the same
  /// where all files below are listed.
  std::string sha256;

  bool operator==(const FileListing&) const = default;
};

/// The listing of `files` below `folder`, in any order. O(files · log files), and no file is
/// opened. Throws Error{kInput} naming one whose size cannot be told.
FileListing list_files(const std::filesystem::path& folder,
                       const std::vector<std::filesystem::path>& files);

}  // namespace weightsmith
