#include "weightsmith/graph/unit_orders.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "weightsmith/core/error.h"

namespace weightsmith {
namespace {

std::vector<std::int64_t> same_order(std::int64_t n) {
  std::vector<std::int64_t> same(n);
  std::iota(same.begin(), same.end(), 0);
  return same;
}

/// A random cycle through all (Sattolo, 1986): none keeps its place, since a proof says nothing of
/// one that does.
std::vector<std::int64_t> cyclic_order(std::int64_t n, Rng& rng) {
  std::vector<std::int64_t> order = same_order(n);
  for (std::int64_t i = n - 1; i > 0; --i) std::swap(order[i], order[rng.below(i)]);
  return order;
}

}  // namespace

UnitOrders random_orders(const UnitGroups& groups, const std::set<std::size_t>& moving, Rng& rng) {
  UnitOrders orders;
  std::map<std::string, std::size_t> by_name;
  for (std::size_t g = 0; g < groups.groups.size(); ++g) {
    const UnitGroup& group = groups.groups[g];
    by_name[group.name] = g;
    const auto order = [&](std::int64_t n) {
      return moving.contains(g) ? cyclic_order(n, rng) : same_order(n);
    };
    const std::vector<std::int64_t> blocks =
        group.within.empty() ? order(group.blocks) : orders[by_name.at(group.within)];
    const std::int64_t size = group.units / group.blocks;
    std::vector<std::int64_t>& units = orders.emplace_back();
    for (const std::int64_t block : blocks)
      for (const std::int64_t unit : order(size)) units.push_back(block * size + unit);
  }
  return orders;
}

UnitOrders random_orders(const UnitGroups& groups, Rng& rng) {
  std::set<std::size_t> all;
  for (std::size_t g = 0; g < groups.groups.size(); ++g) all.insert(g);
  return random_orders(groups, all, rng);
}

at::Tensor permuted(const at::Tensor& tensor, const GroupMember& member,
                    const std::vector<std::int64_t>& unit_at) {
  const auto units = static_cast<std::int64_t>(unit_at.size());
  const std::int64_t k = member.length / units;
  const std::int64_t axis_size = tensor.size(member.axis);
  const auto position = [&](std::int64_t unit, std::int64_t j) {
    return member.index.empty() ? member.offset + unit * k + j : member.index[unit * k + j];
  };
  // source[p]: what comes to position p of the axis, as the convolution's input counts it.
  std::vector<std::int64_t> source(axis_size * member.groups);
  std::iota(source.begin(), source.end(), 0);
  for (std::int64_t u = 0; u < units; ++u)
    for (std::int64_t j = 0; j < k; ++j) source[position(u, j)] = position(unit_at[u], j);
  if (member.groups == 1)
    return tensor.index_select(member.axis, at::tensor(source, at::kLong).to(tensor.device()));
  // A unit that comes from group h to group g brings its place inside h; the first axis then moves
  // the rows of h to g.
  const std::int64_t rows = tensor.size(0) / member.groups;
  at::Tensor result = tensor.clone();
  for (std::int64_t g = 0; g < member.groups; ++g) {
    std::vector<std::int64_t> inner(source.begin() + g * axis_size,
                                    source.begin() + (g + 1) * axis_size);
    const std::int64_t from = inner.front() / axis_size;
    for (std::int64_t& p : inner) {
      if (p / axis_size != from)
        throw Error(ErrorKind::kInput, member.parameter,
                    "units of one group of the convolution would go to different ones",
                    "blocks of units must keep to the convolution's groups");
      p -= from * axis_size;
    }
    const at::Tensor index = at::tensor(inner, at::kLong).to(tensor.device());
    result.narrow(0, from * rows, rows)
        .copy_(tensor.narrow(0, from * rows, rows).index_select(1, index));
  }
  return result;
}

void permute_state(
    const TensorMap& state, const UnitGroups& groups, const UnitOrders& orders,
    std::optional<MemberIndex> left_out,
    const std::function<void(const std::string& name, const at::Tensor& value)>& take) {
  std::map<std::string, std::vector<MemberIndex>> moves;
  // Inside a convolution's groups before its first axis moves them.
  for (const bool in_groups : {true, false})
    for (std::size_t g = 0; g < groups.groups.size(); ++g) {
      if (std::is_sorted(orders[g].begin(), orders[g].end())) continue;
      for (std::size_t m = 0; m < groups.groups[g].members.size(); ++m) {
        const GroupMember& member = groups.groups[g].members[m];
        if (left_out != MemberIndex{g, m} && (member.groups > 1) == in_groups)
          moves[member.parameter].emplace_back(g, m);
      }
    }
  for (const auto& [name, of_parameter] : moves) {
    at::Tensor value = state.at(name).detach();
    for (const auto& [g, m] : of_parameter)
      value = permuted(value, groups.groups[g].members[m], orders[g]);
    take(name, value);
  }
}

TensorMap permuted_state(const TensorMap& state, const UnitGroups& groups, const UnitOrders& orders,
                         std::optional<MemberIndex> left_out) {
  TensorMap after;
  permute_state(state, groups, orders, left_out,
                [&](const std::string& name, const at::Tensor& value) { after[name] = value; });
  return after;
}

}  // namespace weightsmith
