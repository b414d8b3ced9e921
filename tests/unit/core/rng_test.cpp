#include "weightsmith/core/rng.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <set>

namespace weightsmith {
namespace {

TEST_CASE("the generator is SplitMix64", "[core]") {
  // Published first outputs of SplitMix64 for the state 1234567 (Vigna's reference values).
  std::uint64_t state = 1234567;
  const auto next = [&state] { return mix_bits(state += 0x9e3779b97f4a7c15ULL); };
  CHECK(next() == 6457827717110365317ULL);
  CHECK(next() == 3203168211198807973ULL);
}

TEST_CASE("streams are repeatable and differ by seed and by every coordinate", "[core]") {
  CHECK(Rng(1, {2, 3}).next() == Rng(1, {2, 3}).next());
  const std::set<std::uint64_t> firsts{Rng(1).next(),         Rng(2).next(),
                                       Rng(1, {0}).next(),    Rng(1, {2, 3}).next(),
                                       Rng(1, {3, 2}).next(), Rng(1, {2}).next()};
  CHECK(firsts.size() == 6);
}

TEST_CASE("numbers that are passed over are not drawn", "[core]") {
  Rng drawn(5);
  Rng skipped(5);
  for (const std::uint64_t count : {0, 1, 7}) {
    for (std::uint64_t i = 0; i < count; ++i) drawn.next();
    skipped.skip(count);
    CHECK(skipped.next() == drawn.next());
  }
}

TEST_CASE("draws have the moments of their distributions", "[core]") {
  Rng rng(7);
  const int n = 200000;
  double sum = 0;
  double squares = 0;
  double uniform = 0;
  std::vector<int> counts(7);
  for (int i = 0; i < n; ++i) {
    const double z = rng.normal();
    sum += z;
    squares += z * z;
    uniform += rng.uniform();
    ++counts[rng.below(7)];
  }
  CHECK(std::abs(sum / n) < 0.01);             // 4.5 standard errors
  CHECK(std::abs(squares / n - 1) < 0.015);    // 4.7
  CHECK(std::abs(uniform / n - 0.5) < 0.003);  // 4.6
  for (const int c : counts) CHECK(std::abs(c - n / 7.0) < 5 * std::sqrt(n / 7.0));
}

TEST_CASE("a random permutation holds every number once", "[core]") {
  Rng rng(3);
  auto order = random_permutation(100, rng);
  CHECK_FALSE(std::is_sorted(order.begin(), order.end()));
  std::sort(order.begin(), order.end());
  for (std::int64_t i = 0; i < 100; ++i) CHECK(order[i] == i);
}

}  // namespace
}  // namespace weightsmith
