// Linear CKA beside its definition, and what counts as penultimate features.
#include "weightsmith/distance/linear_cka.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <cmath>

#include "support/networks.h"
#include "weightsmith/model/taps.h"

namespace weightsmith {
namespace {

using testing::make_network;

/// HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with HSIC(K, L) = tr(K H L H) and H = I - 1/S, term by
/// term.
double slow_cka(const at::Tensor& x, const at::Tensor& y) {
  const auto s = x.size(0);
  const auto gram = [&](const at::Tensor& z) {
    std::vector<double> k(s * s, 0.0);
    for (std::int64_t i = 0; i < s; ++i)
      for (std::int64_t j = 0; j < s; ++j)
        for (std::int64_t f = 0; f < z.size(1); ++f)
          k[i * s + j] += z[i][f].item<double>() * z[j][f].item<double>();
    // H K H: rows and columns without their means.
    std::vector<double> rows(s, 0.0), columns(s, 0.0);
    double all = 0;
    for (std::int64_t i = 0; i < s; ++i)
      for (std::int64_t j = 0; j < s; ++j) {
        rows[i] += k[i * s + j] / s;
        columns[j] += k[i * s + j] / s;
        all += k[i * s + j] / (s * s);
      }
    for (std::int64_t i = 0; i < s; ++i)
      for (std::int64_t j = 0; j < s; ++j) k[i * s + j] += all - rows[i] - columns[j];
    return k;
  };
  const auto a = gram(x), b = gram(y);
  double ab = 0, aa = 0, bb = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    ab += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  return ab / std::sqrt(aa * bb);
}

TEST_CASE("CKA equals its definition, in stretches of any size", "[distance]") {
  at::manual_seed(1);
  // Means far from zero, more features than samples, fewer, and one.
  const std::vector<at::Tensor> features = {at::randn({12, 5}) + 40, at::randn({12, 20}) * 1e3,
                                            at::randn({12, 1}), at::randn({12, 5})};
  const at::Tensor all = linear_cka(features);
  REQUIRE(all.sizes() == at::IntArrayRef({4, 4}));
  for (int a = 0; a < 4; ++a)
    for (int b = 0; b < 4; ++b)
      CHECK(
          all[a][b].item<double>() ==
          Approx(slow_cka(features[a].to(at::kDouble), features[b].to(at::kDouble))).margin(1e-10));
  for (const std::int64_t bytes : {1, 4 * 12 * 8 * 5, 1 << 20})
    CHECK(at::allclose(linear_cka(features, {}, bytes), all, 1e-12, 1e-12));
  const at::Tensor one = linear_cka(features, 2);
  REQUIRE(one.sizes() == at::IntArrayRef({4}));
  CHECK(at::allclose(one, all.select(1, 2), 1e-12, 1e-12));
}

TEST_CASE("CKA does not see rotations, scales and shifts; constants align with nothing",
          "[distance]") {
  at::manual_seed(2);
  const at::Tensor x = at::randn({50, 8}, at::kDouble);
  const at::Tensor turn = std::get<0>(at::linalg_qr(at::randn({8, 8}, at::kDouble)));
  const at::Tensor stretched =
      at::matmul(x, at::diag(at::tensor({9., 1., 1., 1., 1., 1., 1., .1}, at::kDouble)));
  const at::Tensor found =
      linear_cka({x, at::matmul(x, turn) * 7 - 3, at::ones({50, 3}), stretched}, 0);
  CHECK(found[0].item<double>() == Approx(1).margin(1e-12));
  CHECK(found[1].item<double>() == Approx(1).margin(1e-10));
  CHECK(found[2].item<double>() == 0);
  CHECK(found[3].item<double>() < 0.9);
}

TEST_CASE("penultimate features are what the last layer reads", "[distance]") {
  for (const char* name : {"mlp", "convnet", "vit"}) {
    ModelRef ref;
    ref.builtin = name;
    ScriptModel model = ScriptModel::load(ref, {});
    const bool is_mlp = ref.builtin == "mlp";
    at::manual_seed(3);
    const at::Tensor x = ref.builtin == "vit" ? at::randn({3, 3, 32, 32})
                         : is_mlp             ? at::randn({3, 1, 8, 8})
                                              : at::randn({3, 1, 12, 12});
    const PenultimateFeatures features(model, x.narrow(0, 0, 1));
    REQUIRE(features.found());
    const at::Tensor seen = features(x);
    // Through the head by hand: the outputs.
    const TensorMap state = model.state_dict();
    const std::string head = is_mlp ? "fc3" : ref.builtin == "vit" ? "heads.head" : "fc";
    at::Tensor outputs =
        at::matmul(seen, state.at(head + ".weight").t()) + state.at(head + ".bias");
    CHECK(at::allclose(outputs, model.forward(x), 1e-4, 1e-5));
  }
  // No layer with weights; and a row of data that is not a sample's.
  ScriptModel none(make_network({{"w", {1, 4}}}, "return x.flatten(1) * self.w"), "none");
  CHECK_FALSE(PenultimateFeatures(none, at::randn({2, 4})).found());
  ScriptModel weights_only(
      make_network({{"w", {2, 4}}, {"v", {4, 4}}},
                   "return x.flatten(1) * torch.matmul(self.w, self.v).sum(0)"),
      "weights");
  CHECK_FALSE(PenultimateFeatures(weights_only, at::randn({2, 4})).found());
}

}  // namespace
}  // namespace weightsmith
