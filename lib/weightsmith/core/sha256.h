#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace weightsmith {

/// SHA-256 as 64 lower-case hexadecimal digits (OpenSSL). The file is streamed; throws
/// Error{kInput} naming it.
std::string sha256_of_file(const std::filesystem::path& path);
std::string sha256_of_text(std::string_view bytes);

}  // namespace weightsmith
