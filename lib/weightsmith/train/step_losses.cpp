#include "weightsmith/train/step_losses.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <cmath>
#include <utility>

#include "weightsmith/core/error.h"
#include "weightsmith/model/jit_runtime.h"

namespace weightsmith {

StepLosses::StepLosses(std::int64_t together, std::string where)
    : together_(static_cast<std::size_t>(together)), where_(std::move(where)) {
  WS_CHECK(together >= 1);
}

void StepLosses::begin(std::string at) {
  steps_.push_back(std::move(at));
  sums_.push_back(0);
}

void StepLosses::add(const at::Tensor& mean, double share) {
  WS_CHECK(!steps_.empty());
  const std::size_t step = steps_.size() - 1;
  if (together_ == 1) {
    sums_[step] += share * checked(mean.item<double>(), step);
    return;
  }
  parts_.push_back({share, step});
  means_.push_back(mean.detach());
}

std::vector<double> StepLosses::take(bool all) {
  if (steps_.empty() || (!all && steps_.size() < together_)) return {};
  if (!means_.empty()) {
    const at::Tensor read = read_means();
    const double* const value = read.data_ptr<double>();
    for (std::size_t p = 0; p < parts_.size(); ++p)
      sums_[parts_[p].step] += parts_[p].share * checked(value[p], parts_[p].step);
  }
  means_.clear();
  parts_.clear();
  steps_.clear();
  return std::exchange(sums_, {});
}

/// On the CPU. Here it shows what failed on the device since the last reading.
at::Tensor StepLosses::read_means() const {
  try {
    return at::stack(means_).to(at::kCPU, at::kDouble);
  } catch (...) {
    throw_jit_error(
        ErrorKind::kInput, where_,
        fmt::format("a training step failed between {} and {}", steps_.front(), steps_.back()),
        "lower batch_size where memory ran out");
  }
}

double StepLosses::checked(double value, std::size_t step) const {
  if (std::isfinite(value)) return value;
  throw Error(ErrorKind::kNumeric, where_, fmt::format("the loss is {} at {}", value, steps_[step]),
              "lower optimizer.lr or lengthen schedule.warmup_epochs; earlier checkpoints were "
              "kept");
}

}  // namespace weightsmith
