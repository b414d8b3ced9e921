#include "weightsmith/match/matching.h"

#include <spdlog/fmt/fmt.h>

#include <cmath>
#include <numeric>
#include <utility>

#include "weightsmith/core/error.h"

namespace weightsmith {

std::vector<std::int32_t> Matching::unit_of(std::int64_t model) const {
  WS_CHECK(model >= 0 && model < models && slots == units);
  std::vector<std::int32_t> units_of_slots(slots, -1);
  for (std::int64_t k = 0; k < units; ++k) {
    std::int32_t& unit = units_of_slots[slot[model * units + k]];
    WS_CHECK(unit < 0, "two units of one model share a slot");
    unit = static_cast<std::int32_t>(k);
  }
  return units_of_slots;
}

bool Matching::is_permutation() const {
  if (slots != units) return false;
  std::vector<bool> taken(models * slots, false);
  for (std::int64_t u = 0; u < models * units; ++u) {
    const std::int64_t place = u / units * slots + slot[u];
    if (taken[place]) return false;
    taken[place] = true;
  }
  return true;
}

Matching identity_matching(std::int64_t models, std::int64_t units) {
  WS_CHECK(models >= 1 && units >= 0);
  Matching matching{models, units, units, {}, {}, 0.0};
  matching.slot.resize(models * units);
  for (std::int64_t i = 0; i < models; ++i)
    std::iota(matching.slot.begin() + i * units, matching.slot.begin() + (i + 1) * units, 0);
  matching.count.assign(units, static_cast<std::int32_t>(models));
  return matching;
}

Matching make_matching(std::int64_t models, std::int64_t units, std::int64_t slots,
                       std::vector<std::int32_t> slot, double value) {
  Matching matching{models, units, slots, std::move(slot), {}, value};
  WS_CHECK(static_cast<std::int64_t>(matching.slot.size()) == models * units);
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
  const std::int64_t stacked = matching.models * matching.units;
  if (matching.models < 1 || matching.units < 0 || matching.slots < 0 || matching.slots > stacked)
    fail(fmt::format("{} models of {} units in {} slots", matching.models, matching.units,
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
