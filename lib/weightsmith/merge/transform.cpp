#include "weightsmith/merge/transform.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "weightsmith/core/error.h"

namespace weightsmith {
namespace {

bool is_identity(const Matching& matching, std::int64_t model) {
  if (matching.slots != matching.units) return false;
  const auto first = matching.slot.begin() + model * matching.units;
  for (std::int64_t u = 0; u < matching.units; ++u)
    if (first[u] != u) return false;
  return true;
}

/// Which unit each slot takes, when the units of one model fill every slot exactly once.
std::optional<at::Tensor> inverse_permutation(const std::int32_t* slot, std::int64_t units,
                                              std::int64_t slots) {
  if (slots != units) return std::nullopt;
  at::Tensor inverse = at::full({slots}, -1, at::kLong);
  auto* unit_of = inverse.data_ptr<std::int64_t>();
  for (std::int64_t u = 0; u < units; ++u) {
    if (unit_of[slot[u]] >= 0) return std::nullopt;
    unit_of[slot[u]] = u;
  }
  return inverse;
}

/// 1 / the summed shares of every slot's units; 0 where they are all 0.
std::vector<double> slot_factors(const Matching& matching, const ModelShares& shares) {
  std::vector<double> mass(matching.slots, 0.0);
  for (std::int64_t s = 0; s < matching.slots; ++s)
    mass[s] = static_cast<double>(matching.count[s]) / static_cast<double>(matching.models);
  if (!shares.empty()) {
    std::fill(mass.begin(), mass.end(), 0.0);
    for (std::int64_t u = 0; u < matching.models * matching.units; ++u)
      mass[matching.slot[u]] += shares[u / matching.units];
  }
  for (double& m : mass) m = m == 0 ? 0 : 1 / m;
  return mass;
}

/// Shares are normalised, so a slot with one unit of every model sums to 1 up to rounding.
bool is_one(double factor) { return std::abs(factor - 1) < 1e-12; }

}  // namespace

ParameterUses parameter_uses(const UnitGroups& groups) {
  ParameterUses uses;
  for (std::size_t g = 0; g < groups.groups.size(); ++g)
    for (std::size_t m = 0; m < groups.groups[g].members.size(); ++m)
      uses[groups.groups[g].members[m].parameter].push_back({g, m});
  const auto offset = [&](const AxisUse& use) {
    return groups.groups[use.group].members[use.member].offset;
  };
  for (auto& [name, list] : uses)
    std::stable_sort(list.begin(), list.end(),
                     [&](const AxisUse& a, const AxisUse& b) { return offset(a) > offset(b); });
  return uses;
}

at::Tensor spread_units(const at::Tensor& tensor, const GroupMember& member,
                        const Matching& matching, std::int64_t model, SlotWeight weight,
                        const ModelShares& shares) {
  std::vector<double> factors;
  if (weight == SlotWeight::kAverage) factors = slot_factors(matching, shares);
  const bool weighted = !std::all_of(factors.begin(), factors.end(), is_one);
  if (is_identity(matching, model) && !weighted) return tensor;

  const std::int64_t units = matching.units;
  const std::int64_t per_unit = member.length / units;
  const at::Tensor stretch = tensor.narrow(member.axis, member.offset, member.length);
  // Unit axis first, each unit's elements side by side: (units, k, rest).
  const at::Tensor rows = stretch.movedim(member.axis, 0).reshape({units, per_unit, -1});
  const std::int32_t* slot = matching.slot.data() + model * units;
  const auto placed_back = [&](const at::Tensor& moved) {
    std::vector<std::int64_t> shape = stretch.movedim(member.axis, 0).sizes().vec();
    shape[0] = moved.size(0) * per_unit;
    const at::Tensor placed = moved.reshape(shape).movedim(0, member.axis);
    const std::int64_t end = member.offset + member.length;
    const std::int64_t size = tensor.size(member.axis);
    if (member.offset == 0 && end == size) return placed;
    return at::cat({tensor.narrow(member.axis, 0, member.offset), placed,
                    tensor.narrow(member.axis, end, size - end)},
                   member.axis);
  };
  // A permutation is a gather, which writes every element once; the rest are scatter-adds.
  if (const auto inverse = inverse_permutation(slot, units, matching.slots); inverse && !weighted)
    return placed_back(rows.index_select(0, inverse->to(tensor.device())));

  at::Tensor index = at::empty({units}, at::kLong);
  std::copy(slot, slot + units, index.data_ptr<std::int64_t>());
  index = index.to(tensor.device());
  at::Tensor source = rows;
  if (weighted) {
    at::Tensor factor = at::empty({units, 1, 1}, at::kDouble);
    for (std::int64_t u = 0; u < units; ++u) factor.data_ptr<double>()[u] = factors[slot[u]];
    source = rows * factor.to(tensor.device(), tensor.scalar_type());
  }
  at::Tensor spread = at::zeros({matching.slots, per_unit, rows.size(2)}, rows.options());
  spread.index_add_(0, index, source);

  return placed_back(spread);
}

at::Tensor merge_parameter(const std::vector<at::Tensor>& tensors, const std::vector<AxisUse>& uses,
                           const UnitGroups& groups, const std::vector<Matching>& matchings,
                           const ModelShares& shares) {
  WS_CHECK(shares.empty() || shares.size() == tensors.size());
  const at::NoGradGuard no_grad;
  const at::Tensor& first = tensors.front();
  if (!first.is_floating_point()) return first.clone();
  const auto accumulate_type = first.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  at::Tensor sum;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    at::Tensor spread = tensors[i].detach().to(accumulate_type);
    for (const AxisUse& use : uses) {
      const GroupMember& member = groups.groups[use.group].members[use.member];
      spread = spread_units(
          spread, member, matchings[use.group], static_cast<std::int64_t>(i),
          member.role == MemberRole::kIn ? SlotWeight::kOne : SlotWeight::kAverage, shares);
    }
    if (!shares.empty()) spread = spread * shares[i];
    sum = sum.defined() ? sum + spread : spread;
  }
  if (shares.empty()) sum = sum / static_cast<double>(tensors.size());
  return sum.to(first.scalar_type()).contiguous();
}

TensorMap merge_states(const std::vector<TensorMap>& states, const UnitGroups& groups,
                       const std::vector<Matching>& matchings, const ModelShares& shares) {
  WS_CHECK(!states.empty() && matchings.size() == groups.groups.size());
  const ParameterUses uses = parameter_uses(groups);
  TensorMap merged;
  for (const auto& [name, tensor] : states.front()) {
    std::vector<at::Tensor> tensors;
    for (const TensorMap& state : states) tensors.push_back(state.at(name));
    const auto use = uses.find(name);
    merged[name] =
        merge_parameter(tensors, use == uses.end() ? std::vector<AxisUse>{} : use->second, groups,
                        matchings, shares);
  }
  return merged;
}

TensorMap reordered_state(const TensorMap& state, const UnitGroups& groups,
                          const std::vector<Matching>& matchings, std::int64_t model) {
  const at::NoGradGuard no_grad;
  const ParameterUses uses = parameter_uses(groups);
  TensorMap reordered;
  for (const auto& [name, tensor] : state) {
    at::Tensor moved = tensor.detach();
    if (const auto use = uses.find(name); use != uses.end())
      for (const AxisUse& u : use->second)
        moved = spread_units(moved, groups.groups[u.group].members[u.member], matchings[u.group],
                             model, SlotWeight::kOne);
    reordered[name] = moved;
  }
  return reordered;
}

}  // namespace weightsmith
