#pragma once

#include <ATen/core/ivalue.h>

#include <cstdint>
#include <string>
#include <vector>

#include "weightsmith/core/progress.h"
#include "weightsmith/graph/unit_groups.h"
#include "weightsmith/model/script_model.h"

namespace weightsmith {

struct ProofOptions {
  /// Also each group by itself: one forward a group. Else all together: two forwards and a control.
  bool each_group = true;
  std::uint64_t seed = 0;
  double tolerance = 1e-10;  ///< largest relative change that counts as none, in float64
};

/// What permuting units did to the outputs: max |change| / max |output|, the worst over all
/// outputs.
struct GroupProof {
  double max_relative_change = 0.0;
  /// The same when one parameter axis is left out of a permutation: far above the tolerance, or the
  /// proof could not have noticed a missing axis.
  double negative_control = 0.0;
  /// No axis that was left out mattered, as where outputs are sums over the units: the control is
  /// the change when the values of a parameter are disturbed.
  bool control_is_disturbance = false;
  std::vector<std::string> failed;  ///< names of groups that change the outputs
  /// Outputs that are integers, booleans or made of such, with no floating tensor that decides them
  /// to compare in their stead: few values, which many a wrong group leaves as they are.
  std::int64_t weak_outputs = 0;
  std::string precision = "float64";
  double tolerance = 0.0;

  /// What to tell people when weak_outputs > 0.
  std::string weakness() const;
  bool holds() const { return failed.empty() && negative_control > tolerance; }
};

/// Permutes the units of every group at random in a copy of the network, with all its parameters
/// and statistics (not its constants) changed at random first (a bias of zero or a scale of one
/// would hide a missing axis), and compares the outputs for `inputs`; beside an output that is made
/// of integers or booleans (argmax, the places of topk, a threshold) also the floating tensors that
/// decided it, as sorted values, since units may stand in them. Everything is computed in float64;
/// a network that insists on its own type is tried in that one, with tolerance 1e-4. When all
/// groups together change the outputs but none does alone, groups are added one after another, and
/// those that do not go with the ones before them are named: what is left holds together. Throws
/// Error{kInput} as GraphRunner::run, and when the network is not deterministic; Error{kNumeric}
/// when its outputs are not finite.
GroupProof prove_unit_groups(const ScriptModel& model, const UnitGroups& groups,
                             const std::vector<c10::IValue>& inputs, const ProofOptions& options,
                             Progress& progress);

}  // namespace weightsmith
