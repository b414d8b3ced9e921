#include "weightsmith/train/lookaround.h"

#include "weightsmith/core/error.h"

namespace weightsmith {

Lookaround::Lookaround(ParameterArena& arena, const BaseOptions& options, std::int64_t k)
    : TrainingMethod(arena, options), k_(k) {
  WS_CHECK(k >= 1);
}

void Lookaround::after_step(std::int64_t) {
  if (arena_.heads() > 1 && just_averaged()) arena_.average();
}

void Lookaround::show_result() {
  // Right after an average every head is the mean; taking it again would only round it.
  if (arena_.heads() == 1 || just_averaged()) {
    arena_.show(0);
  } else {
    arena_.show_mean();
  }
}

}  // namespace weightsmith
