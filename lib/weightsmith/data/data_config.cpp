#include "weightsmith/data/data_config.h"

#include <algorithm>
#include <set>

#include "weightsmith/config/fields.h"

namespace weightsmith {
namespace {

/// A list of numbers, one a channel, that may be written as one number.
struct PerChannel {
  std::vector<double>& values;
};

void from_config(const ConfigNode& node, PerChannel& channels) {
  if (node.value.is_number()) {
    channels.values = {node.value.get<double>()};
  } else {
    detail::read_value(node, channels.values);
  }
}

nlohmann::json to_config(const PerChannel& channels) {
  const auto& values = channels.values;
  if (values.empty()) return nullptr;
  return values.size() == 1 ? nlohmann::json(values.front()) : nlohmann::json(values);
}

}  // namespace

EnumNames<DataConfig::Format> enum_names(DataConfig::Format) {
  using enum DataConfig::Format;
  return {{kCifar10, "cifar10"}, {kCifar100, "cifar100"}, {kIdx, "idx"},
          {kTensors, "tensors"}, {kFolder, "folder"},     {kDigits, "digits"}};
}

EnumNames<DataConfig::OnError> enum_names(DataConfig::OnError) {
  return {{DataConfig::OnError::kFail, "fail"}, {DataConfig::OnError::kSkip, "skip"}};
}

EnumNames<DataConfig::Split> enum_names(DataConfig::Split) {
  using enum DataConfig::Split;
  return {{kTrain, "train"}, {kTest, "test"}, {kAll, "all"}};
}

template <class Fields>
void fields(Fields& f, DataConfig& c) {
  PerChannel mean{c.mean};
  PerChannel std{c.std};
  f("format", c.format);
  f("path", c.path);
  f("split", c.split);
  f("images", c.images);
  f("labels", c.labels);
  f("classes", c.classes);
  f("relabel", c.relabel);
  f("limit", c.limit);
  f("subset_seed", c.subset_seed);
  f("resize", c.resize);
  f("crop", c.crop);
  f("on_error", c.on_error);
  f("cache_gb", c.cache_gb);
  f("mean", mean);
  f("std", std);
}

void from_config(const ConfigNode& node, DataConfig& config) { read_fields(node, config); }
nlohmann::json to_config(const DataConfig& config) { return write_fields(config); }

double DataConfig::cache_bytes() const { return cache_gb.value_or(2) * (1 << 30); }

void DataConfig::validate(const std::string& key) const {
  const auto require = [&](bool holds, const char* name, std::string_view what,
                           std::string_view remedy = "see --print-schema") {
    if (!holds) throw Error(ErrorKind::kConfig, key + "." + name, what, remedy);
  };
  const bool is_digits = format == Format::kDigits;
  require(is_digits || !path.empty(), "path", "missing", "name the data set's folder or file");
  require(!is_digits || path.empty(), "path", "digits are shipped and take no path",
          "remove it, or set WEIGHTSMITH_DATA_DIR");
  require(format != Format::kTensors || split == Split::kAll, "split",
          "a tensors file has no splits", "leave it out and name another file for the other split");
  const bool is_idx = format == Format::kIdx;
  const bool is_cifar100 = format == Format::kCifar100;
  require(is_idx || images.empty(), "images", "only for the format idx");
  require(is_idx || is_cifar100 || labels.empty(), "labels",
          "only for the formats idx and cifar100");
  require(!is_cifar100 || labels.empty() || labels == "fine" || labels == "coarse", "labels",
          fmt::format("\"{}\" is neither fine nor coarse", labels),
          "fine are the 100 classes, coarse the 20 they are grouped in");
  require(!is_idx || images.empty() == labels.empty(), images.empty() ? "images" : "labels",
          "images and labels go together", "name both files or neither");
  require(images.empty() || split == Split::kAll, "split", "named idx files have no splits",
          "leave split or images and labels out");
  require(std::all_of(classes.begin(), classes.end(), [](auto c) { return c >= 0; }), "classes",
          "a class is negative");
  require(std::set(classes.begin(), classes.end()).size() == classes.size(), "classes",
          "a class is listed twice");
  require(!relabel || !classes.empty(), "relabel", "needs classes to number anew",
          "list classes or leave relabel out");
  require(!limit || *limit >= 1, "limit", "must be at least 1");
  require(subset_seed >= 0, "subset_seed", "must not be negative");
  require(!resize || *resize >= 1, "resize", "must be at least 1");
  require(!crop || *crop >= 1, "crop", "must be at least 1");
  require(!crop || !resize || *crop <= *resize, "crop", "must not be larger than resize");
  require(on_error == OnError::kFail || format == Format::kFolder, "on_error",
          "only files of the format folder can be left out");
  require(!cache_gb || format == Format::kFolder, "cache_gb",
          "only images of the format folder can be decoded where they are used");
  require(!cache_gb || *cache_gb >= 0, "cache_gb", "must not be negative");
  require(std::all_of(std.begin(), std.end(), [](double s) { return s > 0; }), "std",
          "must be positive");
}

}  // namespace weightsmith
