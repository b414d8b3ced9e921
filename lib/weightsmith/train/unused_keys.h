#pragma once

#include <string>
#include <vector>

#include "weightsmith/train/train_config.h"

namespace weightsmith {

/// One warning for each key of `method`, `optimizer`, `schedule` and the entries of `compare` that
/// the configuration was given (MethodConfig::given) and that has no effect, because it belongs to
/// other types than the chosen one: the key, the types that use it, and what to do. Of a
/// comparison, a key of `method` is unused when none of the compared methods uses it. SWA's
/// `anneal_epochs` has none either where there is no `lr` to anneal to.
///
/// A section that spells out every key, as config.json and --print-config do, is not warned of keys
/// that have their defaults.
std::vector<std::string> unused_key_warnings(const TrainConfig& config);

}  // namespace weightsmith
