#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "weightsmith/core/progress.h"
#include "weightsmith/graph/unit_groups.h"
#include "weightsmith/match/similarity.h"

namespace weightsmith {

/// Similarities of earlier runs, kept in a folder as one safetensors file a key:
/// `activations-<the key's first 16 digits>.safetensors` with `similarity/<group>`.
class StatisticsCache {
 public:
  /// An empty folder turns it off. `key`: what the similarities depend on (eval/fingerprint.h).
  StatisticsCache(std::filesystem::path folder, std::string key);

  /// The similarities stored under the key; nothing when there are none. A file that is damaged, or
  /// not what its name says, is reported to `progress` and counts as none.
  std::optional<std::vector<PackedSimilarity>> load(const UnitGroups& groups,
                                                    Similarity::Scope scope, std::int64_t models,
                                                    Progress& progress) const;
  /// Throws Error{kOutput}.
  void store(const UnitGroups& groups, const std::vector<PackedSimilarity>& similarities) const;

 private:
  std::filesystem::path file() const;

  std::filesystem::path folder_;
  std::string key_;
};

}  // namespace weightsmith
