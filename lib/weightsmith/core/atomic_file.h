#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace weightsmith {

/// Writes a file so that its name never shows half of it: `write` fills a temporary file beside
/// `path`, which is flushed to disk and renamed over `path`. On any failure the temporary file is
/// removed and `path` is untouched. Throws Error{kOutput} naming `path` (missing folder, no
/// permission, disk full); exceptions of `write` pass through.
void write_file_atomically(
    const std::filesystem::path& path,
    const std::function<void(const std::filesystem::path& temporary)>& write);

/// Removes the temporary file being written, if there is one; async-signal-safe, for a process that
/// is about to end without unwinding.
void remove_temporary_file_now() noexcept;

/// The same for contents that are in memory.
void write_text_atomically(const std::filesystem::path& path, std::string_view contents);

/// Creates a folder and its parents. Throws Error{kOutput}.
void make_folder(const std::filesystem::path& path);

/// Reads a whole file. Throws Error{kInput} naming it.
std::string read_text(const std::filesystem::path& path);

}  // namespace weightsmith
