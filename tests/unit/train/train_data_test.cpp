#include "weightsmith/train/train_data.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>

namespace weightsmith {
namespace {

TrainDataConfig digits() {
  TrainDataConfig config;
  config.train.split = DataConfig::Split::kTrain;
  config.test.emplace();
  config.test->split = DataConfig::Split::kTest;
  return config;
}

TEST_CASE("a validation share is taken out of training", "[train]") {
  TrainDataConfig config = digits();
  const TrainData whole = load_train_data(config, 1);
  CHECK_FALSE(whole.validation);
  CHECK(whole.test->size() == 540);
  config.validation = 0.1;
  const TrainData split = load_train_data(config, 1);
  CHECK(split.validation->size() == 126);
  CHECK(split.train.size() == 1257 - 126);
  const auto sum = [](const Dataset& d) {
    return d.images.to(at::kLong).sum().item<std::int64_t>();
  };
  CHECK(sum(split.train) + sum(*split.validation) == sum(whole.train));
  CHECK(load_train_data(config, 1).validation->images.equal(split.validation->images));
  CHECK_FALSE(load_train_data(config, 2).validation->images.equal(split.validation->images));
  config.validation = 1e-9;
  CHECK(load_train_data(config, 1).validation->size() == 1);
}

TEST_CASE("label noise strikes training labels alone, at its rate", "[train]") {
  TrainDataConfig config = digits();
  config.validation = 0.2;
  const TrainData clean = load_train_data(config, 5);
  config.label_noise = 0.4;
  const TrainData noisy = load_train_data(config, 5);
  CHECK(noisy.train.images.equal(clean.train.images));
  CHECK(noisy.validation->labels.equal(clean.validation->labels));
  CHECK(noisy.test->labels.equal(clean.test->labels));
  const double changed =
      noisy.train.labels.ne(clean.train.labels).to(at::kDouble).mean().item<double>();
  CHECK(changed == Approx(0.4 * 0.9).margin(0.05));
  CHECK(noisy.train.labels.min().item<int>() == 0);
  CHECK(noisy.train.labels.max().item<int>() == 9);
}

TEST_CASE("label noise draws from the classes of the training set", "[train]") {
  TrainDataConfig config = digits();
  config.train.classes = {2, 5, 7};
  config.label_noise = 1;
  const TrainData noisy = load_train_data(config, 5);
  CHECK(noisy.train_classes == std::vector<std::int64_t>{2, 5, 7});
  CHECK(noisy.classes == 10);
  CHECK(classes_in(noisy.train) == noisy.train_classes);
  for (const std::int64_t c : noisy.train_classes)
    CHECK(noisy.train.labels.eq(c).to(at::kDouble).mean().item<double>() ==
          Approx(1.0 / 3).margin(0.08));
  config.train.relabel = true;
  CHECK(classes_in(load_train_data(config, 5).train) == std::vector<std::int64_t>{0, 1, 2});
}

}  // namespace
}  // namespace weightsmith
