#include "weightsmith/match/similarity.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <limits>

#include "support/expect_error.h"
#include "support/matrices.h"
#include "weightsmith/match/similarity_accumulator.h"

using namespace weightsmith;
using namespace weightsmith::testing;
using Scope = Similarity::Scope;

namespace {

/// From all observations at once, in double: rows of f (O, L).
at::Tensor slow_correlation(const at::Tensor& f) {
  const at::Tensor x = f.to(at::kDouble);
  const at::Tensor centred = x - x.mean(1, true);
  const at::Tensor cov = at::mm(centred, centred.t()) / static_cast<double>(x.size(1));
  const at::Tensor sigma = cov.diagonal().sqrt();
  return cov / at::outer(sigma, sigma).clamp_min(1e-7);
}

at::Tensor slow_cosine(const at::Tensor& f) {
  const at::Tensor x = f.to(at::kDouble);
  const at::Tensor norm = x.norm(2, {1});
  return at::mm(x, x.t()) / at::outer(norm, norm);
}

double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

at::Tensor cross_blocks(const at::Tensor& all, std::int64_t models) {
  const std::int64_t n = all.size(0) / models;
  std::vector<at::Tensor> blocks;
  for (std::int64_t i = 1; i < models; ++i)
    blocks.push_back(all.narrow(0, 0, n).narrow(1, i * n, n));
  return at::stack(blocks);
}

at::Tensor flat(const at::Tensor& f, std::int64_t dim) {
  return f.movedim(dim, 0).reshape({f.size(dim), -1});
}

}  // namespace

TEST_CASE("accumulated correlation and cosine equal those of all observations at once") {
  Rng rng(41);
  const std::int64_t n = 7;
  const std::int64_t models = 3;
  SimilarityAccumulator all({models, n}, Scope::kAllPairs);
  SimilarityAccumulator cross({models, n}, Scope::kCrossModel);
  std::vector<at::Tensor> pieces;
  const auto add = [&](const std::vector<std::int64_t>& shape, std::int64_t dim, double offset) {
    std::vector<at::Tensor> features;
    std::vector<at::Tensor> rows;
    for (std::int64_t i = 0; i < models; ++i) {
      std::int64_t size = 1;
      for (const std::int64_t s : shape) size *= s;
      features.push_back(normal_matrix(1, size, rng).view(shape) + offset * static_cast<double>(i));
      rows.push_back(
          flat(features.back(), dim < 0 ? dim + static_cast<std::int64_t>(shape.size()) : dim));
    }
    all.add(features, dim, "tap");
    cross.add(features, dim, "tap");
    pieces.push_back(at::cat(rows));
  };
  add({4, n, 3, 5}, 1, 0.0);  // images
  add({2, n, 3, 5}, 1, 2.0);  // a smaller last batch whose mean has drifted
  add({3, 6, n}, -1, -1.0);   // tokens: another tap of the group
  add({n, 5, 2}, 0, 0.5);     // a weight's output axis
  add({n}, 0, 1.0);           // a bias
  const at::Tensor f = at::cat(pieces, 1);
  CHECK(all.count() == f.size(1));
  const Similarity correlation = all.correlation("tap");
  CHECK(largest_difference(correlation.values, slow_correlation(f)) < 2e-6);
  CHECK(at::equal(correlation.values, correlation.values.t()));
  CHECK(largest_difference(all.cosine("tap").values, slow_cosine(f)) < 2e-6);
  CHECK(largest_difference(cross.correlation("tap").values,
                           cross_blocks(slow_correlation(f), models)) < 2e-6);
  CHECK(largest_difference(cross.cosine("tap").values, cross_blocks(slow_cosine(f), models)) <
        2e-6);
  check_similarity(cross.correlation("tap"), "test");
}

TEST_CASE("models with unequal numbers of units are compared unit by unit") {
  Rng rng(45);
  const std::vector<std::int64_t> units{3, 7, 1};
  const UnitStack stack(units);
  SimilarityAccumulator all(stack, Scope::kAllPairs);
  std::vector<at::Tensor> pieces;
  for (const std::int64_t batch : {4, 2}) {
    std::vector<at::Tensor> features;
    std::vector<at::Tensor> rows;
    for (const std::int64_t n : units) {
      features.push_back(normal_matrix(1, batch * n * 6, rng).view({batch, n, 2, 3}) + 3.0);
      rows.push_back(flat(features.back(), 1));
    }
    all.add(features, 1, "tap");
    pieces.push_back(at::cat(rows));
  }
  const at::Tensor f = at::cat(pieces, 1);
  CHECK(largest_difference(all.correlation("tap").values, slow_correlation(f)) < 2e-6);
  CHECK(largest_difference(all.cosine("tap").values, slow_cosine(f)) < 2e-6);
  expect_error(ErrorKind::kInput, {"tap", "model 1", "7 units"}, [&] {
    all.add({at::ones({2, 3, 2}), at::ones({2, 7, 3}), at::ones({2, 1, 2})}, 1, "tap");
  });
}

TEST_CASE("large means do not cancel") {
  Rng rng(42);
  const std::int64_t n = 12;
  SimilarityAccumulator statistics({2, n}, Scope::kAllPairs);
  std::vector<at::Tensor> pieces;
  for (int batch = 0; batch < 6; ++batch) {
    const at::Tensor factors = normal_matrix(4, 200, rng);
    std::vector<at::Tensor> features;
    for (int i = 0; i < 2; ++i) {
      Rng filters(43, {static_cast<std::uint64_t>(i)});
      const at::Tensor rows = at::mm(normal_matrix(n, 4, filters), factors) * 0.005 + 50.0;
      features.push_back(rows.t());  // (positions, units)
    }
    statistics.add(features, 1, "tap");
    pieces.push_back(at::cat({features[0].t(), features[1].t()}));
  }
  // The inputs themselves are rounded to float32 at 50 (4e-6 of a deviation of 0.01): the reference
  // sees the same ones.
  CHECK(largest_difference(statistics.correlation("tap").values,
                           slow_correlation(at::cat(pieces, 1))) < 2e-6);
}

TEST_CASE("pieces larger than the working copy give the same as small ones") {
  Rng rng(44);
  const at::Tensor a = normal_matrix(3000, 6, rng);
  const at::Tensor b = normal_matrix(3000, 6, rng);
  SimilarityAccumulator whole({2, 6}, Scope::kAllPairs);
  SimilarityAccumulator parts({2, 6}, Scope::kAllPairs);
  whole.add({a, b}, 1, "tap");
  for (std::int64_t begin = 0; begin < 3000; begin += 700) {
    const std::int64_t length = std::min<std::int64_t>(700, 3000 - begin);
    parts.add({a.narrow(0, begin, length), b.narrow(0, begin, length)}, 1, "tap");
  }
  CHECK(largest_difference(whole.correlation("t").values, parts.correlation("t").values) < 1e-6);
  // Beyond 64 MB: 24 units of 1.5 M positions.
  const at::Tensor big = at::randn({3, 8, 500, 1000});
  SimilarityAccumulator chunked({1, 8}, Scope::kAllPairs);
  chunked.add({big}, 1, "tap");
  CHECK(chunked.count() == 1500000);
  CHECK(largest_difference(chunked.correlation("t").values, slow_correlation(flat(big, 1))) < 1e-5);
}

TEST_CASE("members of any layout added together count as all their observations") {
  // More units than a tile has, and no multiple of what is copied at once.
  const std::int64_t n = 77;
  const std::int64_t models = 2;
  at::manual_seed(48);
  Rng rng(49);
  const auto in_order = [&](const at::Tensor& values, std::int64_t dim) {
    return SimilarityAccumulator::UnitRows{values, dim, random_permutation(values.size(dim), rng)};
  };
  const auto weights_of = [&] {
    const auto images = at::MemoryFormat::ChannelsLast;
    return std::vector<SimilarityAccumulator::UnitRows>{
        {at::randn({n, 5})},                      // a row each
        {at::randn({40, n}).t()},                 // side by side
        {at::randn({6, n, 3, 3}).movedim(1, 0)},  // runs of 9
        {at::randn({3, n, 2, 5}).contiguous(images).movedim(1, 0)},
        {at::randn({n, 8}).narrow(1, 2, 3)},  // a part of a row
        {at::randn({n}).to(at::kDouble)},     // one number each
        {at::randn({n, 4, 0})},               // nothing
        // The same in an order of their own.
        in_order(at::randn({n, 1, 50}), 2),
        in_order(at::randn({40, 1, n}).movedim(2, 0), 2),
        in_order(at::randn({n, 2, 6, 3, 3}), 2),
        in_order(at::randn({7, n, 3, 3}).movedim(1, 0).unsqueeze(1), 2),
        in_order(at::randn({n, 2, 4, 5}), 3),
    };
  };
  const std::vector<std::vector<SimilarityAccumulator::UnitRows>> of_model{weights_of(),
                                                                           weights_of()};
  std::vector<std::vector<SimilarityAccumulator::UnitRows>> members;
  std::vector<at::Tensor> rows(models);
  for (std::size_t m = 0; m < of_model[0].size(); ++m)
    members.push_back({of_model[0][m], of_model[1][m]});
  for (std::int64_t i = 0; i < models; ++i) {
    std::vector<at::Tensor> all;
    for (const SimilarityAccumulator::UnitRows& w : of_model[i]) {
      if (w.values.numel() == 0) continue;
      const at::Tensor ordered =
          w.dim == 0 ? w.values : w.values.index_select(w.dim, at::tensor(w.order, at::kLong));
      all.push_back(ordered.to(at::kFloat).reshape({n, -1}));
    }
    rows[i] = at::cat(all, 1);
  }
  for (const Scope scope : {Scope::kAllPairs, Scope::kCrossModel}) {
    SimilarityAccumulator together({models, n}, scope);
    together.add_together(members, "layer");
    CHECK(together.count() == rows[0].size(1));
    const at::Tensor wanted = slow_correlation(at::cat(rows));
    CHECK(largest_difference(together.correlation("t").values,
                             scope == Scope::kAllPairs ? wanted : cross_blocks(wanted, models)) <
          1e-5);
  }
}

TEST_CASE("rows that are centred and rows that stay count together") {
  Rng rng(50);
  const std::vector<double> means{0.0, 0.2, -0.24, 0.26, -1.0, 50.0};  // in deviations
  const auto units = static_cast<std::int64_t>(means.size());
  SimilarityAccumulator statistics({2, units}, Scope::kAllPairs);
  std::vector<at::Tensor> all;
  for (std::int64_t piece = 0; piece < units; ++piece) {
    const at::Tensor common = normal_matrix(1, 400, rng);
    std::vector<at::Tensor> features;
    for (int model = 0; model < 2; ++model) {
      at::Tensor f = common + normal_matrix(units, 400, rng);
      for (std::int64_t u = 0; u < units; ++u) f[u] += 1.4 * means[(u + piece) % units];
      features.push_back(f);
    }
    statistics.add(features, 0, "tap");
    all.push_back(at::cat(features));
  }
  const at::Tensor rows = at::cat(all, 1);
  CHECK(largest_difference(statistics.correlation("t").values, slow_correlation(rows)) < 2e-6);
  CHECK(largest_difference(statistics.cosine("t").values,
                           at::cosine_similarity(rows.to(at::kDouble).unsqueeze(1),
                                                 rows.to(at::kDouble).unsqueeze(0), 2)) < 2e-6);
}

TEST_CASE("dead units have similarity 0, small variances are damped by the authors' bound") {
  Rng rng(45);
  at::Tensor f = normal_matrix(5, 100, rng);
  f[3].fill_(0.1);  // constant, and not representable exactly
  f[4].mul_(1e-5);
  SimilarityAccumulator statistics({1, 5}, Scope::kAllPairs);
  statistics.add({f.narrow(1, 0, 30)}, 0, "w");
  statistics.add({f.narrow(1, 30, 70)}, 0, "w");
  const at::Tensor c = statistics.correlation("w").values;
  CHECK(c[3].abs().max().item<double>() == 0.0);
  CHECK(c[4][4].item<double>() < 0.01);
  CHECK(largest_difference(c, slow_correlation(f)) < 2e-6);
  f[3].zero_();
  SimilarityAccumulator zero({1, 5}, Scope::kAllPairs);
  zero.add({f}, 0, "w");
  CHECK(zero.cosine("w").values[3].abs().max().item<double>() == 0.0);
}

TEST_CASE("other float types are taken") {
  Rng rng(46);
  const at::Tensor f = normal_matrix(4, 50, rng);
  SimilarityAccumulator plain({1, 4}, Scope::kAllPairs);
  SimilarityAccumulator wide({1, 4}, Scope::kAllPairs);
  plain.add({f}, 0, "w");
  wide.add({f.to(at::kDouble)}, 0, "w");
  CHECK(at::equal(plain.correlation("w").values, wide.correlation("w").values));
}

TEST_CASE("features that are not finite name the tap, the model and the unit") {
  Rng rng(47);
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    const at::Tensor a = normal_matrix(10, 4, rng);
    const at::Tensor b = normal_matrix(10, 4, rng);
    b[7][2] = bad;
    for (const Scope scope : {Scope::kAllPairs, Scope::kCrossModel}) {
      SimilarityAccumulator statistics({2, 4}, scope);
      expect_error(ErrorKind::kNumeric,
                   {"layer2.conv1: unit 2 of model 1 has features that are NaN or infinite"}, [&] {
                     statistics.add({a, b}, 1, "layer2.conv1");
                   });
    }
  }
  SimilarityAccumulator statistics({1, 2}, Scope::kAllPairs);
  expect_error(ErrorKind::kNumeric, {"too large"}, [&] {
    statistics.add({at::rand({2, 10}) * 1e30}, 0, "fc");
  });
}

TEST_CASE("what is taken gives finite products, however large") {
  Rng rng(51);
  const std::int64_t n = 400;
  at::Tensor row = normal_matrix(1, n, rng).to(at::kDouble);
  row = (row - row.mean()) / row.std(false);
  row = (row + 0.249) * std::sqrt(std::numeric_limits<float>::max() / static_cast<double>(n));
  for (const double share : {0.5, 0.93, 0.95, 0.99}) {  // of the largest sum of squares
    const at::Tensor f = (row * std::sqrt(share)).to(at::kFloat).expand({2, n});
    SimilarityAccumulator statistics({1, 2}, Scope::kAllPairs);
    try {
      statistics.add({f}, 0, "fc");
    } catch (const Error& e) {
      CHECK(share > 0.94);
      CHECK_THAT(e.what(), Catch::Contains("too large"));
      continue;
    }
    CHECK(statistics.correlation("fc").values[0][1].item<float>() == Approx(1.0F));
  }
}

TEST_CASE("features of the wrong shape or number, and none at all, are refused") {
  SimilarityAccumulator statistics({2, 4}, Scope::kAllPairs);
  const at::Tensor f = at::rand({3, 4});
  expect_error(ErrorKind::kInput, {"features of 1 models"}, [&] { statistics.add({f}, 1, "t"); });
  expect_error(ErrorKind::kInput, {"model 1 are"}, [&] { statistics.add({f, f.t()}, 1, "t"); });
  expect_error(ErrorKind::kInput, {"4 units along dimension 0"}, [&] {
    statistics.add({f, f}, 0, "t");
  });
  expect_error(ErrorKind::kInput, {"missing"}, [&] { statistics.add({f, {}}, 1, "t"); });
  expect_error(ErrorKind::kInput, {"dimension 5"}, [&] { statistics.add({f, f}, 5, "t"); });
  statistics.add({at::empty({0, 4}), at::empty({0, 4})}, 1, "t");
  expect_error(ErrorKind::kInput, {"fc: no features"}, [&] { statistics.correlation("fc"); });
}

TEST_CASE("packed similarities hold what the whole ones do") {
  Rng rng(46);
  // More units than a tile or a strip has, and not as many in every model.
  for (const UnitStack& stack :
       {UnitStack(2, 300), UnitStack(std::vector<std::int64_t>{130, 1, 77})}) {
    SimilarityAccumulator all(stack, Scope::kAllPairs);
    std::vector<at::Tensor> features;
    for (std::int64_t i = 0; i < stack.models(); ++i)
      features.push_back(random_matrix(stack.units(i), 40, rng));
    all.add(features, 0, "x");
    const at::Tensor slow = slow_correlation(at::cat(features));
    const Similarity whole = all.correlation("x");
    CHECK(largest_difference(whole.values, slow) < 1e-5);
    CHECK(at::equal(whole.values, whole.values.t()));

    const PackedSimilarity kept = all.packed_correlation("x");
    CHECK(kept.values.numel() == stack.size() * (stack.size() + 1) / 2);
    CHECK(at::equal(kept.values, packed(whole).values));
    CHECK(at::equal(all.packed_cosine("x").values, packed(all.cosine("x")).values));
    CHECK(at::equal(unpacked(kept, Scope::kAllPairs).values, whole.values));
    if (!stack.is_even()) continue;
    const at::Tensor part = unpacked(kept, Scope::kCrossModel).values;
    CHECK(at::equal(part, cross_blocks(whole.values, stack.models())));
    SimilarityAccumulator cross(stack, Scope::kCrossModel);
    cross.add(features, 0, "x");
    CHECK(largest_difference(cross.packed_correlation("x").values, part) < 1e-6);
  }
  PackedSimilarity wrong{Scope::kAllPairs, {2, 3}, at::zeros({20})};
  expect_error(ErrorKind::kInput, {"x.safetensors", "[21]"},
               [&] { check_similarity(wrong, "x.safetensors"); });
}
