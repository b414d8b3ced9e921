#include "weightsmith/merge/transform.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>

namespace weightsmith {
namespace {

/// The paper's matrix of one model: U (units, slots), U[u, slot(u)] = 1, columns times N / c.
at::Tensor dense(const Matching& m, std::int64_t model, SlotWeight weight) {
  at::Tensor u = at::zeros({m.stack.units(model), m.slots}, at::kDouble);
  for (std::int64_t k = 0; k < m.stack.units(model); ++k) {
    const std::int32_t slot = m.slots_of(model)[k];
    u[k][slot] =
        weight == SlotWeight::kOne ? 1.0 : static_cast<double>(m.stack.models()) / m.count[slot];
  }
  return u;
}

/// spread_units by a dense matrix product, element by element of the stretch.
at::Tensor slow_spread(const at::Tensor& tensor, const GroupMember& member, const Matching& m,
                       std::int64_t model, SlotWeight weight) {
  const std::int64_t per_unit = member.length / m.stack.units(model);
  const at::Tensor matrix = at::kron(dense(m, model, weight), at::eye(per_unit, at::kDouble));
  const std::int64_t end = member.offset + member.length;
  const at::Tensor moved = tensor.movedim(member.axis, -1);
  const at::Tensor spread = moved.narrow(-1, member.offset, member.length).matmul(matrix);
  return at::cat({moved.narrow(-1, 0, member.offset), spread,
                  moved.narrow(-1, end, moved.size(-1) - end)},
                 -1)
      .movedim(-1, member.axis);
}

Matching zip_like() {
  // Two models of 4 units in 3 slots: some slots hold one unit, some three.
  return make_matching({2, 4}, 3, {0, 1, 1, 2, 1, 0, 2, 2}, 0.0);
}

Matching permutation() { return make_matching({2, 4}, 4, {0, 1, 2, 3, 2, 0, 3, 1}, 0.0); }

TEST_CASE("spreading units equals the product with the paper's matrices", "[merge]") {
  at::manual_seed(0);
  const at::Tensor tensor = at::randn({5, 14, 3}, at::kDouble);
  for (const Matching& m : {zip_like(), permutation(), identity_matching(2, 4)}) {
    for (const SlotWeight weight : {SlotWeight::kOne, SlotWeight::kAverage}) {
      for (const std::int64_t per_unit : {1, 3}) {
        for (const std::int64_t offset : {0, 2}) {
          const GroupMember member{"w", 1, offset, 4 * per_unit, MemberRole::kOut, {}, 1};
          for (const std::int64_t model : {0, 1}) {
            CAPTURE(m.slots, per_unit, offset, model);
            const at::Tensor fast = spread_units(tensor, member, m, model, weight);
            const at::Tensor slow = slow_spread(tensor, member, m, model, weight);
            REQUIRE(fast.sizes() == slow.sizes());
            CHECK(at::allclose(fast, slow, 0, 1e-12));
          }
        }
      }
    }
  }
}

TEST_CASE("a merged parameter averages what produces units and adds what consumes them",
          "[merge]") {
  // Units 0 and 1 of model 0 and unit 0 of model 1 share slot 0; unit 1 of model 1 is alone in
  // slot 1.
  const Matching m = make_matching({2, 2}, 2, {0, 0, 0, 1}, 0.0);
  UnitGroups groups;
  groups.groups.push_back(
      {"g",
       2,
       1,
       {{"bias", 0, 0, 2, MemberRole::kOut, {}, 1}, {"next", 1, 0, 2, MemberRole::kIn, {}, 1}},
       {},
       "",
       {}});
  const TensorMap a{{"bias", at::tensor({1.0, 3.0})},
                    {"next", at::tensor({2.0, 4.0}).view({1, 2})}};
  const TensorMap b{{"bias", at::tensor({5.0, 7.0})},
                    {"next", at::tensor({6.0, 8.0}).view({1, 2})}};
  const TensorMap merged = merge_states({a, b}, groups, {m});
  CHECK(at::allclose(merged.at("bias"), at::tensor({3.0, 7.0})));               // (1+3+5)/3, 7
  CHECK(at::allclose(merged.at("next"), at::tensor({6.0, 4.0}).view({1, 2})));  // (2+4+6)/2, 8/2
}

/// What merge_parameter says, spread axis by axis.
at::Tensor slow_merge(const std::vector<at::Tensor>& tensors, const std::vector<AxisUse>& uses,
                      const UnitGroups& groups, const std::vector<Matching>& matchings,
                      const ModelShares& shares) {
  at::Tensor sum;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const auto model = static_cast<std::int64_t>(i);
    at::Tensor spread = tensors[i];
    for (const AxisUse& use : uses) {
      const GroupMember& member = member_of(groups, use, model);
      spread = spread_units(
          spread, member, matchings[use.group], model,
          member.role == MemberRole::kIn ? SlotWeight::kOne : SlotWeight::kAverage, shares);
    }
    spread = spread * (shares.empty() ? 1.0 / static_cast<double>(tensors.size()) : shares[i]);
    sum = sum.defined() ? sum + spread : spread;
  }
  return sum;
}

TEST_CASE("merging in one pass equals spreading along one axis after the other", "[merge]") {
  at::manual_seed(1);
  const std::vector<Matching> matchings = {
      zip_like(), permutation(), identity_matching(2, 4),
      // Groups of two: blocks of two units that move as wholes, within group 1.
      make_matching({2, 8}, 8, {0, 1, 2, 3, 4, 5, 6, 7, 5, 4, 0, 1, 6, 7, 3, 2}, 0.0),
      // Model 0 has three units, model 1 five; all in three slots.
      make_matching(UnitStack(std::vector<std::int64_t>{3, 5}), 3, {0, 1, 2, 2, 0, 0, 1, 1}, 0.0)};
  const auto member = [](std::int64_t axis, std::int64_t offset, std::int64_t length,
                         MemberRole role, std::vector<std::int64_t> index = {}) {
    return GroupMember{"w", axis, offset, length, role, std::move(index), 1};
  };
  const auto group = [](std::string name, std::int64_t units, std::vector<GroupMember> members) {
    return UnitGroup{std::move(name), units, 1, std::move(members), {}, "", {}};
  };
  const auto out = MemberRole::kOut;
  const auto in = MemberRole::kIn;
  UnitGroups groups;
  groups.groups = {
      group("zipped", 4, {member(0, 0, 4, out), member(1, 3, 8, in)}),
      group("permuted", 4, {member(0, 4, 8, out), member(1, 11, 4, in), member(1, 0, 8, in)}),
      group("still", 4, {member(0, 12, 4, out)}),
      group("within", 8, {member(1, 0, 8, in, {0, 2, 4, 6, 7, 5, 3, 1})}),
      group("widened", 3, {member(1, 15, 6, in)})};
  groups.groups.back().widths = {3, 5};
  // (shapes of both models, (group, member) pairs)
  using Uses = std::vector<std::pair<std::size_t, std::size_t>>;
  const std::vector<std::pair<std::vector<std::vector<std::int64_t>>, Uses>> cases = {
      {{{16}, {16}}, {{2, 0}, {1, 0}, {0, 0}}},
      {{{16, 15}, {16, 15}}, {{2, 0}, {1, 0}, {0, 0}, {1, 1}, {0, 1}}},
      {{{16, 15, 3, 3}, {16, 15, 3, 3}}, {{1, 0}, {0, 0}, {1, 1}, {0, 1}}},
      {{{5, 15, 2}, {5, 15, 2}}, {{3, 0}, {1, 2}}},  // units inside of blocks, and the blocks
      {{{4, 21, 1}, {4, 25, 1}}, {{4, 0}, {0, 1}, {0, 0}}},
      {{{7, 3}, {7, 3}}, {}},
      {{{}, {}}, {}}};
  for (const auto& [shapes, picked] : cases) {
    std::vector<AxisUse> uses;
    for (const auto& [g, m] : picked) {
      uses.push_back({g, m, {}});
      if (groups.groups[g].widths.empty()) continue;
      for (const std::int64_t units : groups.groups[g].widths) {
        uses.back().in_models.push_back(groups.groups[g].members[m]);
        uses.back().in_models.back().length = 2 * units;
      }
    }
    for (const auto type : {at::kDouble, at::kFloat}) {
      std::vector<at::Tensor> tensors;
      for (const auto& shape : shapes) tensors.push_back(at::randn(shape, type));
      for (const ModelShares& shares : {ModelShares{}, ModelShares{0.3, 0.7}}) {
        CAPTURE(shapes, picked.size(), shares);
        const at::Tensor fast = merge_parameter(tensors, uses, groups, matchings, shares);
        const at::Tensor slow = slow_merge(tensors, uses, groups, matchings, shares);
        REQUIRE(fast.sizes() == slow.sizes());
        REQUIRE(fast.scalar_type() == type);
        const double tolerance = type == at::kDouble ? 1e-12 : 1e-5;
        CHECK(at::allclose(fast, slow, 0, tolerance));
      }
    }
  }
}

TEST_CASE("three models merge into their thirds", "[merge]") {
  at::manual_seed(2);
  const std::vector<Matching> matchings = {
      make_matching({3, 4}, 4, {0, 1, 2, 3, 2, 2, 2, 0, 1, 3, 1, 2}, 0.0)};
  UnitGroups groups;
  groups.groups = {
      {"g",
       4,
       1,
       {{"w", 0, 2, 4, MemberRole::kOut, {}, 1}, {"w", 1, 0, 4, MemberRole::kIn, {}, 1}},
       {},
       "",
       {}}};
  for (const std::vector<std::int64_t>& shape :
       std::vector<std::vector<std::int64_t>>{{6}, {6, 4}, {6, 4, 3}, {6, 5, 3, 3}}) {
    std::vector<AxisUse> uses = {{0, 0, {}}};
    if (shape.size() > 1) uses.push_back({0, 1, {}});
    std::vector<at::Tensor> tensors;
    for (int i = 0; i < 3; ++i) tensors.push_back(at::randn(shape, at::kDouble));
    CAPTURE(shape);
    CHECK(at::allclose(merge_parameter(tensors, uses, groups, matchings, {}),
                       slow_merge(tensors, uses, groups, matchings, {}), 0, 1e-12));
  }
}

TEST_CASE("an axis's units in the order of the slots are those that spreading gives", "[merge]") {
  at::manual_seed(3);
  UnitGroups groups;
  groups.groups = {{"g", 4, 1, {{"w", 1, 2, 8, MemberRole::kIn, {}, 1}}, {}, "", {}},
                   {"h", 4, 1, {{"w", 1, 0, 4, MemberRole::kIn, {13, 1, 0, 11}, 1}}, {}, "", {}}};
  const std::vector<AxisUse> uses{{0, 0, {}}, {1, 0, {}}};
  const at::Tensor tensor = at::randn({5, 14, 3});
  for (const std::int64_t model : {0, 1}) {
    const auto order = axis_order(14, uses, groups, {permutation(), permutation()}, model);
    REQUIRE(order.has_value());
    at::Tensor spread = tensor;
    for (const AxisUse& use : uses)
      spread = spread_units(spread, groups.groups[use.group].members[use.member], permutation(),
                            model, SlotWeight::kAverage);
    CHECK(at::equal(tensor.index_select(1, at::tensor(*order, at::kLong)), spread));
  }
  // Slots that hold several units, or none, of a model, and a model's units that are weighted.
  const Matching weighted = make_matching({2, 4}, 4, {0, 1, 2, 3, 0, 0, 1, 1}, 0.0);
  CHECK_FALSE(axis_order(14, {uses[0]}, groups, {weighted, permutation()}, 0).has_value());
  CHECK_FALSE(axis_order(14, {uses[0]}, groups, {zip_like(), permutation()}, 1).has_value());
  groups.groups[0].members[0].groups = 2;
  CHECK_FALSE(axis_order(14, {uses[0]}, groups, {permutation(), permutation()}, 0).has_value());
}

TEST_CASE("a permutation is undone to the last bit, whatever the layout of memory", "[merge]") {
  at::manual_seed(2);
  UnitGroups groups;
  groups.groups = {
      {"g",
       4,
       1,
       {{"w", 0, 0, 4, MemberRole::kOut, {}, 1}, {"w", 1, 0, 4, MemberRole::kIn, {}, 1}},
       {},
       "",
       {}}};
  const std::vector<Matching> matchings = {permutation()};
  const at::Tensor first = at::randn({4, 4, 3, 3});
  // Unit k of the second network is unit slot(k) of the first.
  const at::Tensor order = at::tensor({2, 0, 3, 1}, at::kLong);
  const at::Tensor second = first.index_select(0, order).index_select(1, order).contiguous(
      at::MemoryFormat::ChannelsLast);
  const auto uses = parameter_uses(groups).at("w");
  CHECK(at::equal(merge_parameter({first, second}, uses, groups, matchings), first));
}

TEST_CASE("parameters of no group are averaged and integers taken from the first model",
          "[merge]") {
  const TensorMap a{{"w", at::tensor({1.0, 2.0})}, {"n", at::tensor({3}, at::kLong)}};
  const TensorMap b{{"w", at::tensor({3.0, 6.0})}, {"n", at::tensor({5}, at::kLong)}};
  const TensorMap merged = merge_states({a, b}, {}, {});
  CHECK(at::equal(merged.at("w"), at::tensor({2.0, 4.0})));
  CHECK(at::equal(merged.at("n"), at::tensor({3}, at::kLong)));
}

TEST_CASE("half precision is merged in float32 and kept as half", "[merge]") {
  const at::Tensor x = at::full({3}, 60000.0).to(at::kHalf);
  const TensorMap merged = merge_states({{{"w", x}}, {{"w", x}}}, {}, {});
  CHECK(merged.at("w").scalar_type() == at::kHalf);
  CHECK(at::equal(merged.at("w"), x));  // the sum alone would overflow in half
}

TEST_CASE("shares weight the models, inside a slot as well", "[merge]") {
  const Matching m = make_matching({2, 2}, 2, {0, 0, 0, 1}, 0.0);
  UnitGroups groups;
  groups.groups.push_back(
      {"g",
       2,
       1,
       {{"bias", 0, 0, 2, MemberRole::kOut, {}, 1}, {"next", 1, 0, 2, MemberRole::kIn, {}, 1}},
       {},
       "",
       {}});
  const TensorMap a{{"bias", at::tensor({1.0, 3.0})},
                    {"next", at::tensor({2.0, 4.0}).view({1, 2})},
                    {"free", at::tensor({1.0})}};
  const TensorMap b{{"bias", at::tensor({5.0, 7.0})},
                    {"next", at::tensor({6.0, 8.0}).view({1, 2})},
                    {"free", at::tensor({5.0})}};
  const TensorMap merged = merge_states({a, b}, groups, {m}, {0.75, 0.25});
  // (0.75 · 1 + 0.75 · 3 + 0.25 · 5) / 1.75 and 7 alone.
  CHECK(at::allclose(merged.at("bias"), at::tensor({4.25 / 1.75, 7.0})));
  CHECK(at::allclose(merged.at("next"),
                     at::tensor({0.75 * (2 + 4) + 0.25 * 6, 0.25 * 8}).view({1, 2})));
  CHECK(at::allclose(merged.at("free"), at::tensor({2.0})));
  // Equal shares are no shares.
  const TensorMap equal = merge_states({a, b}, groups, {m}, {0.5, 0.5});
  for (const auto& [name, tensor] : merge_states({a, b}, groups, {m}))
    CHECK(at::allclose(tensor, equal.at(name)));
  // A share of 0 silences a model, and a slot that holds none but its units.
  const TensorMap alone = merge_states({a, b}, groups, {m}, {1.0, 0.0});
  CHECK(at::allclose(alone.at("bias"), at::tensor({2.0, 0.0})));
  CHECK(at::allclose(alone.at("next"), at::tensor({6.0, 0.0}).view({1, 2})));
}

TEST_CASE("a reordered network has its units in the order of the slots", "[merge]") {
  UnitGroups groups;
  groups.groups.push_back(
      {"g",
       4,
       1,
       {{"bias", 0, 0, 4, MemberRole::kOut, {}, 1}, {"next", 1, 0, 4, MemberRole::kIn, {}, 1}},
       {},
       "",
       {}});
  const TensorMap state{{"bias", at::arange(4, at::kFloat)},
                        {"next", at::arange(8, at::kFloat).view({2, 4})},
                        {"free", at::ones({3})}};
  const TensorMap moved = reordered_state(state, groups, {permutation()}, 1);
  for (const std::int64_t unit : {0, 1, 2, 3}) {
    const std::int64_t slot = permutation().slot[4 + unit];
    CHECK(at::equal(moved.at("bias")[slot], state.at("bias")[unit]));
    CHECK(at::equal(moved.at("next").select(1, slot), state.at("next").select(1, unit)));
  }
  CHECK(at::equal(moved.at("free"), state.at("free")));
}

}  // namespace
}  // namespace weightsmith
