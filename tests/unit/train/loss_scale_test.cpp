#include "weightsmith/train/loss_scale.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

#include "support/expect_error.h"

namespace weightsmith {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// One parameter with a gradient, and one without.
std::vector<at::Tensor> with_gradient(const std::vector<float>& values) {
  std::vector<at::Tensor> parameters{
      at::zeros({static_cast<std::int64_t>(values.size())}).requires_grad_(true),
      at::zeros({3}).requires_grad_(true)};
  parameters[0].mutable_grad() = at::tensor(values);
  return parameters;
}

bool unscale(LossScale& scale, float value) { return scale.unscale(with_gradient({1.F, value})); }

TEST_CASE("gradients are divided by the scale", "[train]") {
  LossScale scale;
  CHECK(scale.value() == 65536);
  const auto parameters = with_gradient({65536.F, -3 * 65536.F});
  CHECK(scale.unscale(parameters));
  CHECK(parameters[0].grad().equal(at::tensor({1.F, -3.F})));
  CHECK_FALSE(parameters[1].grad().defined());
}

TEST_CASE("a scale halves when gradients overflow and doubles after 2000 good steps", "[train]") {
  LossScale scale;
  CHECK_FALSE(unscale(scale, kInfinity));
  CHECK(scale.value() == 32768);
  CHECK_FALSE(unscale(scale, std::numeric_limits<float>::quiet_NaN()));
  CHECK(scale.value() == 16384);
  for (int step = 0; step < 1999; ++step) CHECK(unscale(scale, 1));
  CHECK(scale.value() == 16384);
  CHECK(scale.good_steps() == 1999);
  CHECK(unscale(scale, 1));
  CHECK(scale.value() == 32768);
  CHECK(scale.good_steps() == 0);
  // A bad step begins the count anew.
  for (int step = 0; step < 1999; ++step) unscale(scale, 1);
  CHECK_FALSE(unscale(scale, -kInfinity));
  CHECK(scale.value() == 16384);
  for (int step = 0; step < 1999; ++step) unscale(scale, 1);
  CHECK(scale.value() == 16384);
}

TEST_CASE("a loss scale goes on where its state was taken", "[train]") {
  LossScale scale;
  unscale(scale, kInfinity);
  for (int step = 0; step < 1500; ++step) unscale(scale, 1);
  LossScale other;
  other.load_state(nlohmann::json::parse(scale.state().dump()));
  for (int step = 0; step < 500; ++step) {
    unscale(scale, 1);
    unscale(other, 1);
  }
  CHECK(other.value() == scale.value());
  CHECK(other.value() == 65536);
}

TEST_CASE("gradients that overflow at any scale end the run", "[train]") {
  LossScale scale;
  const std::string error = testing::error_of(ErrorKind::kNumeric, [&] {
    for (int step = 0; step < 100; ++step) unscale(scale, kInfinity);
  });
  CHECK_THAT(error, Catch::Contains("precision"));
}

}  // namespace
}  // namespace weightsmith
