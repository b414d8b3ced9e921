#include "weightsmith/train/lookahead.h"

#include <ATen/ATen.h>

#include "weightsmith/core/error.h"
#include "weightsmith/train/flat_average.h"

namespace weightsmith {

EnumNames<SlowFrom> enum_names(SlowFrom) {
  return {{SlowFrom::kStart, "start"}, {SlowFrom::kFirstStep, "first_step"}};
}

Lookahead::Lookahead(ParameterArena& arena, const BaseOptions& options, std::int64_t k,
                     double alpha, SlowFrom from)
    : TrainingMethod(arena, options), k_(k), alpha_(alpha), from_(from) {
  WS_CHECK(k >= 1 && arena.heads() == 1);
  slow_ = keep("slow", arena.head(0).clone());
}

void Lookahead::after_step(std::int64_t) {
  at::Tensor fast = arena_.head(0);
  const std::int64_t counted = from_ == SlowFrom::kStart ? steps() : steps() - 1;
  if (counted == 0) {
    slow_.copy_(fast);
  } else if (counted % k_ == 0) {
    pull_together(slow_, fast, alpha_);
  }
}

}  // namespace weightsmith
