#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "weightsmith/graph/unit_groups.h"
#include "weightsmith/match/matching.h"

namespace weightsmith {

/// Where the positions of one axis of a model's parameter go in the merged one.
struct AxisMap {
  /// Every position stays.
  explicit AxisMap(std::int64_t positions);

  /// Moves the units of one stretch on to their slots, as spread_units does (merge/transform.h);
  /// stretches that lie further behind go first. `factors`: of each slot, empty for 1.
  void spread(const GroupMember& member, const Matching& matching, std::int64_t model,
              const std::vector<double>& factors);

  bool is_identity() const;

  std::int64_t length = 0;           ///< of the merged axis
  std::vector<std::int32_t> target;  ///< of each position, in [0, length)
  std::vector<double> factor;        ///< what its elements are multiplied by; empty: 1
};

/// Sum over models of `weights[i]` times tensor i with its first two axes spread, divided by
/// `divisor`, in one pass that reads and writes every value once. Tensors: (rows, columns, …), or
/// (rows) with columns of length 1; on the CPU, all float32 or all float64; equal in the axes
/// behind the second one. Rows are shared among the threads, and sums over models are formed in
/// one order whatever their number.
at::Tensor blend(const std::vector<at::Tensor>& tensors, const std::vector<AxisMap>& rows,
                 const std::vector<AxisMap>& columns, const std::vector<double>& weights,
                 double divisor);

}  // namespace weightsmith
