#pragma once

#include <filesystem>

#include "weightsmith/train/train_config.h"

namespace weightsmith::testing {

/// Three epochs of a tiny network on 50 of the digits.
inline TrainConfig tiny_training(const std::filesystem::path& out) {
  TrainConfig config;
  config.model.builtin = "convnet";
  config.model.options = {{"width", 4}, {"channels", 1}, {"outputs", 10}};
  config.data.train.split = DataConfig::Split::kTrain;
  config.data.train.limit = 50;
  config.data.test.emplace();
  config.data.test->split = DataConfig::Split::kTest;
  config.data.test->limit = 40;
  config.method.k = 2;
  config.epochs = 3;
  config.batch_size = 16;
  config.out = out;
  return config;
}

}  // namespace weightsmith::testing
