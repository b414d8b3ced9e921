#include "weightsmith/match/row_kernels.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "weightsmith/core/rng.h"

using namespace weightsmith;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Case {
  std::vector<float> row, other;
  std::vector<double> price, distance;
  std::vector<std::int32_t> alive;
};

Case make_case(std::int64_t n, Rng& rng) {
  Case c;
  for (std::int64_t j = 0; j < n; ++j) {
    // Steps of 1/4: ties must be broken by position.
    c.row.push_back(static_cast<float>(std::round(rng.uniform(-8, 8)) / 4));
    c.other.push_back(static_cast<float>(rng.uniform(-1, 1)));
    c.price.push_back(std::round(rng.uniform(-4, 4)) / 4);
    c.distance.push_back(rng.below(4) == 0 ? kInfinity : rng.uniform(0, 3));
    c.alive.push_back(rng.below(4) == 0 ? 0 : -1);
  }
  return c;
}

void compare_with_plain_loops(const RowKernels& k, std::int64_t n, Rng& rng) {
  CAPTURE(n);
  Case c = make_case(n, rng);
  const auto margin = [&](std::int64_t j) { return static_cast<double>(c.row[j]) - c.price[j]; };

  std::vector<float> maxima = c.other;
  std::vector<std::int32_t> argument(n, 7);
  CHECK(k.update_column_maxima(c.row.data(), n, 9, maxima.data(), argument.data()));
  for (std::int64_t j = 0; j < n; ++j) {
    CHECK(maxima[j] == std::max(c.row[j], c.other[j]));
    CHECK(argument[j] == (c.row[j] > c.other[j] ? 9 : 7));
  }

  double lanes[64];
  double expected[64];
  std::fill_n(expected, 64, -kInfinity);
  for (std::int64_t j = 0; j < n; ++j) expected[j % 64] = std::max(expected[j % 64], margin(j));
  k.lane_maxima(c.row.data(), c.price.data(), n, lanes);
  CHECK(std::equal(lanes, lanes + 64, expected));
  CHECK(k.largest_margin(c.row.data(), c.price.data(), n) ==
        *std::max_element(expected, expected + 64));

  std::vector<std::int32_t> wanted;
  for (std::int64_t j = 0; j < n; ++j)
    if (margin(j) >= 1.0) wanted.push_back(static_cast<std::int32_t>(j));
  std::vector<std::int32_t> columns(n + 1, -1);
  const auto count = static_cast<std::int64_t>(wanted.size());
  CHECK(k.collect_at_least(c.row.data(), c.price.data(), n, 1.0, columns.data(), n) == count);
  CHECK(std::equal(wanted.begin(), wanted.end(), columns.begin()));
  CHECK(columns[n] == -1);
  if (count > 0)
    CHECK(k.collect_at_least(c.row.data(), c.price.data(), n, 1.0, columns.data(), count - 1) ==
          count);

  wanted.clear();
  for (std::int64_t j = 0; j < n; ++j)
    if (0.5 + c.price[j] - c.row[j] < std::min(1.5, c.distance[j]))
      wanted.push_back(static_cast<std::int32_t>(j));
  CHECK(k.collect_shorter(c.row.data(), c.price.data(), n, 0.5, 1.5, c.distance.data(),
                          columns.data()) == static_cast<std::int64_t>(wanted.size()));
  CHECK(std::equal(wanted.begin(), wanted.end(), columns.begin()));

  FirstMaximum first{-std::numeric_limits<float>::infinity(), -1};
  for (std::int64_t j = 0; j < n; ++j)
    if (c.alive[j] != 0 && c.row[j] > first.value) first = {c.row[j], static_cast<std::int32_t>(j)};
  const FirstMaximum found = k.first_maximum(c.row.data(), c.alive.data(), n);
  CHECK(found.index == first.index);
  CHECK(found.value == first.value);

  std::vector<float> lowered = c.row;
  k.lower_and_scale(lowered.data(), c.other.data(), 0.3F, n);
  for (std::int64_t j = 0; j < n; ++j) CHECK(lowered[j] == std::min(c.row[j], c.other[j]) * 0.3F);

  RowSums whole{0, 0};
  RowSums left{0, 0};
  for (std::int64_t j = 0; j < n; ++j) {
    const double entry = c.other[j];
    const double rest = c.other[j] - 0.3F;
    whole = {whole.entries + entry, whole.squares + entry * entry};
    left = {left.entries + rest, left.squares + rest * rest};
  }
  const RowSums unmoved = k.sums(c.other.data(), n);
  CHECK(unmoved.entries == Approx(whole.entries).margin(1e-13));
  CHECK(unmoved.squares == Approx(whole.squares).margin(1e-13));
  std::vector<float> moved = c.other;
  const RowSums sums = k.subtract(moved.data(), 0.3F, n);
  CHECK(sums.entries == Approx(left.entries).margin(1e-13));
  CHECK(sums.squares == Approx(left.squares).margin(1e-13));
  for (std::int64_t j = 0; j < n; ++j) CHECK(moved[j] == c.other[j] - 0.3F);
  // To the last bit what every processor has.
  const RowKernels& baseline = row_kernels(VectorWidth::k128);
  CHECK(unmoved.entries == baseline.sums(c.other.data(), n).entries);
  CHECK(unmoved.squares == baseline.sums(c.other.data(), n).squares);
  moved = c.other;
  const RowSums expected_sums = baseline.subtract(moved.data(), 0.3F, n);
  CHECK(sums.entries == expected_sums.entries);
  CHECK(sums.squares == expected_sums.squares);

  for (std::int64_t j = 0; j < n; ++j) {
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
      std::vector<float> damaged = c.row;
      damaged[j] = bad;
      CHECK_FALSE(k.all_finite(damaged.data(), n));
      CHECK_FALSE(k.update_column_maxima(damaged.data(), n, 9, maxima.data(), argument.data()));
    }
  }
  CHECK(k.all_finite(c.row.data(), n));
}

}  // namespace

TEST_CASE("row kernels of every width this processor has equal plain loops") {
  for (const VectorWidth width : {VectorWidth::k128, VectorWidth::k256, VectorWidth::k512}) {
    if (!has_row_kernels(width)) continue;
    Rng rng(11);
    for (const std::int64_t n : {0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 63, 64, 65, 127, 128, 130, 201})
      compare_with_plain_loops(row_kernels(width), n, rng);
  }
}

TEST_CASE(
    "the baseline kernels are always there, and nothing dead or -infinity counts as largest") {
  REQUIRE(has_row_kernels(VectorWidth::k128));
  const std::vector<float> row(40, -std::numeric_limits<float>::infinity());
  const std::vector<std::int32_t> alive(40, -1);
  CHECK(row_kernels().first_maximum(row.data(), alive.data(), 40).index == -1);
  const std::vector<float> ones(40, 1.0F);
  const std::vector<std::int32_t> dead(40, 0);
  CHECK(row_kernels().first_maximum(ones.data(), dead.data(), 40).index == -1);
}
