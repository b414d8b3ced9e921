#pragma once

#include <ATen/core/ivalue.h>
#include <torch/csrc/jit/api/module.h>

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "weightsmith/graph/unit_groups.h"
#include "weightsmith/model/script_model.h"

namespace weightsmith {

/// Hidden units that have something in common: why they cannot move, and where that arose.
struct UnitRemark {
  std::string reason;
  std::string where;  ///< the operator and its module: "layer1.0: aten::cumsum"
  std::int64_t units = 0;
};

struct GroupDerivation {
  UnitGroups groups;
  std::vector<std::int64_t> hidden;  ///< a group: how many hidden units it moves
  /// Hidden units: produced by one layer and read by another; inputs and outputs are none.
  std::int64_t free_units = 0;
  std::int64_t pinned_units = 0;
  std::int64_t output_units = 0;   ///< the network's outputs, which nobody may reorder
  std::vector<UnitRemark> pinned;  ///< why pinned_units are
  std::vector<UnitRemark> rigid;   ///< free units that move only with their whole block
};

/// Works out which parameter axes share one permutation of hidden units, from a network's graph
/// run once on `inputs` (the arguments of forward; a batch of at least 2, since a batch of 1 hides
/// where batch and heads are merged). Every tensor carries labels along its dimensions
/// (graph/labels.h); every operator unites them, moves them, or tells them apart by a rule of its
/// own (graph/operator_rules.h); what no rule covers is pinned, never guessed. What can be
/// exchanged in the end is a group. After Git Re-Basin (Ainsworth et al., ICLR 2023, section 3),
/// where such groups are written by hand; the time is about that of one forward.
///
/// A buffer that is no statistic of a norm and has no name that training writes to
/// (is_trained_buffer) is a constant of the architecture, and tells apart the units along which it
/// differs (a slope for each head), unless `moving` has its name: then it moves with its units like
/// a parameter.
///
/// Groups stand in the order in which the network first uses their parameters, and are named after
/// the first one's module; members in the order of use. A group's tap is what its last consumer
/// reads. Throws Error{kInput} as GraphRunner.
GroupDerivation derive_unit_groups(const torch::jit::Module& module, const std::string& where,
                                   const std::vector<c10::IValue>& inputs,
                                   const std::set<std::string>& moving = {});

/// The names of floating buffers that do not hold the same values in every model: trained, and so
/// to be moved with the units.
std::set<std::string> differing_buffers(const std::vector<const ScriptModel*>& models);

}  // namespace weightsmith
