#include "weightsmith/merge/landscape.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "support/expect_error.h"
#include "weightsmith/core/error.h"
#include "weightsmith/core/threads.h"
#include "weightsmith/model/builtin.h"

namespace weightsmith {
namespace {

using testing::expect_error;

TensorMap state(double a, double b, double c) {
  return {{"w", at::tensor({a, b}, at::kFloat)},
          {"v", at::tensor({c}, at::kFloat)},
          {"running", at::tensor({100 * a}, at::kFloat)},
          {"count", at::tensor({3}, at::kLong)}};
}

TEST_CASE("blended states are affine combinations", "[merge]") {
  const TensorMap blend =
      blended_state({state(1, 2, 3), state(5, 6, 7), state(0, 1, 0)}, {0.5, 0.75, -0.25});
  CHECK(at::allclose(blend.at("w"), at::tensor({4.25, 5.25}, at::kFloat)));
  CHECK(at::allclose(blend.at("v"), at::tensor({6.75}, at::kFloat)));
  CHECK(at::equal(blend.at("count"), at::tensor({3}, at::kLong)));
  const TensorMap half = blended_state({{{"w", at::full({2}, 60000.0).to(at::kHalf)}},
                                        {{"w", at::full({2}, 60000.0).to(at::kHalf)}}},
                                       {0.5, 0.5});
  CHECK(half.at("w").scalar_type() == at::kHalf);
  CHECK(half.at("w").isfinite().all().item<bool>());
}

TEST_CASE("the plane keeps distances and finds the weights of its points", "[merge]") {
  const std::vector<TensorMap> corners{state(1, 0, 0), state(4, 4, 0), state(0, 1, 2)};
  const std::optional<ModelPlane> found =
      ModelPlane::through(corners[0], corners[1], corners[2], {"running"});
  REQUIRE(found);
  const ModelPlane& plane = *found;
  const auto flat = [](const TensorMap& s) { return at::cat({s.at("w"), s.at("v")}); };
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) {
      const double apart =
          std::hypot(plane.place(i)[0] - plane.place(j)[0], plane.place(i)[1] - plane.place(j)[1]);
      const at::Tensor difference = flat(corners[i]) - flat(corners[j]);
      CHECK(apart == Approx(difference.norm().item<double>()).margin(1e-6));
    }
    const auto w = plane.weights(plane.place(i)[0], plane.place(i)[1]);
    for (int j = 0; j < 3; ++j) CHECK(w[j] == Approx(i == j ? 1 : 0).margin(1e-12));
  }
  // The point of some weights lies where it should.
  const auto w = plane.weights(1.3, -0.4);
  CHECK(w[0] + w[1] + w[2] == Approx(1));
  double x = 0;
  double y = 0;
  for (int i = 0; i < 3; ++i) {
    x += w[i] * plane.place(i)[0];
    y += w[i] * plane.place(i)[1];
  }
  CHECK(x == Approx(1.3));
  CHECK(y == Approx(-0.4));
  const auto grid = plane.grid(0, 5, 0.5);
  CHECK(grid.size() == 5);
  CHECK(grid[4] - grid[0] == Approx(2 * (plane.place(1)[0] - std::min(0.0, plane.place(2)[0]))));
  CHECK_FALSE(ModelPlane::through(state(0, 0, 0), state(1, 1, 1), state(2, 2, 2), {"running"}));
}

TEST_CASE("a barrier is the rise above the line between the ends", "[merge]") {
  CHECK(loss_barrier({0, 0.25, 0.5, 1}, {1, 1.75, 1.4, 3}) == Approx(0.25));
  CHECK(loss_barrier({0, 0.5, 1}, {1, 0.5, 1}) == 0);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK(std::isnan(loss_barrier({0, 0.5, 1}, {1, nan, 1})));
}

TEST_CASE("every network is scored once, in a copy of its own, on any number of threads",
          "[merge]") {
  const ScriptModel pattern(build_builtin("mlp", {{"hidden", {4}}}, 1), "pattern");
  const TensorMap before = pattern.state_dict();
  const at::Tensor untouched = before.at("fc1.bias").detach().clone();
  const int threads_before = at::get_num_threads();
  set_thread_count(2);
  for (const int threads : {1, 3, 20}) {
    std::vector<double> found(10, -1);
    std::atomic<int> alone{0};
    score_networks(
        pattern, 10, threads,
        [&](std::int64_t k) {
          TensorMap changed = before;
          changed["fc1.bias"] = at::full({4}, static_cast<double>(k));
          return changed;
        },
        [&](std::int64_t, ScriptModel& network) {
          if (at::get_num_threads() == 1) ++alone;
          Evaluation e;
          e.loss = network.state_dict().at("fc1.bias").mean().item<double>();
          return std::vector<Evaluation>{e};
        },
        [&](std::int64_t k, const std::vector<Evaluation>& scores) { found[k] = scores[0].loss; });
    for (int k = 0; k < 10; ++k) CHECK(found[k] == k);
    CHECK(alone == 10);
    CHECK(at::get_num_threads() == 2);
    int later = 0;
    std::thread([&later] { later = at::get_num_threads(); }).join();
    CHECK(later == 2);
  }
  set_thread_count(threads_before);
  CHECK(at::equal(before.at("fc1.bias"), untouched));
}

TEST_CASE("an error in any thread ends the survey and comes out", "[merge]") {
  const ScriptModel pattern(build_builtin("mlp", {{"hidden", {4}}}, 1), "pattern");
  const auto same = [&](std::int64_t) { return pattern.state_dict(); };
  for (const int threads : {1, 4}) {
    int done = 0;
    expect_error(ErrorKind::kInput, {"broken"}, [&] {
      score_networks(
          pattern, 50, threads, same,
          [](std::int64_t, ScriptModel&) -> std::vector<Evaluation> {
            throw Error(ErrorKind::kInput, "broken", "on purpose");
          },
          [&](std::int64_t, const auto&) { ++done; });
    });
    CHECK(done == 0);
    expect_error(ErrorKind::kOutput, {"disk"}, [&] {
      score_networks(
          pattern, 50, threads, same,
          [](std::int64_t, ScriptModel&) { return std::vector<Evaluation>(1); },
          [](std::int64_t, const auto&) { throw Error(ErrorKind::kOutput, "disk", "full"); });
    });
  }
}

}  // namespace
}  // namespace weightsmith
