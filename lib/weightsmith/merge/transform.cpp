#include "weightsmith/merge/transform.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "weightsmith/core/error.h"
#include "weightsmith/core/threads.h"
#include "weightsmith/merge/blend.h"

namespace weightsmith {
namespace {

bool is_identity(const Matching& matching, std::int64_t model) {
  if (matching.slots != matching.stack.units(model)) return false;
  for (std::int64_t u = 0; u < matching.slots; ++u)
    if (matching.slots_of(model)[u] != u) return false;
  return true;
}

/// Which unit each slot takes, when the units of one model fill every slot exactly once.
std::optional<std::vector<std::int64_t>> inverse_permutation(const std::int32_t* slot,
                                                             std::int64_t units,
                                                             std::int64_t slots) {
  if (slots != units) return std::nullopt;
  std::vector<std::int64_t> unit_of(slots, -1);
  for (std::int64_t u = 0; u < units; ++u) {
    if (unit_of[slot[u]] >= 0) return std::nullopt;
    unit_of[slot[u]] = u;
  }
  return unit_of;
}

/// 1 / the summed shares of every slot's units; 0 where they are all 0.
std::vector<double> slot_factors(const Matching& matching, const ModelShares& shares) {
  std::vector<double> mass(matching.slots, 0.0);
  for (std::int64_t s = 0; s < matching.slots; ++s)
    mass[s] = static_cast<double>(matching.count[s]) / static_cast<double>(matching.stack.models());
  if (!shares.empty()) {
    std::fill(mass.begin(), mass.end(), 0.0);
    for (std::int64_t i = 0; i < matching.stack.models(); ++i)
      for (std::int64_t u = 0; u < matching.stack.units(i); ++u)
        mass[matching.slots_of(i)[u]] += shares[i];
  }
  for (double& m : mass) m = m == 0 ? 0 : 1 / m;
  return mass;
}

/// The positions of units · k elements along an axis (units' elements side by side).
at::Tensor positions_of(const GroupMember& member) {
  return member.index.empty() ? at::arange(member.offset, member.offset + member.length, at::kLong)
                              : at::tensor(member.index, at::kLong);
}

/// The axis first and the rest flattened: (positions, rest). For the second axis of a grouped
/// convolution, positions of its input: the axis of every group, one after another.
at::Tensor axis_first(const at::Tensor& tensor, const GroupMember& member) {
  if (member.groups == 1)
    return tensor.movedim(member.axis, 0).reshape({tensor.size(member.axis), -1});
  return tensor.unflatten(0, std::vector<std::int64_t>{member.groups, -1})
      .movedim(2, 1)
      .flatten(2)
      .flatten(0, 1);
}

/// The inverse of axis_first, for a tensor shaped as `like`.
at::Tensor axis_back(const at::Tensor& rows, const at::Tensor& like, const GroupMember& member) {
  if (member.groups == 1)
    return rows.reshape(like.movedim(member.axis, 0).sizes()).movedim(0, member.axis);
  return rows
      .reshape(
          like.unflatten(0, std::vector<std::int64_t>{member.groups, -1}).movedim(2, 1).sizes())
      .movedim(1, 2)
      .flatten(0, 1);
}

/// spread_units where units do not stand one after another, or keep to stretches of `period`
/// positions, of which only the place inside changes. The width stays.
at::Tensor spread_in_place(const at::Tensor& tensor, const GroupMember& member,
                           const Matching& matching, std::int64_t model,
                           const std::vector<double>& factors, std::int64_t period) {
  const std::int64_t units = matching.stack.units(model);
  WS_CHECK(matching.slots == units, member.parameter);
  const std::int32_t* slot = matching.slots_of(model);
  const std::int64_t k = member.length / units;
  const at::Tensor from = positions_of(member);
  const auto* position = from.data_ptr<std::int64_t>();
  at::Tensor to = at::empty_like(from);
  at::Tensor factor = at::ones({from.numel(), 1}, at::kDouble);
  for (std::int64_t u = 0; u < units; ++u)
    for (std::int64_t j = 0; j < k; ++j) {
      const std::int64_t place = position[slot[u] * k + j];
      to.data_ptr<std::int64_t>()[u * k + j] =
          period == 0 ? place : position[u * k + j] / period * period + place % period;
      if (!factors.empty()) factor.data_ptr<double>()[u * k + j] = factors[slot[u]];
    }
  const at::Tensor rows = axis_first(tensor, member);
  const auto device = tensor.device();
  at::Tensor moved = rows.index_select(0, from.to(device));
  if (!factors.empty()) moved = moved * factor.to(device, tensor.scalar_type());
  at::Tensor result = rows.clone();
  result.index_fill_(0, from.to(device), 0);
  result.index_add_(0, to.to(device), moved);
  return axis_back(result, tensor, member);
}

/// The stretches of models whose widths differ from the first one's: each is as long as its units,
/// and starts behind those before it on its axis.
void add_widths(ParameterUses& uses, const UnitGroups& groups) {
  std::size_t models = 0;
  for (const UnitGroup& group : groups.groups) models = std::max(models, group.widths.size());
  if (models == 0) return;
  for (auto& [name, list] : uses) {
    for (std::size_t i = 0; i < models; ++i) {
      std::map<std::int64_t, std::int64_t> grown;  // axis → by how much it is longer so far
      for (auto use = list.rbegin(); use != list.rend(); ++use) {  // from the start of an axis
        const UnitGroup& group = groups.groups[use->group];
        GroupMember member = group.members[use->member];
        const std::int64_t units = group.widths.empty() ? group.units : group.widths[i];
        const std::int64_t length = member.length / group.units * units;
        member.offset += grown[member.axis];
        grown[member.axis] += length - member.length;
        member.length = length;
        use->in_models.push_back(std::move(member));
      }
    }
  }
}

/// What each slot's units are multiplied by along a stretch; empty where that is 1. Shares are
/// normalised, so a slot with one unit of every model sums to 1 up to rounding.
std::vector<double> factors_of(const Matching& matching, SlotWeight weight,
                               const ModelShares& shares) {
  if (weight == SlotWeight::kOne) return {};
  std::vector<double> factors = slot_factors(matching, shares);
  const auto is_one = [](double factor) { return std::abs(factor - 1) < 1e-12; };
  if (std::all_of(factors.begin(), factors.end(), is_one)) factors.clear();
  return factors;
}

SlotWeight weight_of(const GroupMember& member) {
  return member.role == MemberRole::kIn ? SlotWeight::kOne : SlotWeight::kAverage;
}

/// Whether blend() can spread along the axis of this member, one of a tensor's first two.
bool can_blend(const GroupMember& member) { return member.axis < 2 && member.groups == 1; }

/// One of the two axes that blend() moves, with every position where it stands.
AxisMap unmoved(const at::Tensor& tensor, std::int64_t axis) {
  return AxisMap(axis < tensor.dim() ? tensor.size(axis) : 1);
}

/// Whether blend() can spread along all axes that carry units.
bool can_blend(const std::vector<at::Tensor>& tensors, const std::vector<AxisUse>& uses,
               const UnitGroups& groups) {
  return std::all_of(tensors.begin(), tensors.end(),
                     [](const at::Tensor& tensor) { return tensor.device().is_cpu(); }) &&
         std::all_of(uses.begin(), uses.end(), [&](const AxisUse& use) {
           return can_blend(groups.groups[use.group].members[use.member]);
         });
}

/// merge_parameter in one pass over memory, summed in `type`.
at::Tensor blended(const std::vector<at::Tensor>& tensors, const std::vector<AxisUse>& uses,
                   const UnitGroups& groups, const std::vector<Matching>& matchings,
                   const ModelShares& shares, at::ScalarType type, double divisor) {
  const std::size_t models = tensors.size();
  std::vector<at::Tensor> wide;
  std::vector<AxisMap> rows;
  std::vector<AxisMap> columns;
  for (std::size_t i = 0; i < models; ++i) {
    const at::Tensor& tensor = wide.emplace_back(tensors[i].detach().to(type));
    rows.push_back(unmoved(tensor, 0));
    columns.push_back(unmoved(tensor, 1));
    for (const AxisUse& use : uses) {
      const auto model = static_cast<std::int64_t>(i);
      const GroupMember& member = member_of(groups, use, model);
      const Matching& matching = matchings[use.group];
      (member.axis == 0 ? rows : columns)
          .back()
          .spread(member, matching, model, factors_of(matching, weight_of(member), shares));
    }
  }
  return blend(wide, rows, columns, shares.empty() ? std::vector<double>(models, 1.0) : shares,
               divisor);
}

}  // namespace

ParameterUses parameter_uses(const UnitGroups& groups) {
  ParameterUses uses;
  for (std::size_t g = 0; g < groups.groups.size(); ++g)
    for (std::size_t m = 0; m < groups.groups[g].members.size(); ++m)
      uses[groups.groups[g].members[m].parameter].push_back({g, m, {}});
  const auto offset = [&](const AxisUse& use) {
    return groups.groups[use.group].members[use.member].offset;
  };
  // Inside the groups of a convolution before its first axis moves them.
  const auto is_grouped = [&](const AxisUse& use) {
    return groups.groups[use.group].members[use.member].groups > 1;
  };
  for (auto& [name, list] : uses)
    std::stable_sort(list.begin(), list.end(), [&](const AxisUse& a, const AxisUse& b) {
      return std::pair(is_grouped(a), offset(a)) > std::pair(is_grouped(b), offset(b));
    });
  add_widths(uses, groups);
  return uses;
}

const GroupMember& member_of(const UnitGroups& groups, const AxisUse& use, std::int64_t model) {
  return use.in_models.empty() ? groups.groups[use.group].members[use.member]
                               : use.in_models[model];
}

UnitStack stack_of(const UnitGroup& group, std::int64_t models) {
  if (group.widths.empty()) return {models, group.units};
  WS_CHECK(static_cast<std::int64_t>(group.widths.size()) == models);
  return UnitStack(group.widths);
}

at::Tensor spread_units(const at::Tensor& tensor, const GroupMember& member,
                        const Matching& matching, std::int64_t model, SlotWeight weight,
                        const ModelShares& shares, std::int64_t keep_inside) {
  const std::vector<double> factors = factors_of(matching, weight, shares);
  const bool weighted = !factors.empty();
  if (is_identity(matching, model) && !weighted) return tensor;

  if (tensor.device().is_cpu() && keep_inside == 0 && can_blend(member) &&
      (tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kDouble)) {
    AxisMap rows = unmoved(tensor, 0);
    AxisMap columns = unmoved(tensor, 1);
    (member.axis == 0 ? rows : columns).spread(member, matching, model, factors);
    return blend({tensor}, {rows}, {columns}, {1.0}, 1);
  }
  const std::int64_t period = keep_inside > 0     ? keep_inside
                              : member.groups > 1 ? tensor.size(member.axis)
                                                  : 0;
  if (period > 0 || !member.index.empty())
    return spread_in_place(tensor, member, matching, model, factors, period);

  const std::int64_t units = matching.stack.units(model);
  const std::int64_t per_unit = member.length / units;
  const at::Tensor stretch = tensor.narrow(member.axis, member.offset, member.length);
  // Unit axis first, each unit's elements side by side: (units, k, rest).
  const at::Tensor rows = stretch.movedim(member.axis, 0).reshape({units, per_unit, -1});
  const std::int32_t* slot = matching.slots_of(model);
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
    return placed_back(rows.index_select(0, at::tensor(*inverse, at::kLong).to(tensor.device())));

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

std::optional<std::vector<std::int64_t>> axis_order(std::int64_t positions,
                                                    const std::vector<AxisUse>& uses,
                                                    const UnitGroups& groups,
                                                    const std::vector<Matching>& matchings,
                                                    std::int64_t model) {
  AxisMap map(positions);
  for (const AxisUse& use : uses) {
    const GroupMember& member = member_of(groups, use, model);
    if (member.groups > 1) return std::nullopt;
    const Matching& matching = matchings[use.group];
    map.spread(member, matching, model, factors_of(matching, SlotWeight::kAverage, {}));
  }
  if (!map.factor.empty()) return std::nullopt;
  return inverse_permutation(map.target.data(), positions, map.length);
}

at::Tensor unit_rows(const at::Tensor& tensor, const GroupMember& member, std::int64_t units) {
  at::Tensor rows =
      member.groups == 1 ? tensor.movedim(member.axis, 0) : axis_first(tensor, member);
  if (!member.index.empty())
    rows = rows.index_select(0, positions_of(member).to(tensor.device()));
  else
    rows = rows.narrow(0, member.offset, member.length);
  return rows.unflatten(0, std::vector<std::int64_t>{units, member.length / units});
}

at::Tensor merge_parameter(const std::vector<at::Tensor>& tensors, const std::vector<AxisUse>& uses,
                           const UnitGroups& groups, const std::vector<Matching>& matchings,
                           const ModelShares& shares) {
  WS_CHECK(shares.empty() || shares.size() == tensors.size());
  const at::NoGradGuard no_grad;
  const at::Tensor& first = tensors.front();
  if (!first.is_floating_point()) return first.clone();
  // Constants stay as they are to the last bit, infinite ones (masks) too.
  if (uses.empty() && std::all_of(tensors.begin() + 1, tensors.end(),
                                  [&](const at::Tensor& other) { return at::equal(first, other); }))
    return first.detach().clone();
  const auto accumulate_type = first.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto models = static_cast<std::int64_t>(tensors.size());
  const double divisor = shares.empty() ? static_cast<double>(models) : 1.0;
  if (can_blend(tensors, uses, groups))
    return blended(tensors, uses, groups, matchings, shares, accumulate_type, divisor)
        .to(first.scalar_type());
  at::Tensor sum;
  for (std::int64_t i = 0; i < models; ++i) {
    at::Tensor spread = tensors[i].detach().to(accumulate_type);
    for (const AxisUse& use : uses) {
      const GroupMember& member = member_of(groups, use, i);
      spread = spread_units(spread, member, matchings[use.group], i, weight_of(member), shares);
    }
    if (!shares.empty()) spread = spread * shares[i];
    sum = sum.defined() ? sum + spread : spread;
  }
  if (divisor != 1) sum = sum / divisor;
  return sum.to(first.scalar_type()).contiguous();
}

TensorMap merge_states(const std::vector<TensorMap>& states, const UnitGroups& groups,
                       const std::vector<Matching>& matchings, const ModelShares& shares) {
  WS_CHECK(!states.empty() && matchings.size() == groups.groups.size());
  const ParameterUses uses = parameter_uses(groups);
  TensorMap merged = states.front();
  std::vector<TensorMap::value_type*> entries;
  for (auto& entry : merged) entries.push_back(&entry);
  // Largest first: what is left for the end is soon done.
  std::stable_sort(entries.begin(), entries.end(), [](const auto* a, const auto* b) {
    return a->second.numel() > b->second.numel();
  });
  share_tasks(static_cast<std::int64_t>(entries.size()), [&](std::int64_t e) {
    auto& [name, result] = *entries[e];
    std::vector<at::Tensor> tensors;
    for (const TensorMap& state : states) tensors.push_back(state.at(name));
    const auto use = uses.find(name);
    result = merge_parameter(tensors, use == uses.end() ? std::vector<AxisUse>{} : use->second,
                             groups, matchings, shares);
  });
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
        moved = spread_units(moved, member_of(groups, u, model), matchings[u.group], model,
                             SlotWeight::kOne);
    reordered[name] = moved;
  }
  return reordered;
}

}  // namespace weightsmith
