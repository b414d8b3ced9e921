#pragma once

#include <cstdint>
#include <vector>

#include "weightsmith/core/progress.h"
#include "weightsmith/graph/unit_groups.h"
#include "weightsmith/match/matching.h"
#include "weightsmith/model/script_model.h"

namespace weightsmith {

/// Finds how many units each group has in each of several models of one graph whose layers may
/// differ in width, from the shapes of their tensors, and sets UnitGroup::widths of the groups in
/// which they differ. `groups` are those of the first model. Returns whether there is such a group.
/// Throws Error{kInput} naming the model and a tensor whose shape no numbers of units explain, or a
/// group whose number of units cannot change: a group of blocks that others are within, units in
/// blocks, and units that do not stand side by side.
bool find_widths(UnitGroups& groups, const std::vector<ScriptModel>& models);

/// The groups of a network in which group g has units[g] units: every stretch as long as its units,
/// and behind those before it.
UnitGroups resized_groups(const UnitGroups& groups, const std::vector<std::int64_t>& units);

/// Those of one of the models.
UnitGroups groups_of_model(const UnitGroups& groups, std::int64_t model);

/// The units that groups have after a merge, and after a zip that merges away the share `reduce`.
/// zipped_units throws Error{kConfig} naming zip.reduce, the smallest group and the largest share
/// that leaves it a unit (a block) when `reduce` leaves none.
std::vector<std::int64_t> merged_units(const std::vector<Matching>& matchings);
std::vector<std::int64_t> zipped_units(const UnitGroups& groups, std::int64_t models,
                                       double reduce);

/// Whether some group would have other units than in the first model. Throws Error{kInput} naming a
/// group whose number cannot change (see find_widths).
bool changes_width(const UnitGroups& groups, const std::vector<std::int64_t>& units);

/// A network of other widths runs only if its graph has none of them built in, as traced ones often
/// have: runs `merged` beside `original`, compares the shapes of their outputs, and proves the
/// groups of `merged`, if any are given (verify_unit_groups). Without inputs nothing is tried.
/// Throws Error{kInput} saying what went wrong.
void try_other_widths(const ScriptModel& merged, const ScriptModel& original,
                      const UnitGroups& groups, const std::vector<c10::IValue>& inputs,
                      Progress& progress);

}  // namespace weightsmith
