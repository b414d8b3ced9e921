#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "weightsmith/match/unit_stack.h"

namespace weightsmith {

/// Which hidden units of N networks become one, of O in all. The paper's merge and unmerge matrices
/// ({0, 1}^{O x slots}, scaled) are never formed: the slot of every unit and the number of units in
/// every slot say the same in O + slots integers.
struct Matching {
  UnitStack stack;                  ///< the units of all models
  std::int64_t slots = 0;           ///< merged units
  std::vector<std::int32_t> slot;   ///< (O): the slot of stacked unit u, in [0, slots)
  std::vector<std::int32_t> count;  ///< (slots): units in a slot, at least 1
  double value = 0.0;               ///< mean similarity of what was matched

  /// The unit of `model` that goes to each slot, where every slot holds one unit of every model
  /// (align): unit_of(i)[r] = pi(r). Throws Error{kInternal} for another kind of matching.
  std::vector<std::int32_t> unit_of(std::int64_t model) const;

  /// Whether every slot holds exactly one unit of every model.
  bool is_permutation() const;

  /// The slots of a model's units.
  const std::int32_t* slots_of(std::int64_t model) const {
    return slot.data() + stack.offset(model);
  }

  bool operator==(const Matching&) const = default;
};

/// Unit k of every model goes to slot k: the plain average. Value 0.
Matching identity_matching(std::int64_t models, std::int64_t units);

/// Counts the units of every slot. `slot` holds a slot in [0, slots) for every stacked unit; each
/// is used.
Matching make_matching(const UnitStack& stack, std::int64_t slots, std::vector<std::int32_t> slot,
                       double value);

/// Checks a matching that came from outside: sizes agree, every slot lies in range, no slot is
/// empty, counts are right, the value is finite. Throws Error{kInput} naming `where`.
void check_matching(const Matching& matching, std::string_view where);

}  // namespace weightsmith
