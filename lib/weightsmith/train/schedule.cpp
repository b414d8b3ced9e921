#include "weightsmith/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace weightsmith {
namespace {

/// From `from` at progress 0 to `to` at progress 1, by half a cosine.
double half_cosine(double from, double to, double progress) {
  return to + 0.5 * (from - to) * (1.0 + std::cos(std::numbers::pi * progress));
}

double one_cycle(const ScheduleConfig& s, double lr, std::int64_t number, std::int64_t total) {
  const double x =
      static_cast<double>(number) / static_cast<double>(std::max<std::int64_t>(total - 1, 1));
  if (x < s.peak) return half_cosine(lr / s.start_divisor, lr, x / s.peak);
  return half_cosine(lr, s.min_lr, std::min(1.0, (x - s.peak) / (1 - s.peak)));
}

}  // namespace

double learning_rate(const ScheduleConfig& schedule, double lr, std::int64_t epochs,
                     std::int64_t batches, std::int64_t epoch, std::int64_t batch) {
  using Type = ScheduleConfig::Type;
  if (epoch < schedule.warmup_epochs) {
    const std::int64_t end = schedule.warmup_epochs * batches;
    const double top =
        schedule.type == Type::kOneCycle ? one_cycle(schedule, lr, end, epochs * batches) : lr;
    return top * static_cast<double>(epoch * batches + batch) / static_cast<double>(end);
  }
  switch (schedule.type) {
    case Type::kConstant:
      break;
    case Type::kCosine:
      return half_cosine(lr, schedule.min_lr,
                         static_cast<double>(epoch) / static_cast<double>(epochs));
    case Type::kMultiStep: {
      const auto passed =
          std::upper_bound(schedule.milestones.begin(), schedule.milestones.end(), epoch) -
          schedule.milestones.begin();
      return lr * std::pow(schedule.gamma, static_cast<double>(passed));
    }
    case Type::kOneCycle:
      return one_cycle(schedule, lr, epoch * batches + batch, epochs * batches);
  }
  return lr;
}

double learning_rate(const TrainConfig& config, std::int64_t batches, std::int64_t epoch,
                     std::int64_t batch) {
  const auto scheduled = [&](std::int64_t e, std::int64_t b) {
    return learning_rate(config.schedule, config.optimizer.lr, config.epochs, batches, e, b);
  };
  const MethodConfig& method = config.method;
  const std::int64_t first = method.first_averaged_epoch(config.epochs);
  if (method.type != MethodConfig::Type::kSwa || !method.lr || epoch < first)
    return scheduled(epoch, batch);
  const double progress = method.anneal_epochs == 0
                              ? 1.0
                              : std::min(1.0, static_cast<double>(epoch - first) /
                                                  static_cast<double>(method.anneal_epochs));
  return half_cosine(scheduled(first, 0), *method.lr, progress);
}

}  // namespace weightsmith
