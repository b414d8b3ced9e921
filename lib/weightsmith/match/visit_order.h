#pragma once

#include <ATen/core/Generator.h>

#include <cstdint>
#include <vector>

namespace weightsmith {

/// The order in which successive sweeps visit the groups: torch.randperm of one CPU generator
/// seeded once for the whole run, which LibTorch and Python draw alike.
class VisitOrder {
 public:
  explicit VisitOrder(std::int64_t groups, std::uint64_t seed = 0);

  /// The next sweep's permutation of 0 ... groups - 1.
  std::vector<std::int64_t> next();

 private:
  std::int64_t groups_;
  at::Generator generator_;
};

}  // namespace weightsmith
