#pragma once

#include <filesystem>
#include <string>

namespace weightsmith {

/// What a file of weights or a model is, judged by its contents.
enum class FileKind {
  kTorchScript,   ///< zip archive with code, as torch.jit.save writes
  kPythonPickle,  ///< zip archive with a pickle and no code, as torch.save writes
  kOtherZip,
  kTruncatedZip,
  kLegacyPickle,  ///< torch.save before torch 1.6, or a bare pickle
  kSafetensors,
  kEmpty,
  kText,
  kUnknown,
};

/// Throws Error{kInput} when the file is missing or cannot be read.
FileKind detect_file_kind(const std::filesystem::path& path);

/// For errors: "a safetensors file".
std::string file_kind_text(FileKind kind);

}  // namespace weightsmith
