#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "weightsmith/tensor/tensor_map.h"

/// safetensors: an 8-byte little-endian length, a JSON header of that length, then raw
/// little-endian, row-major data. The header maps each name to {"dtype", "shape", "data_offsets":
/// [begin, end]} (offsets count from the end of the header) and may hold a "__metadata__" object of
/// strings.
///
/// Data types: F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL; others (8-bit floats, unsigned integers of
/// more than a byte) are an error that names the tensor.
namespace weightsmith {

struct SafetensorsFile {
  TensorMap tensors;  ///< on the CPU, contiguous, sharing nothing
  std::map<std::string, std::string> metadata;
};

struct TensorInfo {
  at::ScalarType dtype = at::kFloat;
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0;  ///< of its data, in bytes from the start of the file
};

struct SafetensorsHeader {
  std::map<std::string, TensorInfo> tensors;
  std::map<std::string, std::string> metadata;
};

/// Reads a whole file. The file is not trusted: the header's length, its JSON (duplicate names,
/// types, nesting), every shape (products that overflow), every size against shape and dtype, and
/// that the tensors cover the data without overlap, gap or remainder are checked before anything is
/// allocated. Memory: the tensors and the header. Throws Error{kInput} naming the file and the
/// tensor.
SafetensorsFile read_safetensors(const std::filesystem::path& path);

/// The same checks without reading the data: time and memory depend on the header alone.
SafetensorsHeader read_safetensors_header(const std::filesystem::path& path);

/// Throws Error{kInput} naming `where` and the first tensor whose type or layout the format has no
/// place for (complex, quantised, sparse), so that a run can refuse it before it computes.
void check_storable(const TensorMap& tensors, const std::string& where);

/// Writes a file (atomic). Tensors may be on any device and have any strides; one at a time is
/// copied to the CPU, so memory is that of the largest. The header is padded with spaces to a
/// multiple of 8 and wider data types come first, so that every tensor is aligned. The same tensors
/// and metadata give the same bytes. Throws Error{kOutput} when the file cannot be written, or
/// naming a tensor whose type or layout the format has no place for.
void write_safetensors(const std::filesystem::path& path, const TensorMap& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace weightsmith
