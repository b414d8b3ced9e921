#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

namespace weightsmith {

struct ConfigNode;

/// Names a data set, or a part of one. Field order = schema order = docs order.
struct DataConfig {
  enum class Format {
    kCifar10,   ///< the official binary version: data_batch_1..5.bin, test_batch.bin
    kCifar100,  ///< likewise: train.bin, test.bin
    kIdx,       ///< the MNIST family's files, plain or .gz
    kTensors,   ///< a safetensors file with `images` and `labels`
    kFolder,    ///< JPEG and PNG files, one subfolder a class
    kDigits,    ///< 8x8 handwritten digits, shipped with the project
  };
  enum class OnError { kFail, kSkip };
  enum class Split { kTrain, kTest, kAll };

  Format format = Format::kDigits;
  std::filesystem::path path;         ///< folder (cifar, idx, folder) or file (tensors); no digits
  Split split = Split::kAll;          ///< formats without splits have only `all`
  std::string images;                 ///< idx: file name in `path`; default: the split's usual name
  std::string labels;                 ///< idx: likewise; cifar100: fine or coarse; default: fine
  std::vector<std::int64_t> classes;  ///< keep only these; empty: all
  bool relabel = false;               ///< label = position in `classes`, instead of the original
  std::optional<std::int64_t> limit;  ///< keep the first N of a shuffle; more than there are: all
  std::int64_t subset_seed = 0;       ///< of that shuffle: subsets of one seed nest
  std::optional<std::int64_t> resize;  ///< side of the square, or with `crop` of the shorter side
  std::optional<std::int64_t> crop;    ///< side of the central square cut out after that
  OnError on_error = OnError::kFail;   ///< folder: what a file that cannot be read does
  std::optional<double> cache_gb;      ///< folder: GiB of decoded images kept; default: 2
  std::vector<double> mean;            ///< one a channel, or one for all; empty: 0
  std::vector<double> std;             ///< likewise; empty: 1

  /// What `cache_gb` comes to.
  double cache_bytes() const;

  /// Cross-field rules; throws Error{kConfig} naming the key below `key`.
  void validate(const std::string& key) const;
};

/// `mean` and `std` may be a number or a list.
void from_config(const ConfigNode& node, DataConfig& config);
nlohmann::json to_config(const DataConfig& config);

}  // namespace weightsmith
