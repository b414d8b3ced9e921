#include "weightsmith/match/assignment.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <limits>
#include <numeric>
#include <set>

#include "support/expect_error.h"
#include "support/matrices.h"

using namespace weightsmith;
using namespace weightsmith::testing;

namespace {

double brute_force(const ScoreMatrix& scores) {
  std::vector<std::int32_t> order(scores.n);
  std::iota(order.begin(), order.end(), 0);
  double best = -std::numeric_limits<double>::infinity();
  do {
    double value = 0.0;
    for (std::int64_t i = 0; i < scores.n; ++i) value += scores.row(i)[order[i]];
    best = std::max(best, value);
  } while (std::next_permutation(order.begin(), order.end()));
  return best;
}

void check_certified(const at::Tensor& matrix, const std::string& what) {
  INFO(what);
  const ScoreMatrix scores = score_matrix(matrix, "test");
  const Assignment assignment = solve_assignment(scores);
  const Certificate certificate = certify(scores, assignment);
  CAPTURE(certificate.infeasibility, certificate.slackness, certificate.gap, certificate.tolerance);
  CHECK(certificate.holds());
  double value = 0.0;
  for (std::int64_t i = 0; i < scores.n; ++i) value += scores.row(i)[assignment.column[i]];
  CHECK(assignment.value == Approx(value).epsilon(1e-12));
}

}  // namespace

TEST_CASE("assignment equals brute force up to n = 7") {
  Rng rng(1);
  for (std::int64_t n = 1; n <= 7; ++n) {
    for (int trial = 0; trial < 40; ++trial) {
      at::Tensor m = random_matrix(n, n, rng, -3.0, trial % 2 == 0 ? 1.0 : -0.5);
      if (trial % 4 >= 2) m = at::round(m);  // many ties
      if (trial % 5 == 4) m.fill_(-2.0);     // nothing but ties
      const ScoreMatrix scores = score_matrix(m, "test");
      const Assignment assignment = solve_assignment(scores);
      CHECK(assignment.value == Approx(brute_force(scores)).margin(1e-12));
      CHECK(certify(scores, assignment).holds());
    }
  }
}

TEST_CASE("assignment of no rows is empty") {
  const at::Tensor m = at::empty({0, 0}, at::kFloat);
  const Assignment assignment = solve_assignment(score_matrix(m, "test"));
  CHECK(assignment.column.empty());
  CHECK(assignment.value == 0.0);
}

TEST_CASE("assignment is certified optimal on large matrices of every family") {
  Rng rng(2);
  const std::int64_t n = 1024;
  const at::Tensor factors = falling_factors(32, 2048, rng);
  const at::Tensor a = structured_features(factors, n, rng);
  check_certified(row_correlation(a, structured_features(factors, n, rng)), "independent units");
  check_certified(row_correlation(a, a + 0.3 * normal_matrix(n, 2048, rng)), "noisy copy");
  check_certified(row_correlation(a, a), "itself");
  check_certified(random_matrix(n, n, rng), "uniform");
  check_certified(at::mm(normal_matrix(n, 8, rng), normal_matrix(8, n, rng)), "low rank");
  check_certified(at::round(random_matrix(n, n, rng) * 8) / 8, "quantised");
  check_certified(at::zeros({n, n}, at::kFloat), "constant");
  check_certified(
      at::mm(at::arange(1.0, n + 1.0).view({n, 1}), at::arange(1.0, n + 1.0).view({1, n}))
          .to(at::kFloat),
      "product, the worst case of augmenting paths");
  at::Tensor dead = row_correlation(a, a).clone();
  dead.narrow(0, 100, 400).zero_();
  dead.narrow(1, 300, 500).zero_();
  check_certified(dead, "dead units");
}

TEST_CASE("assignment is certified at sizes around the register and list widths") {
  Rng rng(3);
  for (const std::int64_t n : {2, 3, 8, 15, 16, 17, 31, 33, 63, 64, 65, 66, 127, 129, 200}) {
    check_certified(random_matrix(n, n, rng), "uniform " + std::to_string(n));
    check_certified(at::round(random_matrix(n, n, rng) * 2), "ties " + std::to_string(n));
  }
}

TEST_CASE("assignment is exact over the whole range of float32") {
  Rng rng(4);
  const at::Tensor m = random_matrix(40, 40, rng);
  check_certified(m * 1e38, "huge");
  check_certified(m * 1e-38, "tiny");
  check_certified(m + 1e6, "offset");
}

TEST_CASE("assignment reads a strided block in place") {
  Rng rng(5);
  const at::Tensor whole = random_matrix(90, 90, rng);
  const at::Tensor block = whole.narrow(0, 20, 50).narrow(1, 30, 50);
  CHECK(solve_assignment(score_matrix(block, "test")).column ==
        solve_assignment(score_matrix(block.contiguous(), "test")).column);
}

TEST_CASE("assignment from any prices is an optimum") {
  Rng rng(10);
  for (std::int64_t n = 1; n <= 6; ++n) {
    for (int trial = 0; trial < 40; ++trial) {
      at::Tensor m = random_matrix(n, n, rng, -3.0, 1.0);
      if (trial % 2 == 1) m = at::round(m);
      const ScoreMatrix scores = score_matrix(m, "test");
      std::vector<double> start(n);
      for (double& price : start) price = rng.uniform(-10, 10);
      if (trial % 4 >= 2) std::fill(start.begin(), start.end(), 0.0);
      const Assignment assignment = solve_assignment(scores, "test", start);
      CHECK(assignment.value == Approx(brute_force(scores)).margin(1e-12));
      CHECK(certify(scores, assignment).holds());
    }
  }
}

TEST_CASE("assignment from the prices of a similar matrix is the same") {
  Rng rng(11);
  const std::int64_t n = 512;
  const at::Tensor factors = falling_factors(32, 1024, rng);
  const at::Tensor a = structured_features(factors, n, rng);
  const at::Tensor noise = random_matrix(n, n, rng);
  for (const at::Tensor& m :
       {row_correlation(a, structured_features(factors, n, rng)).contiguous(),
        row_correlation(a, a + 0.3 * normal_matrix(n, 1024, rng)).contiguous(), noise}) {
    const Assignment first = solve_assignment(score_matrix(m, "test"));
    for (const double change : {0.0, 0.01, 1.0}) {
      const at::Tensor changed = m + change * random_matrix(n, n, rng);
      const ScoreMatrix scores = score_matrix(changed, "test");
      const Assignment cold = solve_assignment(scores, "test");
      const Assignment warm = solve_assignment(scores, "test", first.column_dual);
      CHECK(certify(scores, warm).holds());
      CHECK(warm.column == cold.column);  // no ties here: there is but one
      CHECK(warm.value == Approx(cold.value).epsilon(1e-12));
    }
  }
}

TEST_CASE("assignment begins where it is told to") {
  Rng rng(12);
  const std::int64_t n = 128;
  const at::Tensor m = random_matrix(n, n, rng);
  const Assignment first = solve_assignment(score_matrix(m, "test"));
  // All prices moved alike are as good, and prices never fall.
  std::vector<double> moved = first.column_dual;
  for (double& price : moved) price += 8;
  const Assignment second = solve_assignment(score_matrix(m, "test"), "test", moved);
  CHECK(second.column == first.column);
  for (std::int64_t j = 0; j < n; ++j) CHECK(second.column_dual[j] >= moved[j]);
}

TEST_CASE("assignment recovers a planted permutation") {
  Rng rng(6);
  const std::int64_t n = 300;
  const std::vector<std::int64_t> planted = random_permutation(n, rng);
  at::Tensor m = random_matrix(n, n, rng, 0.0, 0.4);
  for (std::int64_t i = 0; i < n; ++i) m[i][planted[i]] = 0.9;
  const Assignment assignment = solve_assignment(score_matrix(m, "test"));
  CHECK(std::equal(planted.begin(), planted.end(), assignment.column.begin()));
}

TEST_CASE("the certificate fails for an assignment that is not optimal") {
  Rng rng(7);
  const at::Tensor m = random_matrix(50, 50, rng);
  const ScoreMatrix scores = score_matrix(m, "test");
  const Assignment best = solve_assignment(scores);
  Assignment swapped = best;
  std::swap(swapped.column[3], swapped.column[4]);
  CHECK_FALSE(certify(scores, swapped).holds());
  Assignment repeated = best;
  repeated.column[3] = repeated.column[4];
  CHECK_FALSE(certify(scores, repeated).holds());
  Assignment shifted = best;
  shifted.column_dual[0] -= 1e-6;
  CHECK_FALSE(certify(scores, shifted).holds());
}

TEST_CASE("assignment names the position of a score that is not finite") {
  Rng rng(8);
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity()}) {
    for (const std::int64_t column : {0, 36, 40}) {
      const at::Tensor m = random_matrix(41, 41, rng);
      m[17][column] = bad;
      expect_error(ErrorKind::kNumeric,
                   {"layer1: the score of row 17 and column " + std::to_string(column)},
                   [&] { solve_assignment(score_matrix(m, "layer1"), "layer1"); });
      expect_error(ErrorKind::kNumeric,
                   {"layer1: the score of row 17 and column " + std::to_string(column)}, [&] {
                     solve_assignment(score_matrix(m, "layer1"), "layer1",
                                      std::vector<double>(41, 0.0));
                   });
    }
  }
}

TEST_CASE("assignment refuses what is not a square float32 matrix") {
  expect_error(ErrorKind::kInput, {"fc"}, [] { score_matrix(at::zeros({3, 4}), "fc"); });
  expect_error(ErrorKind::kInput, {"fc"}, [] {
    score_matrix(at::zeros({3, 3}, at::kDouble), "fc");
  });
  expect_error(ErrorKind::kInput, {"fc"}, [] { score_matrix(at::zeros({3, 3}).t(), "fc"); });
  expect_error(ErrorKind::kInput, {"fc"}, [] { score_matrix(at::Tensor(), "fc"); });
}
