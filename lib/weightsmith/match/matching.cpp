#include "weightsmith/match/matching.h"

#include <spdlog/fmt/fmt.h>

#include <cmath>
#include <numeric>
#include <utility>

#include "weightsmith/core/error.h"

namespace weightsmith {

std::vector<std::int32_t> Matching::unit_of(std::int64_t model) const {
  WS_CHECK(model >= 0 && model < stack.models() && slots == stack.units(model));
  std::vector<std::int32_t> units_of_slots(slots, -1);
  for (std::int64_t k = 0; k < slots; ++k) {
    std::int32_t& unit = units_of_slots[slots_of(model)[k]];
    WS_CHECK(unit < 0, "two units of one model share a slot");
    unit = static_cast<std::int32_t>(k);
  }
  return units_of_slots;
}

bool Matching::is_permutation() const {
  std::vector<bool> taken;
  for (std::int64_t i = 0; i < stack.models(); ++i) {
    if (stack.units(i) != slots) return false;
    taken.assign(slots, false);
    for (std::int64_t k = 0; k < slots; ++k) {
      const std::int32_t place = slots_of(i)[k];
      if (taken[place]) return false;
      taken[place] = true;
    }
  }
  return true;
}

Matching identity_matching(std::int64_t models, std::int64_t units) {
  WS_CHECK(models >= 1 && units >= 0);
  Matching matching{{models, units}, units, {}, {}, 0.0};
  matching.slot.resize(models * units);
  for (std::int64_t i = 0; i < models; ++i)
    std::iota(matching.slot.begin() + i * units, matching.slot.begin() + (i + 1) * units, 0);
  matching.count.assign(units, static_cast<std::int32_t>(models));
  return matching;
}

Matching make_matching(const UnitStack& stack, std::int64_t slots, std::vector<std::int32_t> slot,
                       double value) {
  Matching matching{stack, slots, std::move(slot), {}, value};
  WS_CHECK(static_cast<std::int64_t>(matching.slot.size()) == stack.size());
  matching.count.assign(slots, 0);
  for (const std::int32_t s : matching.slot) {
    WS_CHECK(s >= 0 && s < slots);
    ++matching.count[s];
  }
  for (const std::int32_t c : matching.count) WS_CHECK(c > 0, "an empty slot");
  return matching;
}

void check_matching(const Matching& matching, std::string_view where) {
  const auto fail = [&](const std::string& what) {
    throw Error(ErrorKind::kInput, where, what, "the matching is damaged or of other models");
  };
  const std::int64_t stacked = matching.stack.size();
  if (matching.stack.models() < 1 || matching.slots < 0 || matching.slots > stacked)
    fail(fmt::format("{} units of {} models in {} slots", stacked, matching.stack.models(),
                     matching.slots));
  if (static_cast<std::int64_t>(matching.slot.size()) != stacked ||
      static_cast<std::int64_t>(matching.count.size()) != matching.slots)
    fail(fmt::format("{} slot entries and {} counts, expected {} and {}", matching.slot.size(),
                     matching.count.size(), stacked, matching.slots));
  std::vector<std::int32_t> count(matching.slots, 0);
  for (std::int64_t u = 0; u < stacked; ++u) {
    const std::int32_t s = matching.slot[u];
    if (s < 0 || s >= matching.slots)
      fail(fmt::format("stacked unit {} has slot {}, expected 0 to {}", u, s, matching.slots - 1));
    ++count[s];
  }
  for (std::int64_t s = 0; s < matching.slots; ++s)
    if (count[s] == 0) fail(fmt::format("slot {} is empty", s));
  for (std::int64_t s = 0; s < matching.slots; ++s) {
    if (count[s] != matching.count[s])
      fail(
          fmt::format("slot {} holds {} units, its count says {}", s, count[s], matching.count[s]));
  }
  if (!std::isfinite(matching.value)) fail(fmt::format("its value is {}", matching.value));
}

}  // namespace weightsmith
