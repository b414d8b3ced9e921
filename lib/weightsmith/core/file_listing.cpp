#include "weightsmith/core/file_listing.h"

#include <algorithm>

#include "weightsmith/core/error.h"
#include "weightsmith/core/sha256.h"

namespace weightsmith {

FileListing list_files(const std::filesystem::path& folder,
                       const std::vector<std::filesystem::path>& files) {
  FileListing listing{folder, static_cast<std::int64_t>(files.size()), 0, ""};
  const std::string above = folder.string();
  std::vector<std::string> lines;
  lines.reserve(files.size());
  for (const std::filesystem::path& file : files) {
    std::string name = file.string();
    WS_CHECK(name.starts_with(above));
    name.erase(0, name.find_first_not_of('/', above.size()));
    std::error_code error;
    const auto bytes = std::filesystem::file_size(file, error);
    if (error) throw Error(ErrorKind::kInput, file.string(), error.message(), "check the file");
    listing.bytes += static_cast<std::int64_t>(bytes);
    lines.push_back(std::move(name) + '\t' + std::to_string(bytes) + '\n');
  }
  std::sort(lines.begin(), lines.end());
  Sha256 digest;
  for (const std::string& line : lines) digest.add(line.data(), line.size());
  listing.sha256 = digest.hex();
  return listing;
}

}  // namespace weightsmith
