#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "weightsmith/core/rng.h"
#include "weightsmith/graph/unit_groups.h"
#include "weightsmith/tensor/tensor_map.h"

namespace weightsmith {

/// For every group, which unit comes to each place: orders[g][u] is a unit of group g.
using UnitOrders = std::vector<std::vector<std::int64_t>>;

/// Random orders for the groups whose indices are in `moving`; the others stay, or follow the
/// blocks they are within. Blocks move as wholes and units within their block. Of several blocks,
/// or units in a block, none keeps its place.
UnitOrders random_orders(const UnitGroups& groups, const std::set<std::size_t>& moving, Rng& rng);
/// Random orders for all groups.
UnitOrders random_orders(const UnitGroups& groups, Rng& rng);

/// The tensor with units in another order along one member: unit unit_at[u] comes to the place of
/// unit u. Where `member.groups` > 1, units keep to their convolution group, which the first axis
/// moves. Same shape and dtype. Throws Error{kInput} for an order that does not keep to them.
at::Tensor permuted(const at::Tensor& tensor, const GroupMember& member,
                    const std::vector<std::int64_t>& unit_at);

/// A group and one of its members, by index.
using MemberIndex = std::pair<std::size_t, std::size_t>;

/// The parameters and buffers that the orders change, with their new values: with all of them in
/// place the network computes what it did. `left_out` names a member that is forgotten, which a
/// proof must notice.
///
/// With `take` they are handed over one by one, so that only one copy is held at a time.
void permute_state(
    const TensorMap& state, const UnitGroups& groups, const UnitOrders& orders,
    std::optional<MemberIndex> left_out,
    const std::function<void(const std::string& name, const at::Tensor& value)>& take);
TensorMap permuted_state(const TensorMap& state, const UnitGroups& groups, const UnitOrders& orders,
                         std::optional<MemberIndex> left_out = std::nullopt);

}  // namespace weightsmith
