#pragma once

#include <caffe2/serialize/inline_container.h>

#include <filesystem>
#include <map>
#include <string>

#include "weightsmith/model/zip_archive.h"

namespace weightsmith::testing {

/// Record contents by name, without the archive's folder.
using Records = std::map<std::string, std::string>;

/// Writes a zip archive as LibTorch does: every record under a folder called after the file.
inline std::filesystem::path write_archive(const std::filesystem::path& path,
                                           const Records& records) {
  caffe2::serialize::PyTorchStreamWriter writer(path.string());
  for (const auto& [name, contents] : records)
    writer.writeRecord(name, contents.data(), contents.size());
  writer.writeEndOfFile();
  return path;
}

/// The records of an archive except those that every writer adds by itself.
inline Records read_archive(const std::filesystem::path& path) {
  const ZipArchive archive(path);
  Records records;
  for (const auto& entry : archive.entries()) {
    const std::string name = entry.name.substr(entry.name.find('/') + 1);
    if (name != "version" && !name.starts_with(".data")) records[name] = archive.read(entry.name);
  }
  return records;
}

}  // namespace weightsmith::testing
