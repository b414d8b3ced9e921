#include "weightsmith/match/align.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <limits>
#include <numeric>

#include "support/expect_error.h"
#include "support/matrices.h"

using namespace weightsmith;
using namespace weightsmith::testing;

namespace {

at::Tensor stacked_copies(const at::Tensor& features,
                          const std::vector<std::vector<std::int64_t>>& orders) {
  std::vector<at::Tensor> models{features};
  for (const auto& order : orders)
    models.push_back(features.index_select(0, at::tensor(order, at::kLong)));
  return at::cat(models);
}

Similarity cross_only(const Similarity& all) {
  std::vector<at::Tensor> blocks;
  for (std::int64_t i = 1; i < all.stack.models(); ++i)
    blocks.push_back(all.values.narrow(0, 0, all.stack.units(0))
                         .narrow(1, all.stack.offset(i), all.stack.units(i)));
  return {Similarity::Scope::kCrossModel, all.stack, at::stack(blocks).contiguous()};
}

/// Every permutation of blocks and, inside, of units.
double best_block_mean(const at::Tensor& s, std::int64_t g) {
  const std::int64_t q = s.size(0) / g;
  const auto* data = s.data_ptr<float>();
  const auto permutations_best = [](std::int64_t n, auto&& score) {
    std::vector<std::int64_t> p(n);
    std::iota(p.begin(), p.end(), 0);
    double best = -1e300;
    do {
      double total = 0.0;
      for (std::int64_t r = 0; r < n; ++r) total += score(r, p[r]);
      best = std::max(best, total / static_cast<double>(n));
    } while (std::next_permutation(p.begin(), p.end()));
    return best;
  };
  return permutations_best(g, [&](std::int64_t j, std::int64_t k) {
    return permutations_best(q, [&](std::int64_t r, std::int64_t c) {
      return data[(j * q + r) * s.size(0) + k * q + c];
    });
  });
}

}  // namespace

TEST_CASE("align finds the permutations that models differ by, in either scope") {
  Rng rng(21);
  const std::int64_t n = 60;
  const auto p1 = random_permutation(n, rng);
  const auto p2 = random_permutation(n, rng);
  const at::Tensor f =
      stacked_copies(structured_features(falling_factors(16, 500, rng), n, rng), {p1, p2});
  const Similarity all = all_pairs_similarity(row_correlation(f, f), 3, "test");
  const Matching m = align(all, 1, "layer1");
  check_matching(m, "test");
  CHECK(m.value == Approx(1.0).margin(1e-5));
  for (std::int64_t k = 0; k < n; ++k) {
    CHECK(m.slot[k] == k);
    CHECK(m.slot[n + k] == p1[k]);  // model 1's unit k is model 0's unit p1[k]
    CHECK(m.slot[2 * n + k] == p2[k]);
  }
  CHECK(align(cross_only(all), 1, "layer1") == m);
}

TEST_CASE("align in blocks equals brute force over blocks and units") {
  Rng rng(22);
  for (int trial = 0; trial < 20; ++trial) {
    const std::int64_t g = 1 + trial % 4;
    const std::int64_t n = g * (1 + trial % 3);
    const at::Tensor s = random_matrix(2 * n, 2 * n, rng);
    const Similarity all = all_pairs_similarity(s, 2, "test");
    const Matching m = align(all, g, "layer1");
    check_matching(m, "test");
    CHECK(m.value ==
          Approx(best_block_mean(s.narrow(0, 0, n).narrow(1, n, n).contiguous(), g)).margin(1e-6));
    const std::int64_t q = n / g;
    for (std::int64_t k = 0; k < n; ++k)  // units stay with their block
      CHECK(m.slot[n + k] / q == m.slot[n + k / q * q] / q);
  }
}

TEST_CASE("alignments begin from the prices of the last and leave theirs") {
  Rng rng(29);
  const std::int64_t n = 64;
  const Similarity all = all_pairs_similarity(random_matrix(3 * n, 3 * n, rng), 3, "test");
  for (const auto& aligned : {align, align_to_mean}) {
    AlignPrices prices;
    const Matching first = aligned(all, 1, "layer1", &prices);
    CHECK(first == aligned(all, 1, "layer1", nullptr));
    REQUIRE(prices.size() == 2);
    AlignPrices moved = prices;
    for (std::vector<double>& of_model : moved) {
      REQUIRE(static_cast<std::int64_t>(of_model.size()) == n);
      for (double& price : of_model) price += 8;  // as good, and known again
    }
    CHECK(aligned(all, 1, "layer1", &moved) == first);
    for (std::int64_t i = 0; i < 2; ++i)
      for (std::int64_t j = 0; j < n; ++j) CHECK(moved[i][j] >= prices[i][j] + 8);  // none falls
  }
}

TEST_CASE("align handles one model, one unit and none") {
  const auto all = [](std::int64_t models, std::int64_t units) {
    return all_pairs_similarity(at::ones({models * units, models * units}), models, "test");
  };
  CHECK(align(all(1, 5), 1, "a") == identity_matching(1, 5));
  CHECK(align(all(2, 1), 1, "a").slot == std::vector<std::int32_t>{0, 0});
  CHECK(align(all(2, 0), 1, "a").slot.empty());
}

TEST_CASE("align names the layer, models and unit of a fault") {
  Rng rng(23);
  at::Tensor s = random_matrix(12, 12, rng);
  expect_error(ErrorKind::kInput, {"conv1: 6 units in 4 blocks"},
               [&] { align(all_pairs_similarity(s, 2, "x"), 4, "conv1"); });
  expect_error(ErrorKind::kInput, {"multiple"}, [&] { all_pairs_similarity(s, 5, "x"); });
  s[2][9] = std::numeric_limits<float>::quiet_NaN();
  expect_error(ErrorKind::kNumeric, {"conv1, models 0 and 1: the score of row 2 and column 3"},
               [&] { align(all_pairs_similarity(s, 2, "x"), 1, "conv1"); });
  // align reads one block of it, check_finite all but the diagonal.
  at::Tensor outside = random_matrix(12, 12, rng);
  outside[7][7] = std::numeric_limits<float>::quiet_NaN();
  CHECK_NOTHROW(check_finite(all_pairs_similarity(outside, 2, "x"), "conv1"));
  outside[8][1] = std::numeric_limits<float>::infinity();
  CHECK_NOTHROW(align(all_pairs_similarity(outside, 2, "x"), 1, "conv1"));
  expect_error(ErrorKind::kNumeric, {"conv1: the similarity of stacked units 8 and 1 is inf"},
               [&] { check_finite(all_pairs_similarity(outside, 2, "x"), "conv1"); });
  Similarity misshapen = all_pairs_similarity(at::zeros({8, 8}), 2, "x");
  misshapen.stack = {2, 3};
  expect_error(ErrorKind::kInput, {"[6, 6]"}, [&] { align(misshapen, 1, "conv1"); });
}

TEST_CASE("blending mixes two spaces by balance") {
  Rng rng(24);
  const PackedSimilarity w = packed(all_pairs_similarity(random_matrix(8, 8, rng), 2, "x"));
  const PackedSimilarity a = packed(all_pairs_similarity(random_matrix(8, 8, rng), 2, "x"));
  const auto blended = [&](double balance, const PackedSimilarity& with) {
    PackedSimilarity result = w;
    result.values = w.values.clone();
    blend(result, with, balance, "x");
    return result.values;
  };
  CHECK(at::allclose(blended(0.25, a), 0.25 * w.values + 0.75 * a.values));
  CHECK(at::equal(blended(1.0, a), w.values));
  const PackedSimilarity other = packed(all_pairs_similarity(at::zeros({8, 8}), 4, "x"));
  expect_error(ErrorKind::kInput, {"same units"}, [&] { blended(0.5, other); });
}

namespace {

/// Mean matched similarity over units and all pairs of models, from the definition.
double mean_over_pairs(const Similarity& all, const Matching& m) {
  double total = 0;
  const std::int64_t pairs = m.stack.models() * (m.stack.models() - 1) / 2;
  for (std::int64_t u = 0; u < m.stack.size(); ++u)
    for (std::int64_t v = u + 1; v < m.stack.size(); ++v)
      if (m.stack.model_of(u) != m.stack.model_of(v) && m.slot[u] == m.slot[v])
        total += all.values[u][v].item<double>();
  return total / static_cast<double>(pairs * m.stack.units(0));
}

Similarity noisy_copies(std::int64_t models, std::int64_t n, double noise, Rng& rng) {
  const at::Tensor base = normal_matrix(n, 12, rng);
  std::vector<at::Tensor> rows;
  for (std::int64_t i = 0; i < models; ++i) {
    const auto order = random_permutation(n, rng);
    rows.push_back(
        (base + noise * normal_matrix(n, 12, rng)).index_select(0, at::tensor(order, at::kLong)));
  }
  const at::Tensor stacked = at::cat(rows);
  return all_pairs_similarity(row_correlation(stacked, stacked), models, "test");
}

}  // namespace

TEST_CASE("aligning with the mean is the best of all permutations where that can be counted") {
  Rng rng(4);
  int better_than_first = 0;
  for (int trial = 0; trial < 20; ++trial) {
    const std::int64_t n = 4;
    const Similarity all = noisy_copies(3, n, 1.5, rng);
    const Matching mean = align_to_mean(all, 1, "test");
    CHECK(mean.is_permutation());
    for (std::int32_t k = 0; k < n; ++k) CHECK(mean.slot[k] == k);
    CHECK(mean.value == Approx(mean_over_pairs(all, mean)).epsilon(1e-6));
    double best = -1e300;
    std::vector<std::int32_t> p{0, 1, 2, 3};
    do {
      std::vector<std::int32_t> q{0, 1, 2, 3};
      do {
        std::vector<std::int32_t> slot{0, 1, 2, 3};
        slot.insert(slot.end(), p.begin(), p.end());
        slot.insert(slot.end(), q.begin(), q.end());
        best = std::max(best, mean_over_pairs(all, make_matching({3, n}, n, slot, 0)));
      } while (std::next_permutation(q.begin(), q.end()));
    } while (std::next_permutation(p.begin(), p.end()));
    // The ascent may end below the optimum, never above it nor below where it began.
    CHECK(mean.value <= best + 1e-6);
    CHECK(mean.value > best - 0.1);
    const Matching first = align(all, 1, "test");
    const double before = mean_over_pairs(all, first);
    CHECK(mean.value >= before - 1e-6);
    better_than_first += mean.value > before + 1e-6 ? 1 : 0;
  }
  CHECK(better_than_first > 0);
}

TEST_CASE("the mean does not depend on which model comes first, as the first does") {
  Rng rng(9);
  const std::int64_t n = 40;
  const Similarity all = noisy_copies(4, n, 0.1, rng);
  const Matching mean = align_to_mean(all, 1, "test");
  // Nearly equal copies: every pair of models must be matched the same way round every cycle.
  const Matching first = align(all, 1, "test");
  CHECK(mean.slot == first.slot);
  CHECK(mean.value > 0.9);
}

TEST_CASE("aligning with the mean keeps blocks together") {
  Rng rng(10);
  const Similarity all = noisy_copies(3, 12, 0.8, rng);
  const Matching mean = align_to_mean(all, 3, "test");
  REQUIRE(mean.is_permutation());
  for (std::int64_t u = 0; u < 36; u += 4)
    for (std::int64_t k = 1; k < 4; ++k) CHECK(mean.slot[u + k] / 4 == mean.slot[u] / 4);
  CHECK(mean.value >= mean_over_pairs(all, align(all, 3, "test")) - 1e-6);
}

TEST_CASE("blocks in one order, and units inside them, are aligned with the mean") {
  Rng rng(12);
  const Similarity all = noisy_copies(3, 12, 0.8, rng);
  const Similarity blocks = block_similarity(all, 3, "test");
  const at::Tensor first = block_affinities(all, 3, "test");
  for (std::int64_t i = 1; i < 3; ++i)
    CHECK(at::equal(blocks.values.narrow(0, 0, 3).narrow(1, i * 3, 3), first[i - 1]));
  CHECK(at::equal(blocks.values, blocks.values.t()));
  const Matching order = align_to_mean(blocks, 1, "test");
  const Matching mean = align_within_to_mean(all, order, "test");
  REQUIRE(mean.is_permutation());
  for (std::int64_t u = 0; u < 36; ++u) CHECK(mean.slot[u] / 4 == order.slot[u / 4]);
  CHECK(mean.value == Approx(mean_over_pairs(all, mean)).epsilon(1e-6));
  // Better over all pairs than where all look at the first model alone.
  CHECK(mean.value > mean_over_pairs(all, align_within(all, order, "test")) + 1e-4);
  expect_error(ErrorKind::kInput, {"group x", "all pairs"},
               [&] { block_similarity(cross_only(all), 3, "group x"); });
  expect_error(ErrorKind::kInput, {"group x", "all pairs"},
               [&] { align_within_to_mean(cross_only(all), order, "group x"); });
}

TEST_CASE("two models need no mean, three need similarities of all pairs") {
  Rng rng(11);
  const Similarity two = noisy_copies(2, 9, 0.5, rng);
  CHECK(align_to_mean(two, 1, "test") == align(two, 1, "test"));
  CHECK(align_to_mean(cross_only(two), 1, "test") == align(two, 1, "test"));
  const Similarity three = noisy_copies(3, 9, 0.5, rng);
  expect_error(ErrorKind::kInput, {"group x", "all pairs"},
               [&] { align_to_mean(cross_only(three), 1, "group x"); });
}
