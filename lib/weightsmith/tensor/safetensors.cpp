#include "weightsmith/tensor/safetensors.h"

#include <ATen/ops/empty.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "weightsmith/core/atomic_file.h"
#include "weightsmith/core/error.h"
#include "weightsmith/core/json_text.h"

namespace weightsmith {
namespace fs = std::filesystem;
namespace {

static_assert(std::endian::native == std::endian::little, "the format's data are little-endian");

constexpr std::uint64_t kLengthBytes = 8;
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // as in the format's description
constexpr std::size_t kMaxDimensions = 64;              // what LibTorch's kernels can iterate over
constexpr const char* kMetadataKey = "__metadata__";
constexpr const char* kRemedy = "copy or make the file again";

constexpr std::array<std::pair<const char*, at::ScalarType>, 10> kDtypes{{
    {"F64", at::kDouble},
    {"F32", at::kFloat},
    {"F16", at::kHalf},
    {"BF16", at::kBFloat16},
    {"I64", at::kLong},
    {"I32", at::kInt},
    {"I16", at::kShort},
    {"I8", at::kChar},
    {"U8", at::kByte},
    {"BOOL", at::kBool},
}};

const char* find_dtype_name(at::ScalarType dtype) {
  const auto it = std::find_if(kDtypes.begin(), kDtypes.end(),
                               [&](const auto& entry) { return entry.second == dtype; });
  return it == kDtypes.end() ? nullptr : it->first;
}

bool is_storable(const at::Tensor& tensor) {
  return tensor.layout() == at::kStrided && !tensor.is_quantized() &&
         find_dtype_name(tensor.scalar_type()) != nullptr;
}

/// Where one tensor's bytes lie, counted from the end of the header.
struct Extent {
  std::string name;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

struct ParsedHeader {
  SafetensorsHeader header;
  std::vector<Extent> extents;  // in the order of the file
};

class HeaderReader {
 public:
  explicit HeaderReader(const fs::path& path) : path_(path) {}

  /// Leaves `in` at the first byte of data.
  ParsedHeader read(std::ifstream& in) {
    std::error_code error;
    const auto status = fs::status(path_, error);
    if (!fs::exists(status)) fail("no such file", "check the path");
    if (!fs::is_regular_file(status)) fail("not a regular file", "check the path");
    const std::uint64_t file_bytes = fs::file_size(path_, error);
    in.open(path_, std::ios::binary);
    if (!in || error) fail("cannot read the file", "check its permissions");
    if (file_bytes < kLengthBytes)
      fail(fmt::format("not a safetensors file: {} bytes long, at least {} wanted", file_bytes,
                       kLengthBytes));
    std::uint64_t header_bytes = 0;
    in.read(reinterpret_cast<char*>(&header_bytes), kLengthBytes);
    if (!in) fail("cannot read the file");
    if (header_bytes > kMaxHeaderBytes)
      fail("not a safetensors file: its header would be longer than 100 MB");
    if (header_bytes > file_bytes - kLengthBytes)
      fail(fmt::format("truncated: the header should have {} bytes, {} are there", header_bytes,
                       file_bytes - kLengthBytes));
    std::string text(header_bytes, '\0');
    in.read(text.data(), static_cast<std::streamsize>(header_bytes));
    if (!in) fail("cannot read the header");

    ParsedHeader parsed;
    const nlohmann::json json =
        parse_json(text, ErrorKind::kInput, path_.string() + ": its header", kRemedy);
    if (!json.is_object()) fail("the header is not a JSON object");
    for (const auto& [name, entry] : json.items()) {
      if (name == kMetadataKey)
        read_metadata(entry, parsed.header);
      else
        read_entry(name, entry, parsed);
    }
    check_cover(parsed.extents, file_bytes - kLengthBytes - header_bytes);
    for (const Extent& extent : parsed.extents)
      parsed.header.tensors.at(extent.name).begin = kLengthBytes + header_bytes + extent.begin;
    return parsed;
  }

  [[noreturn]] void fail(const std::string& what, const char* remedy = kRemedy) const {
    throw Error(ErrorKind::kInput, path_.string(), what, remedy);
  }
  [[noreturn]] void fail_tensor(const std::string& name, const std::string& what) const {
    fail(fmt::format("tensor \"{}\": {}", name, what));
  }

 private:
  void read_metadata(const nlohmann::json& entry, SafetensorsHeader& header) const {
    if (!entry.is_object()) fail("the header's __metadata__ is not an object");
    for (const auto& [key, value] : entry.items()) {
      if (!value.is_string())
        fail(fmt::format("the header's __metadata__ \"{}\" is not a string", key));
      header.metadata.emplace(key, value.get<std::string>());
    }
  }

  void read_entry(const std::string& name, const nlohmann::json& entry,
                  ParsedHeader& parsed) const {
    if (!entry.is_object()) fail_tensor(name, "its header entry is not an object");
    for (const char* key : {"dtype", "shape", "data_offsets"})
      if (!entry.contains(key)) fail_tensor(name, fmt::format("has no \"{}\"", key));

    TensorInfo info;
    info.dtype = read_dtype(name, entry["dtype"]);
    const std::uint64_t bytes = read_shape(name, entry["shape"], info);
    const nlohmann::json& offsets = entry["data_offsets"];
    if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
        !offsets[1].is_number_unsigned())
      fail_tensor(name, "\"data_offsets\" is not a pair of non-negative integers");
    Extent extent{name, offsets[0].get<std::uint64_t>(), offsets[1].get<std::uint64_t>()};
    if (extent.end < extent.begin || extent.end - extent.begin != bytes)
      fail_tensor(name, fmt::format("data_offsets [{}, {}] do not span the {} bytes of its shape",
                                    extent.begin, extent.end, bytes));
    parsed.header.tensors.emplace(name, std::move(info));
    parsed.extents.push_back(std::move(extent));
  }

  at::ScalarType read_dtype(const std::string& name, const nlohmann::json& value) const {
    for (const auto& [text, dtype] : kDtypes)
      if (value == text) return dtype;
    fail_tensor(name, fmt::format("data type {} is not supported", value.dump()));
  }

  /// Returns the tensor's size in bytes.
  std::uint64_t read_shape(const std::string& name, const nlohmann::json& value,
                           TensorInfo& info) const {
    if (!value.is_array()) fail_tensor(name, "\"shape\" is not a list");
    if (value.size() > kMaxDimensions)
      fail_tensor(name,
                  fmt::format("has {} dimensions, {} are the most", value.size(), kMaxDimensions));
    // Strides multiply the other dimensions even where one is 0, so 0 counts as 1 for the limit.
    std::uint64_t extent = c10::elementSize(info.dtype);
    bool empty = false;
    for (const nlohmann::json& size : value) {
      if (!size.is_number_unsigned())
        fail_tensor(name, fmt::format("shape {} is not a list of sizes", value.dump()));
      const auto n = size.get<std::uint64_t>();
      empty = empty || n == 0;
      if (n > 1 &&
          extent > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()) / n)
        fail_tensor(name, fmt::format("shape {} is too large", value.dump()));
      extent *= std::max<std::uint64_t>(n, 1);
      info.shape.push_back(static_cast<std::int64_t>(n));
    }
    return empty ? 0 : extent;
  }

  /// Every byte of data belongs to exactly one tensor.
  void check_cover(std::vector<Extent>& extents, std::uint64_t data_bytes) const {
    std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) {
      return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
    });
    std::uint64_t covered = 0;
    for (const Extent& extent : extents) {
      if (extent.begin < covered)
        fail_tensor(extent.name,
                    fmt::format("its data overlap another tensor's at byte {}", extent.begin));
      if (extent.begin > covered)
        fail_tensor(extent.name,
                    fmt::format("its data begin at byte {}, {} expected", extent.begin, covered));
      covered = extent.end;
    }
    if (covered > data_bytes)
      fail(fmt::format("truncated: {} bytes of data wanted, {} are there", covered, data_bytes));
    if (covered < data_bytes)
      fail(fmt::format("{} bytes at the end belong to no tensor", data_bytes - covered));
  }

  const fs::path& path_;
};

/// The entry of the header for `tensor`, whose data begin at `begin`.
nlohmann::ordered_json header_entry(const at::Tensor& tensor, std::uint64_t begin) {
  return {{"dtype", find_dtype_name(tensor.scalar_type())},
          {"shape", tensor.sizes().vec()},
          {"data_offsets", {begin, begin + tensor.nbytes()}}};
}

}  // namespace

SafetensorsFile read_safetensors(const fs::path& path) {
  std::ifstream in;
  HeaderReader reader(path);
  ParsedHeader parsed = reader.read(in);
  SafetensorsFile file;
  file.metadata = std::move(parsed.header.metadata);
  for (const Extent& extent : parsed.extents) {
    const TensorInfo& info = parsed.header.tensors.at(extent.name);
    at::Tensor tensor = at::empty(info.shape, info.dtype);
    const std::uint64_t bytes = extent.end - extent.begin;
    auto* data = static_cast<char*>(tensor.data_ptr());
    if (bytes > 0) in.read(data, static_cast<std::streamsize>(bytes));
    if (!in) reader.fail_tensor(extent.name, "its data cannot be read");
    // A bool of another value is undefined behaviour in every kernel that meets it.
    if (info.dtype == at::kBool &&
        std::any_of(data, data + bytes, [](char byte) { return byte != 0 && byte != 1; }))
      reader.fail_tensor(extent.name, "holds booleans that are neither 0 nor 1");
    file.tensors.emplace(extent.name, std::move(tensor));
  }
  return file;
}

SafetensorsHeader read_safetensors_header(const fs::path& path) {
  std::ifstream in;
  return HeaderReader(path).read(in).header;
}

void check_storable(const TensorMap& tensors, const std::string& where) {
  for (const auto& [name, tensor] : tensors)
    if (!is_storable(tensor))
      throw Error(ErrorKind::kInput, where,
                  fmt::format("{} is {}, which no result could hold", name, tensor.toString()),
                  "use a network of real, dense, unquantised tensors");
}

void write_safetensors(const fs::path& path, const TensorMap& tensors,
                       const std::map<std::string, std::string>& metadata) {
  const auto fail_tensor = [&](const std::string& name, const std::string& what) {
    throw Error(ErrorKind::kOutput, path.string(), fmt::format("tensor \"{}\": {}", name, what));
  };
  std::vector<const TensorMap::value_type*> order;
  for (const auto& item : tensors) {
    const auto& [name, tensor] = item;
    if (name == kMetadataKey) fail_tensor(name, "this name is reserved by safetensors");
    if (!tensor.defined()) fail_tensor(name, "is undefined");
    if (!is_storable(tensor))
      fail_tensor(name, fmt::format("safetensors cannot hold {}", tensor.toString()));
    order.push_back(&item);
  }
  std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return a->second.element_size() > b->second.element_size();
  });

  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[kMetadataKey] = metadata;
  std::uint64_t offset = 0;
  for (const auto* item : order) {
    header[item->first] = header_entry(item->second, offset);
    offset += item->second.nbytes();
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const nlohmann::json::exception&) {
    throw Error(ErrorKind::kOutput, path.string(), "a tensor's name or metadata is not UTF-8");
  }
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const auto header_bytes = static_cast<std::uint64_t>(text.size());

  write_file_atomically(path, [&](const fs::path& temporary) {
    errno = 0;
    std::ofstream out(temporary, std::ios::binary);
    out.write(reinterpret_cast<const char*>(&header_bytes), kLengthBytes);
    out.write(text.data(), static_cast<std::streamsize>(text.size()));
    for (const auto* item : order) {
      const at::Tensor data = item->second.detach().resolve_neg().to(at::kCPU).contiguous();
      if (data.nbytes() > 0)
        out.write(static_cast<const char*>(data.data_ptr()),
                  static_cast<std::streamsize>(data.nbytes()));
      if (!out) break;
    }
    out.close();
    if (!out)
      throw Error(ErrorKind::kOutput, path.string(),
                  fmt::format("cannot write: {}", std::strerror(errno != 0 ? errno : EIO)),
                  "free some space or choose another --out");
  });
}

}  // namespace weightsmith
