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
