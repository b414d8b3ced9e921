#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

struct evp_md_ctx_st;  // OpenSSL's EVP_MD_CTX

namespace weightsmith {

/// SHA-256 of bytes that arrive in pieces.
class Sha256 {
 public:
  Sha256();
  void add(const void* data, std::size_t size);
  /// The digest as 64 lower-case hexadecimal digits. Call it once, after the last piece.
  std::string hex();

 private:
  std::unique_ptr<evp_md_ctx_st, void (*)(evp_md_ctx_st*)> context_;
};

/// SHA-256 as 64 lower-case hexadecimal digits (OpenSSL). The file is streamed; throws
/// Error{kInput} naming it.
std::string sha256_of_file(const std::filesystem::path& path);
std::string sha256_of_text(std::string_view bytes);

}  // namespace weightsmith
