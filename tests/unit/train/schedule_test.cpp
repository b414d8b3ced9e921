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

}  // namespace
}  // namespace weightsmith
