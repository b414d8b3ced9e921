#include "weightsmith/eval/paired_test.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <numbers>

namespace weightsmith {
namespace {

TEST_CASE("Student's distribution agrees with its closed forms and with tables", "[eval]") {
  for (const double t : {0.0, 0.3, 1.0, 2.5, 40.0}) {
    CHECK(student_two_sided(t, 1) == Approx(1 - 2 / std::numbers::pi * std::atan(t)).margin(1e-12));
    CHECK(student_two_sided(t, 2) == Approx(1 - t / std::sqrt(2 + t * t)).margin(1e-12));
  }
  CHECK(student_two_sided(3.182446, 3) == Approx(0.05).epsilon(1e-5));
  CHECK(student_two_sided(2.262157, 9) == Approx(0.05).epsilon(1e-5));
  CHECK(student_two_sided(2.580698, 1000) == Approx(0.01).epsilon(1e-3));
}

TEST_CASE("a paired test of a small sample", "[eval]") {
  // Differences 1, 2, 3, 4: mean 2.5, deviation 1.290994, t = 3.872983 with 3 degrees of freedom.
  const PairedTest test = paired_test({3, 5, 7, 9}, {2, 3, 4, 5});
  CHECK(test.n == 4);
  CHECK(test.mean_difference == 2.5);
  CHECK(*test.deviation == Approx(1.290994).epsilon(1e-6));
  CHECK(*test.p == Approx(0.030466).epsilon(1e-4));
  CHECK(*test.low == Approx(2.5 - 3.182446 * 1.290994 / 2).epsilon(1e-5));
  CHECK(*test.high == Approx(2.5 + 3.182446 * 1.290994 / 2).epsilon(1e-5));
  // The other way round only signs change.
  const PairedTest turned = paired_test({2, 3, 4, 5}, {3, 5, 7, 9});
  CHECK(turned.mean_difference == -2.5);
  CHECK(*turned.p == Approx(*test.p));
  CHECK(*turned.low == Approx(-*test.high));
}

TEST_CASE("where nothing can be tested nothing is claimed", "[eval]") {
  CHECK_FALSE(paired_test({1.0}, {0.5}).p);
  CHECK_FALSE(paired_test({1.0}, {0.5}).deviation);
  const PairedTest equal = paired_test({0.3, 0.4, 0.9}, {0.2, 0.3, 0.8});
  CHECK(equal.mean_difference == Approx(0.1));
  CHECK_FALSE(equal.p);
}

}  // namespace
}  // namespace weightsmith
