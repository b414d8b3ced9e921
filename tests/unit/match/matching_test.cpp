#include "weightsmith/match/matching.h"

#include <ATen/core/Generator.h>  // before Catch2: glog, which it includes, has a CHECK of its own

#include <catch2/catch.hpp>
#include <set>

#include "support/expect_error.h"
#include "weightsmith/match/visit_order.h"

using namespace weightsmith;
using namespace weightsmith::testing;

TEST_CASE("the identity matching sends unit k of every model to slot k") {
  const Matching m = identity_matching(3, 4);
  CHECK(m.slot == std::vector<std::int32_t>{0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3});
  CHECK(m.count == std::vector<std::int32_t>(4, 3));
  CHECK(m.unit_of(2) == std::vector<std::int32_t>{0, 1, 2, 3});
  CHECK_NOTHROW(check_matching(m, "test"));
}

TEST_CASE("unit_of inverts the slots of a model") {
  const Matching m = make_matching({2, 3}, 3, {0, 1, 2, 2, 0, 1}, 0.5);
  CHECK(m.unit_of(1) == std::vector<std::int32_t>{1, 2, 0});
  const Matching zipped = make_matching({2, 3}, 3, {0, 0, 1, 1, 2, 2}, 0.5);
  expect_error(ErrorKind::kInternal, {"share a slot"}, [&] { zipped.unit_of(0); });
}

TEST_CASE("a damaged matching is refused with its fault") {
  const Matching sound = make_matching({2, 2}, 3, {0, 1, 2, 1}, 0.5);
  CHECK_NOTHROW(check_matching(sound, "m"));
  const auto expect = [&](const char* fault, auto&& damage) {
    Matching m = sound;
    damage(m);
    expect_error(ErrorKind::kInput, {fault}, [&] { check_matching(m, "m"); });
  };
  expect("stacked unit 3 has slot 3", [](Matching& m) { m.slot[3] = 3; });
  expect("stacked unit 0 has slot -1", [](Matching& m) { m.slot[0] = -1; });
  expect("slot 2 is empty", [](Matching& m) { m.slot[2] = 0; });
  expect("its count says 5", [](Matching& m) { m.count[1] = 5; });
  expect("3 slot entries", [](Matching& m) { m.slot.pop_back(); });
  expect("in 9 slots", [](Matching& m) { m.slots = 9; });
  expect("value", [](Matching& m) { m.value = 0.0 / 0.0; });
}

TEST_CASE("visit orders are permutations, follow the seed and differ between sweeps") {
  VisitOrder a(20);
  VisitOrder b(20);
  VisitOrder other(20, 1);
  const auto first = a.next();
  CHECK(std::set<std::int64_t>(first.begin(), first.end()).size() == 20);
  CHECK(first == b.next());
  CHECK(first != other.next());
  CHECK(a.next() != first);
}

TEST_CASE("stacked units know their model") {
  const UnitStack stack(std::vector<std::int64_t>{3, 0, 2});
  CHECK(stack.models() == 3);
  CHECK(stack.size() == 5);
  CHECK(stack.widest() == 3);
  CHECK_FALSE(stack.is_even());
  CHECK(UnitStack(2, 4).is_even());
  CHECK(UnitStack(2, 4) == UnitStack(std::vector<std::int64_t>{4, 4}));
  for (std::int64_t u = 0; u < 5; ++u) CHECK(stack.model_of(u) == (u < 3 ? 0 : 2));
  // Units of a model that are not as many as the slots are no permutation.
  CHECK_FALSE(make_matching(UnitStack(std::vector<std::int64_t>{2, 3}), 2, {0, 1, 1, 0, 0}, 0)
                  .is_permutation());
}
