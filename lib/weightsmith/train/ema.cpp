#include "weightsmith/train/ema.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "weightsmith/core/error.h"
#include "weightsmith/train/flat_average.h"

namespace weightsmith {

Ema::Ema(ParameterArena& arena, const BaseOptions& options, double decay)
    : TrainingMethod(arena, options), decay_(decay) {
  WS_CHECK(decay >= 0 && decay < 1 && arena.heads() == 1);
  average_ = keep("average", arena.head(0).clone());
}

void Ema::after_step(std::int64_t) {
  move_towards(average_, arena_.head(0), std::max(1 - decay_, 1.0 / static_cast<double>(steps())));
}

}  // namespace weightsmith
