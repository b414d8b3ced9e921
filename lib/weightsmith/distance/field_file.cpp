#include "weightsmith/distance/field_file.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <spdlog/fmt/fmt.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "weightsmith/core/error.h"
#include "weightsmith/core/stop.h"
#include "weightsmith/tensor/first_row.h"
#include "weightsmith/tensor/safetensors.h"

namespace weightsmith {
namespace fs = std::filesystem;

EnumNames<FieldStorage> enum_names(FieldStorage) {
  return {{FieldStorage::kFloat32, "float32"}, {FieldStorage::kFloat16, "float16"}};
}

namespace {

/// The most of its length that a step may change by when it is stored; rounding to 11 bits is up to
/// 5e-4.
constexpr double kMostRounded = 1e-3;
constexpr const char* kFormat = "weightsmith field 1";

std::string header_of(const std::string& key, const FieldFileWriter::Shape& shape,
                      std::uint64_t sample_bytes, bool half, const std::string& note) {
  const auto scalar_bytes = static_cast<std::uint64_t>(shape.samples) * 8;
  const auto entry = [](const char* type, std::vector<std::int64_t> sizes, std::uint64_t begin,
                        std::uint64_t end) {
    return nlohmann::ordered_json{
        {"dtype", type}, {"shape", std::move(sizes)}, {"data_offsets", {begin, end}}};
  };
  nlohmann::ordered_json header;
  header["__metadata__"] = {{"format", kFormat}, {"key", key}};
  if (!note.empty()) header["__metadata__"]["note"] = note;
  header["integral"] = entry("F64", {shape.samples}, 0, scalar_bytes);
  header["difference"] = entry("F64", {shape.samples}, scalar_bytes, 2 * scalar_bytes);
  header["field"] =
      entry(half ? "F16" : "F32", {shape.samples, shape.steps, shape.dimensions}, 2 * scalar_bytes,
            2 * scalar_bytes + static_cast<std::uint64_t>(shape.samples) * sample_bytes);
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const auto length = static_cast<std::uint64_t>(text.size());
  return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + text;
}

at::Tensor read_tensor(const fs::path& path, std::uint64_t begin, at::Tensor into) {
  std::ifstream in(path, std::ios::binary);
  in.seekg(static_cast<std::streamoff>(begin));
  in.read(static_cast<char*>(into.data_ptr()), static_cast<std::streamsize>(into.nbytes()));
  if (!in)
    throw Error(ErrorKind::kInput, path.string(), "cannot read the field", "compute it again");
  return into;
}

}  // namespace

FieldFileWriter::FieldFileWriter(fs::path path, std::string key, Shape shape, FieldStorage storage,
                                 bool resume, const std::string& note)
    : path_(std::move(path)), part_(path_.string() + ".part"), shape_(shape), storage_(storage) {
  const bool half = storage == FieldStorage::kFloat16;
  sample_bytes_ = static_cast<std::uint64_t>(shape.steps * shape.dimensions) * (half ? 2 : 4);
  const std::string header = header_of(key, shape, sample_bytes_, half, note);
  scalars_ = header.size();
  rows_ = scalars_ + static_cast<std::uint64_t>(shape.samples) * 16;
  open_and_lock();
  if (resume) {
    std::string found(header.size(), '\0');
    std::ifstream in(part_, std::ios::binary);
    in.read(found.data(), static_cast<std::streamsize>(found.size()));
    std::error_code error;
    const auto bytes = fs::file_size(part_, error);
    if (in && !error && found == header && bytes >= rows_)
      done_ = std::min(
          shape.samples,
          static_cast<std::int64_t>((bytes - rows_) / std::max<std::uint64_t>(sample_bytes_, 1)));
  }
  const auto whole = static_cast<off_t>(rows_ + static_cast<std::uint64_t>(done_) * sample_bytes_);
  if (done_ == 0) {
    if (::ftruncate(file_, 0) != 0) fail(errno);
    write_at(0, header.data(), header.size());
  }
  if (::ftruncate(file_, whole) != 0) fail(errno);
}

void FieldFileWriter::open_and_lock() {
  for (;;) {
    file_ = ::open(part_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (file_ < 0) fail(errno);
    while (::flock(file_, LOCK_EX | LOCK_NB) != 0) {
      // A file system that knows no locks: as if nobody else were there.
      if (errno != EWOULDBLOCK && errno != EINTR) break;
      if (stop_requested() != 0) {
        ::close(file_);
        stop_here_if_requested();
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    // Whoever had the lock may have given the file its name, or removed it.
    struct stat ours {
    }, named{};
    if (::fstat(file_, &ours) == 0 && ::stat(part_.c_str(), &named) == 0 &&
        ours.st_ino == named.st_ino && ours.st_dev == named.st_dev)
      return;
    ::close(file_);
    file_ = -1;
  }
}

void FieldFileWriter::discard() {
  std::error_code ignored;
  fs::remove(part_, ignored);
  ::close(file_);
  file_ = -1;
}

FieldFileWriter::~FieldFileWriter() {
  if (file_ >= 0) ::close(file_);
}

void FieldFileWriter::fail(int error) const {
  throw Error(ErrorKind::kOutput, part_.string(),
              fmt::format("cannot write: {}", std::strerror(error)),
              "free some space or choose another folder");
}

void FieldFileWriter::write_at(std::uint64_t offset, const void* data, std::size_t bytes) {
  const auto* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t wrote = ::pwrite(file_, from, bytes, static_cast<off_t>(offset));
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) fail(wrote < 0 ? errno : EIO);
    from += wrote;
    offset += static_cast<std::uint64_t>(wrote);
    bytes -= static_cast<std::size_t>(wrote);
  }
}

/// Halves below 6e-5 have fewer bits, and those below 3e-8 none.
void FieldFileWriter::check_rounding(const at::Tensor& field, const at::Tensor& stored,
                                     std::int64_t begin) const {
  const at::Tensor exact = field.to(at::kFloat);
  const at::Tensor length = exact.norm(2, {2});
  const at::Tensor lost = (stored.to(at::kFloat) - exact).norm(2, {2});
  const at::Tensor bad = lost.gt(kMostRounded * length).any(1);
  if (!bad.any().item<bool>()) return;
  const auto first = at::nonzero(bad)[0].item<std::int64_t>();
  throw Error(
      ErrorKind::kNumeric, path_.string(),
      fmt::format("float16 would change steps of sample {} by {:.2g} of their length: its "
                  "values are too small",
                  begin + first, (lost[first] / length[first]).nan_to_num(0).max().item<float>()),
      "set field.store to float32");
}

void FieldFileWriter::add(const FieldChunk& chunk) {
  WS_CHECK(chunk.begin == done_ && chunk.field.size(1) == shape_.steps &&
           chunk.field.size(2) == shape_.dimensions);
  const std::int64_t count = chunk.field.size(0);
  const bool half = storage_ == FieldStorage::kFloat16;
  const at::Tensor field = chunk.field.to(half ? at::kHalf : at::kFloat).contiguous();
  if (half && !at::isfinite(field).all().item<bool>())
    throw Error(ErrorKind::kNumeric, path_.string(),
                fmt::format("samples {} to {} have values that float16 cannot hold", chunk.begin,
                            chunk.begin + count - 1),
                "set field.store to float32");
  if (half) check_rounding(chunk.field, field, chunk.begin);
  // Scalars first: what the file's length vouches for must be complete.
  const auto scalar = [&](const at::Tensor& values, std::int64_t column) {
    const at::Tensor plain = values.contiguous();
    write_at(scalars_ + static_cast<std::uint64_t>(column * shape_.samples + done_) * 8,
             plain.data_ptr(), plain.nbytes());
  };
  scalar(chunk.integral, 0);
  scalar(chunk.difference, 1);
  write_at(rows_ + static_cast<std::uint64_t>(done_) * sample_bytes_, field.data_ptr(),
           field.nbytes());
  done_ += count;
}

void FieldFileWriter::finish() {
  WS_CHECK(done_ == shape_.samples);
  if (::fsync(file_) != 0) fail(errno);
  std::error_code error;
  fs::rename(part_, path_, error);
  if (error) fail(error.value());
}

FieldFile::FieldFile(const fs::path& path, const std::string& key) : path_(path) {
  const SafetensorsHeader header = read_safetensors_header(path);
  const auto refuse = [&](const std::string& what) {
    throw Error(ErrorKind::kInput, path.string(), what, "compute the field again");
  };
  const auto stored = header.metadata.find("key");
  if (!key.empty() && (stored == header.metadata.end() || stored->second != key))
    refuse("holds the field of another model, reference or setting");
  if (const auto note = header.metadata.find("note"); note != header.metadata.end())
    note_ = note->second;
  const auto field = header.tensors.find("field");
  if (field == header.tensors.end()) refuse("holds no tensor called \"field\"");
  const TensorInfo& info = field->second;
  if (info.shape.size() != 3 || info.shape[0] < 1 || info.shape[1] < 1 || info.shape[2] < 1 ||
      !c10::isFloatingType(info.dtype))
    refuse("\"field\" is not (samples, steps, D) of floating-point numbers");
  type_ = info.dtype;
  samples_ = info.shape[0];
  steps_ = info.shape[1];
  dimensions_ = info.shape[2];
  begin_ = info.begin;
  for (const auto& [name, at] : {std::pair{"integral", &integral_}, {"difference", &difference_}})
    if (const auto it = header.tensors.find(name);
        it != header.tensors.end() && it->second.dtype == at::kDouble &&
        it->second.shape == std::vector<std::int64_t>{samples_})
      *at = it->second.begin;
}

FieldSource FieldFile::source() const {
  const FieldFile file = *this;
  return {samples_, steps_, dimensions_, [file](std::int64_t begin, std::int64_t count) {
            const std::uint64_t row =
                static_cast<std::uint64_t>(file.dimensions_) * c10::elementSize(file.type_);
            at::Tensor rows =
                read_tensor(file.path_, file.begin_ + static_cast<std::uint64_t>(begin) * row,
                            at::empty({count, file.dimensions_}, file.type_));
            if (file.type_ != at::kDouble) rows = rows.to(at::kFloat);
            if (const auto bad = first_row_where(at::isfinite(rows).logical_not()))
              throw Error(
                  ErrorKind::kNumeric, file.path_.string(),
                  fmt::format("the field of sample {} is not finite", (begin + *bad) / file.steps_),
                  "compute it again, or leave the sample out");
            return rows;
          }};
}

double FieldFile::completeness_error() const {
  if (integral_ == 0 || difference_ == 0) return std::numeric_limits<double>::quiet_NaN();
  const at::Tensor a = read_tensor(path_, integral_, at::empty({samples_}, at::kDouble));
  const at::Tensor b = read_tensor(path_, difference_, at::empty({samples_}, at::kDouble));
  const double scale = b.abs().sum().item<double>();
  return scale > 0 ? (a - b).abs().sum().item<double>() / scale
                   : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace weightsmith
