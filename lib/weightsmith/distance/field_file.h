#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <string>

#include "weightsmith/distance/field_distance.h"
#include "weightsmith/distance/gradient_field.h"

namespace weightsmith {

/// How a field is stored. float16 halves the file; values are rounded to 11 bits. Values beyond
/// ±65,504 are refused, and so small ones that a step would change by more than 1e-3 of its length.
enum class FieldStorage { kFloat32, kFloat16 };
EnumNames<FieldStorage> enum_names(FieldStorage);

/// Writes a field sample by sample to a safetensors file: `field` (S, steps, D), `integral` and
/// `difference` (S) float64 (FieldChunk); metadata `format`, `key` and `note`. Until it is whole
/// the file is called NAME.part, and holds whole samples only as far as anyone looks: a later
/// writer of the same key goes on where a killed one stopped. Runs that share a cache wait for each
/// other: NAME.part is locked (flock) as long as a writer has it, and a killed process holds no
/// lock.
class FieldFileWriter {
 public:
  struct Shape {
    std::int64_t samples = 0, steps = 0, dimensions = 0;
  };
  /// `resume`: take over what NAME.part holds, if it was begun under the same key, shape, storage
  /// and `note`, which says how the field is computed. Waits for another writer of this file to
  /// end, in this or another process; then `path` may be there already. Throws Error{kOutput};
  /// Interrupted while it waits.
  FieldFileWriter(std::filesystem::path path, std::string key, Shape shape, FieldStorage storage,
                  bool resume, const std::string& note = {});
  ~FieldFileWriter();
  FieldFileWriter(const FieldFileWriter&) = delete;
  FieldFileWriter& operator=(const FieldFileWriter&) = delete;

  /// Removes NAME.part, for a field that turned out to be there. Not to be used afterwards.
  void discard();

  /// Samples that the file holds already.
  std::int64_t done() const { return done_; }
  /// The next samples. Throws Error{kOutput}; Error{kNumeric} for values that float16 cannot hold.
  void add(const FieldChunk& chunk);
  /// Gives the file its name. Every sample must be there.
  void finish();

 private:
  void open_and_lock();
  void check_rounding(const at::Tensor& field, const at::Tensor& stored, std::int64_t begin) const;
  void write_at(std::uint64_t offset, const void* data, std::size_t bytes);
  [[noreturn]] void fail(int error) const;

  std::filesystem::path path_, part_;
  Shape shape_;
  FieldStorage storage_;
  std::uint64_t scalars_ = 0;  // where `integral` begins
  std::uint64_t rows_ = 0;     // where `field` begins
  std::uint64_t sample_bytes_ = 0;
  std::int64_t done_ = 0;
  int file_ = -1;
};

/// A stored field, read in stretches.
class FieldFile {
 public:
  /// Checks the header and the file's size. Throws Error{kInput} naming the file: missing, damaged,
  /// truncated, without a tensor `field` of three dimensions and a floating type, or of another
  /// `key` (empty: any).
  explicit FieldFile(const std::filesystem::path& path, const std::string& key = {});

  /// Throws Error{kInput} where values are not finite, naming the sample.
  FieldSource source() const;
  /// Σ_s |integral − difference| / Σ_s |difference|: how far the discretised integrals miss what
  /// they should add up to. NaN where the file does not say.
  double completeness_error() const;
  /// What the writer was told of how the field was computed, or nothing.
  const std::string& note() const { return note_; }

 private:
  std::filesystem::path path_;
  std::string note_;
  at::ScalarType type_ = at::kFloat;
  std::int64_t samples_ = 0, steps_ = 0, dimensions_ = 0;
  std::uint64_t begin_ = 0;
  std::uint64_t integral_ = 0, difference_ = 0;  // where these begin; 0: not there
};

}  // namespace weightsmith
