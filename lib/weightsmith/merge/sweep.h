#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "weightsmith/eval/evaluation.h"
#include "weightsmith/graph/unit_groups.h"
#include "weightsmith/merge/mudsc.h"

namespace weightsmith {

/// What one balance came to.
struct SweepPoint {
  double balance = 0;
  MatchResult matched;
  SpaceAgreement agreement;
  std::optional<Evaluation> selection;  ///< score on held-out data, where the choice is by labels
};

/// The normalised dual objective of every point, in (-inf, 1]: the mean of the two spaces'
/// agreements, each divided by the largest that the sweep reached, so that the space with the
/// larger similarities does not rule. Needs no labels. A space where nothing agrees (largest value
/// not above 0) is left out.
std::vector<double> dual_objective(const std::vector<SweepPoint>& points);

/// The index of the point to keep: the highest accuracy on the selection data, of equal ones the
/// lowest loss; without such scores the largest dual objective. Of points that are still equal, the
/// first. There must be one point, and either all or none have scores.
std::size_t best_point(const std::vector<SweepPoint>& points);

/// A finished point as a file that `matching` takes as well (networks.h), with its figures in the
/// metadata. `key`: what the point depends on (eval/fingerprint.h). Atomic.
void write_sweep_point(const std::filesystem::path& path, const UnitGroups& groups,
                       const SweepPoint& point, const std::string& key);

/// A point that was stored under the same key; nothing when the file is missing, damaged or of
/// another key.
std::optional<SweepPoint> read_sweep_point(const std::filesystem::path& path,
                                           const UnitGroups& groups, std::int64_t models,
                                           const std::string& key);

}  // namespace weightsmith
