#include "weightsmith/train/swad.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "weightsmith/core/error.h"
#include "weightsmith/train/flat_average.h"

namespace weightsmith {
namespace {

enum SwadCount { kObserved, kFirstWaiting, kWaiting, kAveraged, kStarted, kEnded, kSwadCounts };

}  // namespace

Swad::Swad(ParameterArena& arena, const BaseOptions& options, const SwadOptions& swad)
    : TrainingMethod(arena, options), options_(swad) {
  WS_CHECK(swad.n_s >= 1 && swad.n_e >= 1 && swad.r >= 1 && swad.validate_every >= 1);
  WS_CHECK(arena.heads() == 1);
  const std::int64_t window = std::max(swad.n_s, swad.n_e);
  segments_ = keep("segments", at::zeros({window + 1, arena.width()}, arena.values().options()));
  average_ = keep("average", at::zeros_like(arena.head(0)));
  losses_ = keep("losses", at::zeros({window}, at::kDouble));
  bound_ = keep("bound", at::zeros({1}, at::kDouble));
  counts_ = keep("swad_counts", at::zeros({kSwadCounts}, at::kLong));
  count_ = counts_.data_ptr<std::int64_t>();
}

bool Swad::started() const { return count_[kStarted] != 0; }
bool Swad::ended() const { return count_[kEnded] != 0; }

bool Swad::wants_validation() const {
  return !ended() && steps() / options_.validate_every > count_[kObserved];
}

void Swad::after_step(std::int64_t) {
  if (ended()) return;
  const std::int64_t within = (steps() - 1) % options_.validate_every;
  at::Tensor segment = segments_[(count_[kFirstWaiting] + count_[kWaiting]) % slots()];
  move_towards(segment, arena_.head(0), 1.0 / static_cast<double>(within + 1));
}

void Swad::take_oldest(bool into_average) {
  if (into_average)
    move_towards(average_, segments_[count_[kFirstWaiting]],
                 1.0 / static_cast<double>(++count_[kAveraged]));
  count_[kFirstWaiting] = (count_[kFirstWaiting] + 1) % slots();
  --count_[kWaiting];
}

void Swad::observe_validation(double loss) {
  WS_CHECK(wants_validation());
  auto* losses = losses_.data_ptr<double>();
  const std::int64_t window = losses_.size(0);
  const std::int64_t i = count_[kObserved]++;
  losses[i % window] = loss;
  ++count_[kWaiting];
  const auto latest = [&](std::int64_t size) {
    std::vector<double> values;
    for (std::int64_t j = i - size + 1; j <= i; ++j) values.push_back(losses[j % window]);
    return values;  // oldest first
  };
  if (!started()) {
    while (count_[kWaiting] > options_.n_s) take_oldest(false);
    if (i + 1 < options_.n_s) return;
    const std::vector<double> last = latest(options_.n_s);
    if (last.front() > *std::min_element(last.begin(), last.end())) return;
    count_[kStarted] = 1;
    double sum = 0;
    for (const double value : last) sum += value;
    *bound_.data_ptr<double>() = options_.r * sum / static_cast<double>(options_.n_s);
  } else if (i + 1 >= options_.n_e) {
    const std::vector<double> last = latest(options_.n_e);
    if (*std::min_element(last.begin(), last.end()) > *bound_.data_ptr<double>()) {
      count_[kEnded] = 1;
      while (count_[kWaiting] > options_.n_e) take_oldest(true);
      while (count_[kWaiting] > 0) take_oldest(false);
      return;
    }
  }
  // What lies N_e validations back can be no part of an end any more.
  while (count_[kWaiting] > options_.n_e) take_oldest(true);
}

void Swad::show_result() {
  if (!started()) {
    arena_.show(0);
    return;
  }
  if (!shown_.defined()) shown_ = at::empty_like(average_);
  shown_.copy_(average_);
  std::int64_t averaged = count_[kAveraged];
  for (std::int64_t w = 0; w < count_[kWaiting]; ++w)
    move_towards(shown_, segments_[(count_[kFirstWaiting] + w) % slots()],
                 1.0 / static_cast<double>(++averaged));
  arena_.show_values(shown_);
}

}  // namespace weightsmith
