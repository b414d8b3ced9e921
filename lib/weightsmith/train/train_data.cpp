#include "weightsmith/train/train_data.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <nlohmann/json.hpp>

#include "weightsmith/core/error.h"
#include "weightsmith/core/rng.h"
#include "weightsmith/data/random_stream.h"
#include "weightsmith/eval/fingerprint.h"

namespace weightsmith {
namespace {

void add_label_noise(Dataset& dataset, const std::vector<std::int64_t>& classes, double share,
                     std::uint64_t seed) {
  Rng rng(seed, {kNoiseStream});
  dataset.labels = dataset.labels.clone();
  auto* labels = dataset.labels.data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < dataset.size(); ++i) {
    const bool noisy = rng.uniform() < share;
    const std::int64_t label = classes[rng.below(classes.size())];
    if (noisy) labels[i] = label;
  }
}

std::string key_of(const Dataset& data) {
  Fingerprint key("training data 1");
  key.add(fmt::format("{} [{}]", data.size(), fmt::join(data.sample_shape(), ", ")));
  const at::Tensor labels = data.labels.contiguous();
  key.add({static_cast<const char*>(labels.data_ptr()), labels.nbytes()});
  return key.add(data.listing ? data.listing->sha256 : "").hex();
}

}  // namespace

std::vector<const Dataset*> TrainData::all() const {
  std::vector<const Dataset*> sets{&train};
  if (validation) sets.push_back(&*validation);
  if (test) sets.push_back(&*test);
  return sets;
}

TrainData load_train_data(const TrainDataConfig& config, std::int64_t seed, Progress* progress) {
  TrainData data;
  data.train = load_dataset(config.train, progress);
  data.classes = data.train.classes;
  data.train_classes = classes_in(data.train);
  if (config.test) {
    data.test = load_dataset(*config.test, progress);
    data.classes = std::max(data.classes, data.test->classes);
  }
  if (config.validation > 0) {
    const std::int64_t n = data.train.size();
    if (n < 2)
      throw Error(ErrorKind::kInput, data.train.where, "one sample cannot be split",
                  "set data.validation to 0");
    const std::int64_t held_out = std::clamp<std::int64_t>(
        std::llround(config.validation * static_cast<double>(n)), 1, n - 1);
    Rng rng(static_cast<std::uint64_t>(seed), {kValidationStream});
    std::vector<std::int64_t> order = random_permutation(n, rng);
    std::sort(order.begin(), order.begin() + held_out);
    std::sort(order.begin() + held_out, order.end());
    data.validation = subset(data.train, {order.begin(), order.begin() + held_out});
    data.validation->where += " (validation)";
    data.train = subset(data.train, {order.begin() + held_out, order.end()});
  }
  data.train.classes = data.classes;
  if (config.label_noise > 0)
    add_label_noise(data.train, data.train_classes, config.label_noise,
                    static_cast<std::uint64_t>(seed));
  return data;
}

nlohmann::json data_keys(const TrainData& data) {
  nlohmann::json keys = {{"train", key_of(data.train)}};
  if (data.test) keys["test"] = key_of(*data.test);
  return keys;
}

bool augments_on_device(const TrainConfig& config, const Dataset& data, at::Device device) {
  if (config.augment_on == AugmentOn::kAuto) return !device.is_cpu() && fits_device_batches(data);
  return config.augment_on == AugmentOn::kDevice;
}

LoaderOptions loader_options(const TrainConfig& config, const Dataset& data, at::Device device) {
  LoaderOptions options;
  options.batch_size = config.batch_size;
  options.seed = config.seed;
  options.pipelines = config.augmentations;
  options.same_samples = config.data.draw == DrawMode::kSame;
  // Decoding takes several times as long as what is left to do.
  options.threads = std::clamp(at::get_num_threads() / (data.on_demand ? 2 : 4), 1, 8);
  options.prefetch = std::max<std::int64_t>(options.prefetch, options.threads);
  if (augments_on_device(config, data, device)) options.device = device;
  return options;
}

Objective training_objective(const ObjectiveConfig& config, const TrainData& data) {
  Objective objective(config, data.classes);
  if (config.candidates != Candidates::kData) return objective;
  if (data.test) {
    // A label that does not compete would make the loss infinite.
    std::vector<std::int64_t> strange;
    const auto tested = classes_in(*data.test);
    std::set_difference(tested.begin(), tested.end(), data.train_classes.begin(),
                        data.train_classes.end(), std::back_inserter(strange));
    if (!strange.empty())
      throw Error(ErrorKind::kConfig, "data.test",
                  fmt::format("has samples of class {}{}: with objective.candidates \"data\" only "
                              "classes of the training set compete",
                              strange.front(),
                              strange.size() > 1 ? fmt::format(" and {} more", strange.size() - 1)
                                                 : std::string()),
                  "select data.test.classes, or set objective.candidates to all");
  }
  return objective.restricted_to(data.train_classes);
}

}  // namespace weightsmith
