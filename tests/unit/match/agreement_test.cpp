#include "weightsmith/match/agreement.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "support/expect_error.h"
#include "support/matrices.h"
#include "weightsmith/match/align.h"

using namespace weightsmith;
using namespace weightsmith::testing;

TEST_CASE("agreement is the mean of the matched similarities, by any similarity") {
  Rng rng(1);
  const Similarity s = all_pairs_similarity(symmetric_matrix(20, 0, rng), 2, "test");
  const Matching aligned = align(s, 1, "test");
  CHECK(agreement(s, aligned, "test") == Approx(aligned.value).epsilon(1e-6));
  const Similarity other = all_pairs_similarity(symmetric_matrix(20, 0, rng), 2, "test");
  double mean = 0;
  for (std::int64_t k = 0; k < 10; ++k)
    mean += other.values[aligned.slot[10 + k]][10 + k].item<double>() / 10;
  CHECK(agreement(other, aligned, "test") == Approx(mean).epsilon(1e-6));
}

TEST_CASE("a slot counts once a joining, with the mean of its pairs") {
  const at::Tensor values = at::arange(16, at::kFloat).view({4, 4});
  const Similarity s = all_pairs_similarity(values, 2, "test");
  // Units 0, 1 and 2 in one slot (two joinings), unit 3 alone.
  const Matching m = make_matching({2, 2}, 2, {0, 0, 0, 1}, 0);
  CHECK(agreement(s, m, "test") == Approx((1.0 + 2.0 + 6.0) / 3));
  // Units 0 and 3, and 1 and 2.
  CHECK(agreement(s, make_matching({2, 2}, 2, {0, 1, 1, 0}, 0), "test") == Approx((3.0 + 6.0) / 2));
  // With the pairs of model 0 alone, the pair 0-1 of one model is not seen.
  const Similarity cross{Similarity::Scope::kCrossModel,
                         {2, 2},
                         values.narrow(0, 0, 2).narrow(1, 2, 2).contiguous().view({1, 2, 2})};
  CHECK(agreement(cross, m, "test") == Approx((2.0 + 6.0) / 2));
  CHECK(agreement(s, make_matching({2, 2}, 4, {0, 1, 2, 3}, 0), "test") == 0);
  expect_error(ErrorKind::kInput, {"group a", "6 units"},
               [&] { agreement(s, identity_matching(2, 3), "group a"); });
}
