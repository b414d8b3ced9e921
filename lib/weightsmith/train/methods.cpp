#include "weightsmith/train/methods.h"

#include "weightsmith/core/error.h"
#include "weightsmith/train/ema.h"
#include "weightsmith/train/lookahead.h"
#include "weightsmith/train/lookaround.h"
#include "weightsmith/train/plain_training.h"
#include "weightsmith/train/swa.h"
#include "weightsmith/train/swad.h"

namespace weightsmith {

BaseOptions base_options(const OptimizerConfig& c) {
  if (c.type == OptimizerConfig::Type::kSgd)
    return SgdOptions{c.momentum, c.dampening, c.weight_decay, c.nesterov};
  return AdamOptions{c.beta1, c.beta2, c.epsilon, c.weight_decay,
                     c.type == OptimizerConfig::Type::kAdamW};
}

std::unique_ptr<TrainingMethod> make_method(const TrainConfig& config, ParameterArena& arena,
                                            std::int64_t batches) {
  using Type = MethodConfig::Type;
  const MethodConfig& m = config.method;
  const BaseOptions base = base_options(config.optimizer);
  const std::int64_t views = config.views();
  switch (m.type) {
    case Type::kSgd:
      return std::make_unique<PlainTraining>(arena, base);
    case Type::kLookaround:
      return std::make_unique<Lookaround>(arena, base, m.k);
    case Type::kSwa:
      return std::make_unique<Swa>(
          arena, base, m.first_averaged_epoch(config.epochs) * batches * views, m.every * views);
    case Type::kSwad:
      return std::make_unique<Swad>(
          arena, base, SwadOptions{m.n_s, m.n_e, m.r, m.validate_every.value_or(batches) * views});
    case Type::kLookahead:
      return std::make_unique<Lookahead>(arena, base, m.k, m.alpha, m.slow_from);
    case Type::kEma:
      return std::make_unique<Ema>(arena, base, m.decay);
  }
  WS_CHECK(false, "unknown method");
  return nullptr;
}

}  // namespace weightsmith
