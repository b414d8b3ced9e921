#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>
#include <zlib.h>

#include <array>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "weightsmith/core/error.h"
#include "weightsmith/data/formats.h"

namespace weightsmith::formats {
namespace fs = std::filesystem;
namespace {

/// IDX: two zero bytes, the element type (8: unsigned byte), the number of dimensions, the
/// dimensions as big-endian 32-bit words, the data.
constexpr int kUnsignedByte = 8;

/// A whole file; zlib passes files that are not gzipped through.
std::string read_gz(const fs::path& path) {
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"), gzclose);
  if (!file || fs::is_directory(path))
    throw Error(ErrorKind::kInput, path.string(), "cannot read the file",
                "check the path and its permissions");
  std::string bytes;
  std::vector<char> chunk(1 << 20);
  int n = 0;
  while ((n = gzread(file.get(), chunk.data(), static_cast<unsigned>(chunk.size()))) > 0)
    bytes.append(chunk.data(), static_cast<std::size_t>(n));
  int status = Z_OK;
  const char* reason = gzerror(file.get(), &status);
  if (n < 0 || (status != Z_OK && status != Z_STREAM_END))
    throw Error(ErrorKind::kInput, path.string(), fmt::format("damaged gzip data: {}", reason),
                "download the file again");
  return bytes;
}

at::Tensor read_idx_file(const fs::path& path) {
  const std::string bytes = read_gz(path);
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(bytes[i]); };
  if (bytes.size() < 4 || byte(0) != 0 || byte(1) != 0 || byte(2) != kUnsignedByte || byte(3) < 1 ||
      byte(3) > 4)
    throw Error(ErrorKind::kInput, path.string(),
                "not an IDX file of unsigned bytes (wrong magic number)",
                "expected a file like train-images-idx3-ubyte");
  const std::size_t header = 4 + 4 * std::size_t{byte(3)};
  std::vector<std::int64_t> sizes;
  double wanted = static_cast<double>(header);  // in double: four 32-bit sizes may overflow
  if (bytes.size() >= header) {
    double elements = 1;
    for (std::size_t i = 4; i < header; i += 4) {
      sizes.push_back(std::int64_t{byte(i)} << 24 | byte(i + 1) << 16 | byte(i + 2) << 8 |
                      byte(i + 3));
      elements *= static_cast<double>(sizes.back());
    }
    wanted += elements;
  }
  if (bytes.size() < header || static_cast<double>(bytes.size()) != wanted)
    throw Error(ErrorKind::kInput, path.string(),
                fmt::format("{} bytes, expected {:.0f}", bytes.size(), wanted),
                "the file is cut short or damaged: download it again");
  at::Tensor data = at::empty(sizes, at::kByte);
  std::memcpy(data.data_ptr(), bytes.data() + header, bytes.size() - header);
  return data;
}

fs::path find_file(const fs::path& folder, const std::string& stem, const std::string& ending) {
  std::string names;
  for (const char* separator : {"-", "."}) {
    for (const char* packing : {"", ".gz"}) {
      const std::string name = stem + separator + ending + packing;
      if (fs::exists(folder / name)) return folder / name;
      names += (names.empty() ? "" : ", ") + name;
    }
  }
  throw Error(ErrorKind::kInput, folder.string(), fmt::format("none of {} is there", names),
              "check `path`, or name the files with `images` and `labels`");
}

}  // namespace

Samples read_idx(const fs::path& images_path, const fs::path& labels_path) {
  at::Tensor images = read_idx_file(images_path);
  const at::Tensor labels = read_idx_file(labels_path);
  if (images.dim() < 3)
    throw Error(ErrorKind::kInput, images_path.string(),
                fmt::format("{} dimensions, expected 3 or 4", images.dim()),
                "are images and labels swapped?");
  if (labels.dim() != 1)
    throw Error(ErrorKind::kInput, labels_path.string(),
                fmt::format("{} dimensions, expected 1", labels.dim()),
                "are images and labels swapped?");
  if (images.size(0) != labels.size(0))
    throw Error(ErrorKind::kInput, labels_path.string(),
                fmt::format("{} labels for the {} images of {}", labels.size(0), images.size(0),
                            images_path.string()),
                "the files belong to different sets");
  if (images.dim() == 3) images = images.unsqueeze(1);
  return {images, labels.to(at::kLong), {images_path, labels_path}};
}

Samples read_mnist(const fs::path& folder, DataConfig::Split split) {
  const auto read = [&](const std::string& part) {
    const fs::path images = find_file(folder, part + "-images", "idx3-ubyte");
    return read_idx(images, find_file(folder, part + "-labels", "idx1-ubyte"));
  };
  if (split == DataConfig::Split::kTrain) return read("train");
  if (split == DataConfig::Split::kTest) return read("t10k");
  const Samples train = read("train");
  const Samples test = read("t10k");
  if (train.images.sizes().slice(1) != test.images.sizes().slice(1))
    throw Error(ErrorKind::kInput, folder.string(), "training and test images differ in size",
                "the files belong to different sets");
  std::vector<fs::path> files = train.files;
  files.insert(files.end(), test.files.begin(), test.files.end());
  return {at::cat({train.images, test.images}), at::cat({train.labels, test.labels}),
          std::move(files)};
}

}  // namespace weightsmith::formats
