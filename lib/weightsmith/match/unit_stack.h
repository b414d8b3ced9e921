#pragma once

#include <cstdint>
#include <vector>

namespace weightsmith {

/// The hidden units of N models, stacked: model i's unit k is stacked unit offset(i) + k. Models
/// may have different numbers of them.
class UnitStack {
 public:
  UnitStack() = default;
  /// `units` of every model.
  UnitStack(std::int64_t models, std::int64_t units);
  /// units[i] of model i.
  explicit UnitStack(const std::vector<std::int64_t>& units);

  std::int64_t models() const { return static_cast<std::int64_t>(offsets_.size()) - 1; }
  std::int64_t units(std::int64_t model) const { return offsets_[model + 1] - offsets_[model]; }
  /// The first stacked unit of a model; of `models()`, the number of all units.
  std::int64_t offset(std::int64_t model) const { return offsets_[model]; }
  std::int64_t size() const { return offsets_.back(); }
  std::int64_t widest() const;
  /// Whether all models have as many units.
  bool is_even() const;
  std::int64_t model_of(std::int64_t stacked) const;

  bool operator==(const UnitStack&) const = default;

 private:
  std::vector<std::int64_t> offsets_ = {0};  // models + 1
};

}  // namespace weightsmith
