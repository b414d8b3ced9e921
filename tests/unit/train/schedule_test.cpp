#include "weightsmith/train/schedule.h"

#include <catch2/catch.hpp>
#include <cmath>

namespace weightsmith {
namespace {

TEST_CASE("warm-up is linear in batches from 0, then the schedule's own value holds", "[train]") {
  ScheduleConfig schedule;
  schedule.warmup_epochs = 2;
  schedule.min_lr = 0.01;
  const auto cosine = [&](int epoch, int batch) {
    return learning_rate(schedule, 0.2, 10, 4, epoch, batch);
  };
  CHECK(cosine(0, 0) == 0);
  CHECK(cosine(0, 3) == Approx(0.2 * 3 / 8));
  CHECK(cosine(1, 3) == Approx(0.2 * 7 / 8));
  for (int epoch = 2; epoch < 10; ++epoch)
    for (const int batch : {0, 3})
      CHECK(cosine(epoch, batch) ==
            Approx(0.01 + 0.5 * 0.19 * (1 + std::cos(std::acos(-1.0) * epoch / 10))));
  schedule.type = ScheduleConfig::Type::kConstant;
  CHECK(cosine(1, 0) == Approx(0.1));
  CHECK(cosine(9, 3) == 0.2);
  schedule.warmup_epochs = 0;
  CHECK(cosine(0, 0) == 0.2);
}

TEST_CASE("a rate of several steps falls at each milestone", "[train]") {
  ScheduleConfig schedule;
  schedule.type = ScheduleConfig::Type::kMultiStep;
  schedule.milestones = {3, 5};
  schedule.gamma = 0.2;
  schedule.warmup_epochs = 1;
  const auto rate = [&](int epoch) { return learning_rate(schedule, 0.5, 8, 4, epoch, 2); };
  CHECK(rate(0) == Approx(0.25));
  CHECK(rate(1) == 0.5);
  CHECK(rate(2) == 0.5);
  CHECK(rate(3) == Approx(0.1));
  CHECK(rate(4) == Approx(0.1));
  CHECK(rate(5) == Approx(0.02));
  CHECK(rate(7) == Approx(0.02));
}

TEST_CASE("one cycle rises to its peak and falls to its end, once a batch", "[train]") {
  ScheduleConfig schedule;
  schedule.type = ScheduleConfig::Type::kOneCycle;
  schedule.warmup_epochs = 0;
  schedule.min_lr = 0.001;
  schedule.peak = 0.4;
  schedule.start_divisor = 10;
  const auto rate = [&](int number) {
    return learning_rate(schedule, 0.5, 3, 7, number / 7, number % 7);
  };  // 21 batches: the peak is at number 8
  CHECK(rate(0) == Approx(0.05));
  CHECK(rate(4) == Approx(0.275));
  CHECK(rate(8) == Approx(0.5));
  CHECK(rate(14) == Approx((0.5 + 0.001) / 2));
  CHECK(rate(20) == Approx(0.001));
  for (int i = 1; i <= 20; ++i) CHECK((rate(i) > rate(i - 1)) == (i <= 8));
  // With a warm-up the cycle is joined where it stands by then.
  const double joined = rate(7);
  schedule.warmup_epochs = 1;
  CHECK(rate(0) == 0);
  CHECK(rate(3) == Approx(joined * 3 / 7));
  CHECK(rate(7) == Approx(joined));
}

TEST_CASE("SWA's own rate is annealed from the schedule's", "[train]") {
  TrainConfig config;
  config.epochs = 8;
  config.optimizer.lr = 0.4;
  config.schedule.type = ScheduleConfig::Type::kConstant;
  config.schedule.warmup_epochs = 1;
  config.method.type = MethodConfig::Type::kSwa;
  config.method.lr = 0.2;
  config.method.anneal_epochs = 2;
  const auto rate = [&](int epoch) { return learning_rate(config, 5, epoch, 3); };
  CHECK(rate(5) == 0.4);
  CHECK(rate(6) == 0.4);  // three quarters of the epochs
  CHECK(rate(7) == Approx(0.3));
  config.method.start_epoch = 2;
  CHECK(rate(3) == Approx(0.3));
  CHECK(rate(4) == Approx(0.2));
  CHECK(rate(7) == Approx(0.2));
  config.method.anneal_epochs = 0;
  CHECK(rate(2) == Approx(0.2));
  config.method.lr.reset();
  CHECK(rate(7) == 0.4);
  config.method.lr = 0.2;
  config.method.type = MethodConfig::Type::kEma;
  CHECK(rate(7) == 0.4);
}

}  // namespace
}  // namespace weightsmith
