#include "weightsmith/match/unit_stack.h"

#include <algorithm>

#include "weightsmith/core/error.h"

namespace weightsmith {

UnitStack::UnitStack(std::int64_t models, std::int64_t units)
    : UnitStack(std::vector<std::int64_t>(models, units)) {}

UnitStack::UnitStack(const std::vector<std::int64_t>& units) {
  for (const std::int64_t n : units) {
    WS_CHECK(n >= 0);
    offsets_.push_back(offsets_.back() + n);
  }
}

std::int64_t UnitStack::widest() const {
  std::int64_t most = 0;
  for (std::int64_t i = 0; i < models(); ++i) most = std::max(most, units(i));
  return most;
}

bool UnitStack::is_even() const {
  for (std::int64_t i = 1; i < models(); ++i)
    if (units(i) != units(0)) return false;
  return true;
}

std::int64_t UnitStack::model_of(std::int64_t stacked) const {
  WS_CHECK(stacked >= 0 && stacked < size());
  return std::upper_bound(offsets_.begin(), offsets_.end(), stacked) - offsets_.begin() - 1;
}

}  // namespace weightsmith
