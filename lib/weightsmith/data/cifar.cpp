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

using Split = DataConfig::Split;

constexpr std::int64_t kPixels = 3 * 32 * 32;

/// One of the labels that a record begins with, a byte each.
struct Label {
  const char* what;
  int classes;
};

struct File {
  std::string name;
  std::int64_t official_records;
};

/// What one of the data sets consists of.
struct Layout {
  const char* name;
  const char* archive;
  const char* folder;  // that the archive unpacks to
  std::vector<File> train, test;
  std::vector<Label> labels;
};

std::vector<File> files_of(const Layout& layout, Split split) {
  std::vector<File> files;
  if (split != Split::kTest) files = layout.train;
  if (split != Split::kTrain) files.insert(files.end(), layout.test.begin(), layout.test.end());
  return files;
}

/// Appends the records of a file, with label number `used` of each.
void read_file(const Layout& layout, const fs::path& path, std::int64_t official_records,
               std::size_t used, std::vector<at::Tensor>& images, std::vector<at::Tensor>& labels) {
  const auto label_bytes = static_cast<std::int64_t>(layout.labels.size());
  const std::int64_t record_bytes = label_bytes + kPixels;
  const std::string bytes = read_text(path);
  const auto size = static_cast<std::int64_t>(bytes.size());
  if (size == 0 || size % record_bytes != 0)
    throw Error(ErrorKind::kInput, path.string(),
                fmt::format("{} bytes, expected a multiple of {} (officially {})", size,
                            record_bytes, official_records * record_bytes),
                fmt::format("unpack {} again", layout.archive));
  const std::int64_t n = size / record_bytes;
  at::Tensor file_images = at::empty({n, 3, 32, 32}, at::kByte);
  at::Tensor file_labels = at::empty({n}, at::kLong);
  for (std::int64_t i = 0; i < n; ++i) {
    const char* record = bytes.data() + i * record_bytes;
    // Those that are not used tell other files apart, too.
    for (std::size_t l = 0; l < layout.labels.size(); ++l) {
      const auto& [what, classes] = layout.labels[l];
      const auto label = static_cast<unsigned char>(record[l]);
      if (label >= classes)
        throw Error(
            ErrorKind::kInput, path.string(),
            fmt::format("record {} has {} {}, expected 0 to {}", i, what, label, classes - 1),
            fmt::format("this is not {}'s binary version, or it is damaged", layout.name));
      if (l == used) file_labels.data_ptr<std::int64_t>()[i] = label;
    }
    std::memcpy(file_images.data_ptr<std::uint8_t>() + i * kPixels, record + label_bytes, kPixels);
  }
  images.push_back(file_images);
  labels.push_back(file_labels);
}

Samples read_records(const Layout& layout, const fs::path& folder, Split split, std::size_t used) {
  const std::vector<File> files = files_of(layout, split);
  const std::string& first = files.front().name;
  const fs::path inner = folder / layout.folder;
  const bool is_parent = !fs::exists(folder / first) && fs::exists(inner / first);
  Samples samples;
  std::vector<at::Tensor> images;
  std::vector<at::Tensor> labels;
  for (const File& file : files) {
    const fs::path path = (is_parent ? inner : folder) / file.name;
    read_file(layout, path, file.official_records, used, images, labels);
    samples.files.push_back(path);
  }
  samples.images = at::cat(images);
  samples.labels = at::cat(labels);
  samples.classes = layout.labels[used].classes;
  return samples;
}

}  // namespace

Samples read_cifar10(const fs::path& folder, Split split) {
  const Layout layout{"CIFAR-10",
                      "cifar-10-binary.tar.gz",
                      "cifar-10-batches-bin",
                      {{"data_batch_1.bin", 10000},
                       {"data_batch_2.bin", 10000},
                       {"data_batch_3.bin", 10000},
                       {"data_batch_4.bin", 10000},
                       {"data_batch_5.bin", 10000}},
                      {{"test_batch.bin", 10000}},
                      {{"label", 10}}};
  return read_records(layout, folder, split, 0);
}

Samples read_cifar100(const fs::path& folder, Split split, bool coarse) {
  const Layout layout{"CIFAR-100",           "cifar-100-binary.tar.gz",
                      "cifar-100-binary",    {{"train.bin", 50000}},
                      {{"test.bin", 10000}}, {{"coarse label", 20}, {"fine label", 100}}};
  return read_records(layout, folder, split, coarse ? 0 : 1);
}

}  // namespace weightsmith::formats
