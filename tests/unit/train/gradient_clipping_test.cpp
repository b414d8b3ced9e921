#include "weightsmith/train/gradient_clipping.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <cmath>

namespace weightsmith {
namespace {

std::vector<at::Tensor> with_gradients() {
  std::vector<at::Tensor> parameters;
  for (int i = 0; i < 3; ++i) parameters.push_back(at::zeros({2}).requires_grad_(true));
  parameters[0].mutable_grad() = at::tensor({3.F, -4.F});
  parameters[2].mutable_grad() = at::tensor({12.F, 0.F});
  return parameters;
}

TEST_CASE("gradients are limited by value, then by their norm together", "[train]") {
  auto parameters = with_gradients();  // of norm 13; parameter 1 has none
  clip_gradients(parameters, 14.0, 12.5);
  CHECK(parameters[0].grad().equal(at::tensor({3.F, -4.F})));
  CHECK(parameters[2].grad().equal(at::tensor({12.F, 0.F})));
  clip_gradients(parameters, 6.5, std::nullopt);
  CHECK(at::allclose(parameters[0].grad(), at::tensor({1.5F, -2.F})));
  CHECK(at::allclose(parameters[2].grad(), at::tensor({6.F, 0.F})));
  CHECK_FALSE(parameters[1].grad().defined());

  parameters = with_gradients();
  clip_gradients(parameters, std::nullopt, 3.5);
  CHECK(parameters[0].grad().equal(at::tensor({3.F, -3.5F})));
  CHECK(parameters[2].grad().equal(at::tensor({3.5F, 0.F})));

  parameters = with_gradients();
  clip_gradients(parameters, 1.0, 3.0);
  const double norm = std::sqrt(9 + 9 + 9);
  CHECK(parameters[0].grad()[1].item<double>() == Approx(-3 / norm));
  CHECK(parameters[2].grad()[0].item<double>() == Approx(3 / norm));

  clip_gradients({at::zeros({2}).requires_grad_(true)}, 1.0, 1.0);  // none at all
}

}  // namespace
}  // namespace weightsmith
