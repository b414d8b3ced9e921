#include "weightsmith/data/augment_policy.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <map>

namespace weightsmith {
namespace {

/// |share seen − expected| in standard deviations of a count of `n`.
double deviations(double seen, double expected, int n) {
  return std::abs(seen - expected) / std::sqrt(expected * (1 - expected) / n);
}

TEST_CASE("AutoAugment takes each half of a sub-policy with its probability", "[data]") {
  constexpr int kDraws = 40000;
  for (const auto policy : {AutoAugmentPolicy::kCifar10, AutoAugmentPolicy::kImageNet}) {
    std::map<PolicyOp, double> expected;
    for (const SubPolicy& pair : autoaugment_policy(policy))
      for (const PolicyStep& step : pair) expected[step.op] += step.probability / 25;
    std::map<PolicyOp, int> seen;
    int negative = 0;
    int with_sign = 0;
    for (int i = 0; i < kDraws; ++i) {
      Rng rng(static_cast<std::uint64_t>(i));
      const auto drawn = draw_autoaugment(policy, 32, 32, rng);
      CHECK(drawn.size() <= 2);
      for (const DrawnOp& step : drawn) {
        ++seen[step.op];
        if (!is_signed(step.op) || step.magnitude == 0) continue;
        ++with_sign;
        negative += step.magnitude < 0 ? 1 : 0;
      }
    }
    for (const auto& [op, mean] : expected) {
      INFO(enum_name(op));
      // Halves may share an operation, so a mean count; its deviation is below that of `mean`
      // coins.
      CHECK(std::abs(seen[op] / static_cast<double>(kDraws) - mean) <
            5 * std::sqrt(2 * mean / kDraws));
    }
    CHECK(seen.count(PolicyOp::kIdentity) == 0);
    CHECK(deviations(negative / static_cast<double>(with_sign), 0.5, with_sign) < 5);
  }
}

TEST_CASE("RandAugment and TrivialAugment draw operations and signs evenly", "[data]") {
  constexpr int kDraws = 30000;
  std::map<PolicyOp, int> rand;
  std::map<PolicyOp, int> trivial;
  std::map<double, int> shears;
  for (int i = 0; i < kDraws; ++i) {
    Rng rng(static_cast<std::uint64_t>(i));
    const auto drawn = draw_randaugment(3, 9, 31, 32, 48, rng);
    REQUIRE(drawn.size() == 3);
    ++rand[drawn[0].op];
    for (const DrawnOp& step : drawn) {
      if (step.op == PolicyOp::kRotate) CHECK(std::abs(step.magnitude) == Approx(9));
      if (step.op == PolicyOp::kTranslateX)
        CHECK(std::abs(step.magnitude) == Approx(150.0 / 331 * 48 * 9 / 30));
      if (step.op == PolicyOp::kTranslateY)
        CHECK(std::abs(step.magnitude) == Approx(150.0 / 331 * 32 * 9 / 30));
      if (step.op == PolicyOp::kSolarize) CHECK(step.magnitude == Approx(255 * 0.7));
      if (step.op == PolicyOp::kPosterize) CHECK(step.magnitude == 7);
    }
    const DrawnOp step = draw_trivialaugment(31, 32, 32, rng);
    ++trivial[step.op];
    if (step.op == PolicyOp::kShearX) ++shears[step.magnitude];
  }
  for (const auto& counts : {rand, trivial}) {
    CHECK(counts.size() == 14);
    CHECK(counts.count(PolicyOp::kInvert) == 0);
    for (const auto& [op, count] : counts) {
      INFO(enum_name(op));
      CHECK(deviations(count / static_cast<double>(kDraws), 1.0 / 14, kDraws) < 5);
    }
  }
  CHECK(shears.size() == 61);  // 30 magnitudes with both signs, and 0
  CHECK(shears.rbegin()->first == Approx(0.99));
}

}  // namespace
}  // namespace weightsmith
