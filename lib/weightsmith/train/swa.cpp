#include "weightsmith/train/swa.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "weightsmith/core/error.h"
#include "weightsmith/train/flat_average.h"

namespace weightsmith {

Swa::Swa(ParameterArena& arena, const BaseOptions& options, std::int64_t first, std::int64_t every)
    : TrainingMethod(arena, options), first_(first), every_(every) {
  WS_CHECK(first >= 0 && every >= 1 && arena.heads() == 1);
  average_ = keep("average", at::zeros_like(arena.head(0)));
}

std::int64_t Swa::averaged() const { return std::max<std::int64_t>(steps() - first_, 0) / every_; }

void Swa::after_step(std::int64_t) {
  if (steps() <= first_ || (steps() - first_) % every_ != 0) return;
  move_towards(average_, arena_.head(0), 1.0 / static_cast<double>(averaged()));
}

void Swa::show_result() {
  if (averaged() > 0) {
    arena_.show_values(average_);
  } else {
    arena_.show(0);
  }
}

}  // namespace weightsmith
