#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <cstring>
#include <string>
#include <vector>

#include "weightsmith/core/atomic_file.h"
#include "weightsmith/core/error.h"
#include "weightsmith/data/formats.h"

namespace weightsmith::formats {
namespace fs = std::filesystem;
namespace {

constexpr std::int64_t kPixels = 3 * 32 * 32;
constexpr std::int64_t kRecord = 1 + kPixels;
constexpr std::int64_t kOfficialRecords = 10000;

}  // namespace

Samples read_cifar10(const fs::path& folder, DataConfig::Split split) {
  std::vector<std::string> names;
  if (split != DataConfig::Split::kTest)
    for (int i = 1; i <= 5; ++i) names.push_back(fmt::format("data_batch_{}.bin", i));
  if (split != DataConfig::Split::kTrain) names.emplace_back("test_batch.bin");

  const bool is_parent = !fs::exists(folder / names.front()) &&
                         fs::exists(folder / "cifar-10-batches-bin" / names.front());
  const fs::path base = is_parent ? folder / "cifar-10-batches-bin" : folder;
  std::vector<at::Tensor> images;
  std::vector<at::Tensor> labels;
  std::vector<fs::path> files;
  for (const std::string& name : names) {
    const fs::path path = base / name;
    const std::string bytes = read_text(path);
    const auto size = static_cast<std::int64_t>(bytes.size());
    if (size == 0 || size % kRecord != 0)
      throw Error(ErrorKind::kInput, path.string(),
                  fmt::format("{} bytes, expected a multiple of {} (officially {})", size, kRecord,
                              kOfficialRecords * kRecord),
                  "unpack cifar-10-binary.tar.gz again");
    const std::int64_t n = size / kRecord;
    at::Tensor file_images = at::empty({n, 3, 32, 32}, at::kByte);
    at::Tensor file_labels = at::empty({n}, at::kLong);
    for (std::int64_t i = 0; i < n; ++i) {
      const char* record = bytes.data() + i * kRecord;
      const auto label = static_cast<unsigned char>(record[0]);
      if (label > 9)
        throw Error(ErrorKind::kInput, path.string(),
                    fmt::format("record {} has label {}, expected 0 to 9", i, label),
                    "this is not CIFAR-10's binary version, or it is damaged");
      file_labels.data_ptr<std::int64_t>()[i] = label;
      std::memcpy(file_images.data_ptr<std::uint8_t>() + i * kPixels, record + 1, kPixels);
    }
    files.push_back(path);
    images.push_back(file_images);
    labels.push_back(file_labels);
  }
  return {at::cat(images), at::cat(labels), std::move(files)};
}

}  // namespace weightsmith::formats
