#include "weightsmith/match/zip.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <set>

#include "support/expect_error.h"
#include "support/matrices.h"
#include "weightsmith/match/align.h"

using namespace weightsmith;
using namespace weightsmith::testing;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::int64_t down(double x) { return static_cast<std::int64_t>(std::floor(x + 1e-4)); }

/// Zip as its definition reads: every step scans the whole matrix and deletes rows and columns.
/// Nothing where no admissible pair is left.
std::optional<Matching> slow_zip(const at::Tensor& sims, const UnitStack& stack,
                                 const ZipOptions& options, std::int64_t blocks) {
  const std::int64_t stacked = sims.size(0);
  const std::int64_t models = stack.models();
  const std::int64_t q = stack.units(0) / blocks;  // counts only where there are blocks
  Matching order;
  if (blocks > 1) order = align(all_pairs_similarity(sims, models, "twin"), blocks, "twin");
  const std::int64_t removed = stacked - down(static_cast<double>(stacked) * (1 - options.reduce));
  const std::int64_t kept = down(static_cast<double>(stacked / blocks) * (1 - options.reduce));
  std::map<std::int64_t, std::int64_t> budget;
  std::set<std::int64_t> closed;
  for (std::int64_t i = 0; i < models; ++i)
    budget[i] = down(static_cast<double>(removed / models) * options.b);
  const auto* values = sims.data_ptr<float>();

  std::vector<std::int32_t> slot(stacked, -1);
  std::vector<float> list;
  std::int32_t slots = 0;
  for (std::int64_t s = 0; s < blocks; ++s) {
    std::vector<std::vector<std::int64_t>> clusters;  // units, the lowest first
    for (std::int64_t u = 0; u < stacked; ++u)
      if (blocks == 1 || order.slot[u / q * q] / q == s) clusters.push_back({u});
    const auto label = [&](std::size_t c) { return stack.model_of(clusters[c][0]); };
    std::vector<std::vector<float>> m(clusters.size(), std::vector<float>(clusters.size()));
    for (std::size_t x = 0; x < clusters.size(); ++x)
      for (std::size_t y = 0; y < clusters.size(); ++y)
        m[x][y] = x == y ? -kInfinity : values[clusters[x][0] * stacked + clusters[y][0]];
    std::map<std::int64_t, std::int64_t> block_budget;
    for (std::int64_t i = 0; i < models; ++i)
      block_budget[i] = down(static_cast<double>(removed) * options.b_block /
                             static_cast<double>(models * blocks));
    const auto close = [&](std::int64_t model) {
      for (std::size_t x = 0; x < clusters.size(); ++x)
        for (std::size_t y = 0; y < clusters.size(); ++y)
          if (label(x) == model && label(y) == model) m[x][y] = -kInfinity;
    };
    for (const std::int64_t model : closed) close(model);

    while (static_cast<std::int64_t>(clusters.size()) > kept) {
      std::size_t x = 0;
      std::size_t y = 0;
      float best = -kInfinity;
      for (std::size_t r = 0; r < m.size(); ++r)
        for (std::size_t c = 0; c < m.size(); ++c)
          if (m[r][c] > best) best = m[x = r][y = c];
      if (best == -kInfinity) return std::nullopt;
      if (x > y) std::swap(x, y);
      const bool same = label(x) == label(y);
      list.push_back(best);
      for (std::size_t c = 0; c < m.size(); ++c)
        m[x][c] = std::min(m[x][c], m[y][c]) * static_cast<float>(options.a);
      for (std::size_t c = 0; c < m.size(); ++c) m[c][x] = m[x][c];
      clusters[x].insert(clusters[x].end(), clusters[y].begin(), clusters[y].end());
      clusters.erase(clusters.begin() + static_cast<std::ptrdiff_t>(y));
      m.erase(m.begin() + static_cast<std::ptrdiff_t>(y));
      for (auto& row : m) row.erase(row.begin() + static_cast<std::ptrdiff_t>(y));
      if (!same) continue;
      const std::int64_t model = label(x);
      if (--budget[model] <= 0) closed.insert(model);
      const bool block_closed = blocks > 1 && --block_budget[model] <= 0;
      if (closed.count(model) != 0 || block_closed) close(model);
    }
    for (const auto& cluster : clusters) {
      for (const std::int64_t u : cluster) slot[u] = slots;
      ++slots;
    }
  }
  double value = 0.0;
  for (const float v : list) value += v;
  if (!list.empty()) value /= static_cast<double>(list.size());
  return make_matching(stack, slots, slot, value);
}

void compare(const at::Tensor& sims, const UnitStack& stack, const ZipOptions& options,
             std::int64_t blocks, int& refused) {
  CAPTURE(stack.models(), sims.size(0), blocks, options.reduce, options.a, options.b,
          options.b_block);
  const Similarity similarity{Similarity::Scope::kAllPairs, stack, sims};
  const std::optional<Matching> expected = slow_zip(sims, stack, options, blocks);
  if (!expected) {
    ++refused;
    expect_error(ErrorKind::kConfig, {"no admissible pair"},
                 [&] { zip(similarity, options, blocks, "layer1"); });
    return;
  }
  const Matching m = zip(similarity, options, blocks, "layer1");
  check_matching(m, "test");
  CHECK(m.slot == expected->slot);
  CHECK(m.value == Approx(expected->value).margin(1e-12));
}

}  // namespace

TEST_CASE("zip equals its slow twin on random matrices with and without ties") {
  Rng rng(31);
  int refused = 0;
  for (int trial = 0; trial < 240; ++trial) {
    const std::int64_t models = 2 + trial % 2;
    const std::int64_t n = 1 + static_cast<std::int64_t>(rng.below(22));
    const int levels[] = {0, 8, 2, 1};
    at::Tensor sims = symmetric_matrix(models * n, levels[trial % 4], rng);
    if (trial % 3 == 1) sims = sims.abs();
    if (trial % 7 == 6) sims = random_matrix(models * n, models * n, rng);  // not symmetric
    const double as[] = {0.5, 0.3, 1.0, 1e-4, 1.5};
    const double bs[] = {1.0, 0.0, 0.5, 0.125};
    const ZipOptions options{
        trial % 5 == 4 ? rng.uniform(0.0, 0.9) : 1.0 - 1.0 / static_cast<double>(models),
        as[rng.below(5)], bs[rng.below(4)], 1.0};
    if (down(static_cast<double>(models * n) * (1 - options.reduce)) < 1) continue;
    compare(sims, {models, n}, options, 1, refused);
  }
  CHECK(refused < 60);
}

TEST_CASE("zip in blocks equals its slow twin") {
  Rng rng(32);
  int refused = 0;
  for (int trial = 0; trial < 80; ++trial) {
    const std::int64_t models = 2 + trial % 2;
    const std::int64_t g = 2 + static_cast<std::int64_t>(rng.below(4));
    const std::int64_t n = g * (2 + static_cast<std::int64_t>(rng.below(5)));
    const at::Tensor sims = symmetric_matrix(models * n, trial % 2 == 0 ? 0 : 4, rng);
    const double bs[] = {1.0, 0.0, 0.5};
    compare(sims, {models, n},
            {1.0 - 1.0 / static_cast<double>(models), 0.5, bs[rng.below(3)], bs[rng.below(3)]}, g,
            refused);
  }
  CHECK(refused < 40);
}

TEST_CASE("zip of models with unequal numbers of units equals its slow twin") {
  Rng rng(36);
  int refused = 0;
  int uneven = 0;
  for (int trial = 0; trial < 120; ++trial) {
    std::vector<std::int64_t> units;
    for (int i = 0; i < 2 + trial % 2; ++i)
      units.push_back(1 + static_cast<std::int64_t>(rng.below(16)));
    const UnitStack stack(units);
    uneven += stack.is_even() ? 0 : 1;
    const int levels[] = {0, 8, 2};
    const double bs[] = {1.0, 0.0, 0.5};
    const double reduce =
        trial % 5 == 4 ? rng.uniform(0.0, 0.9) : 1.0 - 1.0 / static_cast<double>(stack.models());
    if (down(static_cast<double>(stack.size()) * (1 - reduce)) < 1) continue;
    compare(symmetric_matrix(stack.size(), levels[trial % 3], rng), stack,
            {reduce, 0.5, bs[rng.below(3)], 1.0}, 1, refused);
  }
  CHECK(uneven > 80);
  CHECK(refused < 60);
}

TEST_CASE("zip of a model with its permuted self pairs every unit with its copy") {
  Rng rng(33);
  const std::int64_t n = 80;
  const auto p = random_permutation(n, rng);
  const at::Tensor f = structured_features(falling_factors(40, 900, rng), n, rng);
  const at::Tensor both = at::cat({f, f.index_select(0, at::tensor(p, at::kLong))});
  const Matching m =
      zip(all_pairs_similarity(row_correlation(both, both), 2, "test"), {}, 1, "layer1");
  CHECK(m.slots == n);
  CHECK(m.count == std::vector<std::int32_t>(n, 2));
  for (std::int64_t k = 0; k < n; ++k) CHECK(m.slot[n + k] == p[k]);
}

TEST_CASE("zip that removes nothing keeps every unit") {
  Rng rng(34);
  const Matching m =
      zip(all_pairs_similarity(symmetric_matrix(10, 0, rng), 2, "x"), {0.0, 0.5, 1.0, 1.0}, 1, "a");
  CHECK(m.slots == 10);
  CHECK(m.count == std::vector<std::int32_t>(10, 1));
  CHECK(m.value == 0.0);
  CHECK(zip(all_pairs_similarity(at::zeros({0, 0}), 2, "x"), {}, 1, "a").slots == 0);
}

TEST_CASE("zip refuses options out of range and similarities it cannot use") {
  Rng rng(35);
  const Similarity s = all_pairs_similarity(symmetric_matrix(12, 0, rng), 2, "x");
  const auto refused = [&](const char* name, const ZipOptions& options) {
    expect_error(ErrorKind::kConfig, {name}, [&] { zip(s, options, 1, "fc1"); });
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  refused("reduce is 1", {1.0, 0.5, 1.0, 1.0});
  refused("reduce is -0.1", {-0.1, 0.5, 1.0, 1.0});
  refused("reduce is nan", {nan, 0.5, 1.0, 1.0});
  refused("a is 0", {0.5, 0.0, 1.0, 1.0});
  refused("a is nan", {0.5, nan, 1.0, 1.0});
  refused("b is -1", {0.5, 0.5, -1.0, 1.0});
  refused("b_block is -1", {0.5, 0.5, 1.0, -1.0});
  refused("leaves none", {0.99, 0.5, 1.0, 1.0});
  expect_error(ErrorKind::kInput, {"fc1: 6 units in 5 blocks"}, [&] { zip(s, {}, 5, "fc1"); });
  const Similarity cross{Similarity::Scope::kCrossModel, {2, 3}, at::zeros({1, 3, 3})};
  expect_error(ErrorKind::kInput, {"all pairs"}, [&] { zip(cross, {}, 1, "fc1"); });
}

TEST_CASE("zip names the pair that is not finite, and ignores the diagonal") {
  Rng rng(36);
  at::Tensor m = symmetric_matrix(12, 0, rng);
  m[4][4] = std::numeric_limits<float>::quiet_NaN();
  CHECK_NOTHROW(zip(all_pairs_similarity(m, 2, "x"), {}, 1, "fc1"));
  m[4][7] = kInfinity;
  expect_error(ErrorKind::kNumeric, {"fc1: the similarity of stacked units 4 and 7 is inf"},
               [&] { zip(all_pairs_similarity(m, 2, "x"), {}, 1, "fc1"); });
}

TEST_CASE("zip says which option leaves no admissible pair") {
  // One model and no budget: a single merge is let through, the second has nowhere to go.
  expect_error(ErrorKind::kConfig, {"no admissible pair left after 1 of 3 merges"}, [] {
    zip(all_pairs_similarity(at::rand({6, 6}), 1, "x"), {0.5, 0.5, 0.0, 1.0}, 1, "fc1");
  });
}
