#include "weightsmith/data/dataset.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>

#include "weightsmith/core/error.h"
#include "weightsmith/core/rng.h"
#include "weightsmith/data/formats.h"
#include "weightsmith/data/random_stream.h"
#include "weightsmith/data/shipped_data.h"
#include "weightsmith/tensor/first_row.h"
#include "weightsmith/tensor/safetensors.h"

namespace weightsmith {
namespace {

using Format = DataConfig::Format;
using Split = DataConfig::Split;

constexpr std::int64_t kDigitsTrain = 1257;

const char* split_name(Split split) {
  return split == Split::kTrain ? " (train)" : split == Split::kTest ? " (test)" : "";
}

std::int64_t largest_label_plus_one(const at::Tensor& labels) {
  return labels.numel() == 0 ? 0 : labels.max().item<std::int64_t>() + 1;
}

Dataset load_digits(Split split) {
  const std::filesystem::path folder = shipped_data_folder("digits");
  formats::Samples all =
      formats::read_idx(folder / "images-idx3-ubyte", folder / "labels-idx1-ubyte");
  const std::int64_t n = all.labels.size(0);
  if (n <= kDigitsTrain)
    throw Error(ErrorKind::kInput, folder.string(),
                fmt::format("{} images, expected more than {}", n, kDigitsTrain),
                "make the files again with scripts/make_digits.py");
  const std::int64_t begin = split == Split::kTest ? kDigitsTrain : 0;
  const std::int64_t end = split == Split::kTrain ? kDigitsTrain : n;
  Dataset dataset;
  dataset.images = all.images.slice(0, begin, end);
  dataset.labels = all.labels.slice(0, begin, end);
  dataset.classes = 10;
  dataset.where = std::string("digits") + split_name(split);
  dataset.files = std::move(all.files);
  return dataset;
}

/// Bytes always are; of floats the extremes tell, in one pass that allocates nothing.
void check_finite(const Dataset& dataset) {
  const at::Tensor& images = dataset.images;
  if (images.scalar_type() != at::kFloat || images.numel() == 0) return;
  const auto [low, high] = at::aminmax(images);
  if (std::isfinite(low.item<float>()) && std::isfinite(high.item<float>())) return;
  const auto sample = first_row_where(at::isfinite(images).logical_not());
  WS_CHECK(sample.has_value(), dataset.where);
  throw Error(
      ErrorKind::kInput, dataset.where,
      fmt::format("sample {} (from 0) is not finite: it holds NaN or infinite values", *sample),
      "leave it out, or write the file again");
}

Dataset load_tensors(const std::filesystem::path& path) {
  const SafetensorsFile file = read_safetensors(path);
  const auto find = [&](const char* name) {
    const auto it = file.tensors.find(name);
    if (it == file.tensors.end())
      throw Error(ErrorKind::kInput, path.string(), fmt::format("has no tensor \"{}\"", name),
                  "a data set needs `images` (N, ...) and `labels` (N)");
    return it->second;
  };
  Dataset dataset;
  dataset.images = find("images").contiguous();
  dataset.labels = find("labels").contiguous();
  dataset.where = path.string();
  const auto fail = [&](const std::string& what, const char* remedy) {
    throw Error(ErrorKind::kInput, path.string(), what, remedy);
  };
  if (dataset.images.scalar_type() != at::kByte && dataset.images.scalar_type() != at::kFloat)
    fail(fmt::format("images are {}, expected uint8 or float32",
                     at::toString(dataset.images.scalar_type())),
         "convert them");
  if (dataset.images.dim() < 2) fail("images have one dimension", "expected (N, ...)");
  if (dataset.labels.scalar_type() != at::kLong || dataset.labels.dim() != 1)
    fail(fmt::format("labels are {} with {} dimensions, expected int64 with 1",
                     at::toString(dataset.labels.scalar_type()), dataset.labels.dim()),
         "convert them");
  if (dataset.images.size(0) != dataset.labels.size(0))
    fail(fmt::format("{} images but {} labels", dataset.images.size(0), dataset.labels.size(0)),
         "write one label an image");
  if (dataset.labels.numel() > 0 && dataset.labels.min().item<std::int64_t>() < 0)
    fail("a label is negative", "leave unlabelled images out");

  check_finite(dataset);
  const std::int64_t seen = largest_label_plus_one(dataset.labels);
  dataset.classes = seen;
  if (const auto it = file.metadata.find("classes"); it != file.metadata.end()) {
    const std::string& text = it->second;
    const auto [end, error] =
        std::from_chars(text.data(), text.data() + text.size(), dataset.classes);
    if (error != std::errc{} || end != text.data() + text.size() || dataset.classes < seen)
      fail(fmt::format("metadata classes = \"{}\", expected a number of at least {}", text, seen),
           "it counts the classes of the whole label space");
  }
  dataset.files = {path};
  return dataset;
}

/// The list of a folder's images as a data set whose images are (N, 1) numbers in that list, so
/// that what is not selected need not be read.
Dataset list_folder(const DataConfig& config, const formats::ImageList& list) {
  Dataset dataset;
  dataset.labels = at::tensor(list.labels, at::kLong);
  dataset.images = at::arange(dataset.size()).unsqueeze(1);
  dataset.classes = list.classes;
  dataset.where = config.path.string() + split_name(config.split);
  return dataset;
}

/// Reads the images that such a data set names.
void read_folder(Dataset& dataset, const DataConfig& config, const formats::ImageList& list,
                 const formats::Squaring& squaring, Progress* progress) {
  const auto* numbers = dataset.images.data_ptr<std::int64_t>();
  formats::ImageBatch batch = formats::read_images(
      list, {numbers, numbers + dataset.size()}, squaring,
      config.on_error == DataConfig::OnError::kSkip, config.cache_bytes(), progress);
  // Labels of the list as they were numbered anew by select_classes.
  std::vector<std::int64_t> place(list.files.size());
  for (std::int64_t i = 0; i < dataset.size(); ++i) place[numbers[i]] = i;
  std::vector<std::int64_t> kept;
  for (const std::int64_t number : batch.read) {
    kept.push_back(place[number]);
    dataset.files.push_back(list.files[number]);
  }
  dataset.labels = dataset.labels.index_select(0, at::tensor(kept, at::kLong));
  const bool all_kept = batch.images.size(0) == static_cast<std::int64_t>(batch.read.size());
  dataset.images = all_kept ? batch.images : at::Tensor();
  if (!all_kept)
    dataset.on_demand = std::make_shared<const ImageFiles>(dataset.files, squaring, batch.images);
  dataset.skipped = std::move(batch.skipped);
  dataset.listing = list_files(list.folder, dataset.files);
}

formats::Samples read_samples(const DataConfig& config) {
  if (config.format == Format::kCifar10) return formats::read_cifar10(config.path, config.split);
  if (config.format == Format::kCifar100)
    return formats::read_cifar100(config.path, config.split, config.labels == "coarse");
  if (config.images.empty()) return formats::read_mnist(config.path, config.split);
  return formats::read_idx(config.path / config.images, config.path / config.labels);
}

Dataset load_split(const DataConfig& config) {
  if (config.format == Format::kDigits) return load_digits(config.split);
  if (config.format == Format::kTensors) return load_tensors(config.path);
  formats::Samples samples = read_samples(config);
  Dataset dataset;
  dataset.images = std::move(samples.images);
  dataset.labels = std::move(samples.labels);
  dataset.classes = samples.classes.value_or(largest_label_plus_one(dataset.labels));
  dataset.where = config.path.string() + split_name(config.split);
  dataset.files = std::move(samples.files);
  return dataset;
}

/// Keeps the samples of the chosen classes and numbers them anew where asked.
Dataset select_classes(Dataset dataset, const DataConfig& config) {
  std::vector<std::int64_t> position(dataset.classes, -1);
  for (std::size_t i = 0; i < config.classes.size(); ++i) {
    const std::int64_t c = config.classes[i];
    if (c >= dataset.classes)
      throw Error(ErrorKind::kInput, dataset.where,
                  fmt::format("class {} was selected, but there are only {}", c, dataset.classes),
                  "classes are numbered from 0");
    position[c] = static_cast<std::int64_t>(i);
  }
  std::vector<std::int64_t> keep;
  std::vector<std::int64_t> count(config.classes.size());
  const auto* labels = dataset.labels.data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < dataset.size(); ++i) {
    const std::int64_t slot = position[labels[i]];
    if (slot < 0) continue;
    keep.push_back(i);
    ++count[slot];
  }
  for (std::size_t i = 0; i < count.size(); ++i)
    if (count[i] == 0)
      throw Error(ErrorKind::kInput, dataset.where,
                  fmt::format("class {} has no sample", config.classes[i]),
                  "leave it out of `classes`, or choose another split");
  dataset = subset(dataset, keep);
  if (config.relabel) {
    auto* kept = dataset.labels.data_ptr<std::int64_t>();
    for (std::int64_t i = 0; i < dataset.size(); ++i) kept[i] = position[kept[i]];
    dataset.classes = static_cast<std::int64_t>(config.classes.size());
  }
  return dataset;
}

at::Tensor square_images(const Dataset& dataset, const formats::Squaring& squaring) {
  if (dataset.images.dim() != 4)
    throw Error(ErrorKind::kInput, dataset.where,
                fmt::format("{} needs images (N, C, H, W), these have {} dimensions",
                            squaring.resize ? "resize" : "crop", dataset.images.dim()),
                squaring.resize ? "leave `resize` out" : "leave `crop` out");
  return squaring.apply(dataset.images, dataset.where);
}

void check_channels(const Dataset& dataset, const std::vector<double>& values, const char* name) {
  const auto given = static_cast<std::int64_t>(values.size());
  const std::int64_t channels = dataset.sample_shape().front();
  if (given > 1 && given != channels)
    throw Error(ErrorKind::kInput, dataset.where,
                fmt::format("{} for {} channels, but the images have {}", name, given, channels),
                "give one number, or one a channel");
}

}  // namespace

std::vector<std::int64_t> Dataset::sample_shape() const {
  return on_demand ? on_demand->shape() : images.sizes().slice(1).vec();
}

at::ScalarType Dataset::dtype() const { return on_demand ? at::kByte : images.scalar_type(); }

std::int64_t Dataset::memory_bytes() const {
  return on_demand ? on_demand->kept_bytes() : static_cast<std::int64_t>(images.nbytes());
}

RunInputs Dataset::inputs() const {
  if (listing) return {{}, {*listing}};
  return {files, {}};
}

Dataset load_dataset(const DataConfig& config, Progress* progress) {
  config.validate("data");
  const bool is_folder = config.format == Format::kFolder;
  const formats::Squaring squaring{config.resize, config.crop};
  formats::ImageList list;
  if (is_folder) list = formats::list_images(config.path, config.split);
  Dataset dataset = is_folder ? list_folder(config, list) : load_split(config);
  if (!config.classes.empty()) dataset = select_classes(std::move(dataset), config);
  if (dataset.size() == 0)
    throw Error(ErrorKind::kInput, dataset.where, "has no samples", "check the file");
  if (config.limit && *config.limit < dataset.size()) {
    Rng rng(static_cast<std::uint64_t>(config.subset_seed), {kSubsetStream});
    std::vector<std::int64_t> order = random_permutation(dataset.size(), rng);
    order.resize(*config.limit);
    dataset = subset(dataset, order);
  }
  if (is_folder) {
    read_folder(dataset, config, list, squaring, progress);
  } else if (config.resize || config.crop) {
    dataset.images = square_images(dataset, squaring);
  }
  check_channels(dataset, config.mean, "mean");
  check_channels(dataset, config.std, "std");
  dataset.mean = config.mean;
  dataset.std = config.std;
  return dataset;
}

std::string skipped_warning(const Dataset& dataset) {
  if (dataset.skipped.empty()) return "";
  const auto left_out = static_cast<std::int64_t>(dataset.skipped.size());
  return fmt::format("{} of {} images of {} were left out; the first: {}", left_out,
                     left_out + static_cast<std::int64_t>(dataset.files.size()), dataset.where,
                     dataset.skipped.front());
}

Dataset subset(const Dataset& dataset, const std::vector<std::int64_t>& indices) {
  const at::Tensor index = at::tensor(indices, at::kLong);
  Dataset selected = dataset;
  if (dataset.on_demand) {
    selected.on_demand = std::make_shared<const ImageFiles>(dataset.on_demand->subset(indices));
  } else {
    selected.images = dataset.images.index_select(0, index);
  }
  selected.labels = dataset.labels.index_select(0, index);
  return selected;
}

std::vector<std::int64_t> classes_in(const Dataset& dataset) {
  const std::int64_t* labels = dataset.labels.data_ptr<std::int64_t>();
  const std::set<std::int64_t> distinct(labels, labels + dataset.size());
  return {distinct.begin(), distinct.end()};
}

Normalisation normalisation(const Dataset& dataset) {
  const double unit = dataset.dtype() == at::kByte ? 1.0 / 255.0 : 1.0;
  const auto at_channel = [](const std::vector<double>& values, std::size_t c, double otherwise) {
    return values.empty() ? otherwise : values.size() == 1 ? values.front() : values[c];
  };
  Normalisation result;
  for (std::size_t c = 0; c < std::max({dataset.mean.size(), dataset.std.size(), std::size_t{1}});
       ++c) {
    const double std = at_channel(dataset.std, c, 1.0);
    result.scale.push_back(static_cast<float>(unit / std));
    result.offset.push_back(static_cast<float>(-at_channel(dataset.mean, c, 0.0) / std));
  }
  return result;
}

at::Tensor stored_batch(const Dataset& dataset, std::int64_t begin, std::int64_t count) {
  if (!dataset.on_demand) return dataset.images.narrow(0, begin, count);
  const ImageFiles& files = *dataset.on_demand;
  std::vector<std::int64_t> shape = files.shape();
  shape.insert(shape.begin(), count);
  at::Tensor batch = at::empty(shape, at::kByte);
  auto* pixels = batch.data_ptr<std::uint8_t>();
  at::parallel_for(0, count, 1, [&](std::int64_t first, std::int64_t end) {
    for (std::int64_t i = first; i < end; ++i)
      files.read(begin + i, pixels + i * files.bytes_each());
  });
  return batch;
}

at::Tensor normalised_batch(const Dataset& dataset, std::int64_t begin, std::int64_t count) {
  const Normalisation n = normalisation(dataset);
  const at::Tensor images = stored_batch(dataset, begin, count).to(at::kFloat);
  std::vector<std::int64_t> shape(images.dim(), 1);
  shape[1] = static_cast<std::int64_t>(n.scale.size());
  return images.mul(at::tensor(n.scale).view(shape)).add_(at::tensor(n.offset).view(shape));
}

}  // namespace weightsmith
