#include "weightsmith/train/schedule.h"

#include <cmath>
#include <numbers>

namespace weightsmith {

double learning_rate(const ScheduleConfig& schedule, double lr, std::int64_t epochs,
                     std::int64_t batches, std::int64_t epoch, std::int64_t batch) {
  if (epoch < schedule.warmup_epochs)
    return lr * static_cast<double>(epoch * batches + batch) /
           static_cast<double>(schedule.warmup_epochs * batches);
  if (schedule.type == ScheduleConfig::Type::kConstant) return lr;
  const double progress = static_cast<double>(epoch) / static_cast<double>(epochs);
  return schedule.min_lr +
         0.5 * (lr - schedule.min_lr) * (1.0 + std::cos(std::numbers::pi * progress));
}

}  // namespace weightsmith
