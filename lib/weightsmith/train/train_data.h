#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <vector>

#include "weightsmith/data/dataset.h"
#include "weightsmith/data/loader.h"
#include "weightsmith/eval/objective.h"
#include "weightsmith/train/train_config.h"

namespace weightsmith {

class Progress;

/// What a run trains on and is scored on.
struct TrainData {
  Dataset train;
  std::optional<Dataset> validation;
  std::optional<Dataset> test;
  std::int64_t classes = 0;  ///< of the label space all of them share
  /// Those that the training samples have, the validation share included, without noise; ascending.
  std::vector<std::int64_t> train_classes;

  /// The sets there are.
  std::vector<const Dataset*> all() const;
};

/// Loads the sets. `validation` is a share of the training samples drawn with `seed` and taken out
/// of training; at least one sample stays on either side. Label noise then gives each remaining
/// training sample, with probability `label_noise`, a class drawn uniformly from `train_classes`
/// (its own included); validation and test labels stay as they are. Throws as load_dataset does.
/// `progress` is told of images read.
TrainData load_train_data(const TrainDataConfig& config, std::int64_t seed,
                          Progress* progress = nullptr);

/// A key for each set (`train`, `test`) by which a resumed run knows it again, made without reading
/// samples: of their shape, number and labels and of the images' names and sizes. Samples that
/// changed otherwise are not noticed.
nlohmann::json data_keys(const TrainData& data);

/// Whether training batches of `data` are augmented on `device`, as `augment_on` has it.
bool augments_on_device(const TrainConfig& config, const Dataset& data, at::Device device);
/// What the loader of a training on `device` is told; how many threads it has depends on LibTorch's
/// number of threads.
LoaderOptions loader_options(const TrainConfig& config, const Dataset& data, at::Device device);

/// What outputs mean where this data is trained on: with `candidates` data only the classes of the
/// training set compete. Throws Error{kConfig} when the test set has others then.
Objective training_objective(const ObjectiveConfig& config, const TrainData& data);

}  // namespace weightsmith
