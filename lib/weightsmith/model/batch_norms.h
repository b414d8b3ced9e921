#pragma once

#include <cstdint>

#include "weightsmith/model/flat_graph.h"

namespace weightsmith {

/// The uses of batch norms with running statistics in a network.
struct BatchNormUses {
  std::int64_t all = 0;
  /// Those that normalise by the running statistics whatever Module::train says, as in a network
  /// that was traced in eval mode: training neither uses the batch's statistics nor moves these.
  std::int64_t frozen = 0;
};
BatchNormUses batch_norm_uses(const FlatGraph& graph);

}  // namespace weightsmith
