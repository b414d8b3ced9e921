#include "weightsmith/distance/path_integral.h"

#include <ATen/ATen.h>

#include <cmath>
#include <numbers>
#include <utility>

#include "weightsmith/core/error.h"

namespace weightsmith {

EnumNames<PathRule> enum_names(PathRule) {
  return {{PathRule::kGaussLegendre, "gausslegendre"},
          {PathRule::kRiemannLeft, "riemann_left"},
          {PathRule::kRiemannRight, "riemann_right"},
          {PathRule::kRiemannMiddle, "riemann_middle"},
          {PathRule::kRiemannTrapezoid, "riemann_trapezoid"}};
}

namespace {

/// The Legendre polynomial of degree n and its derivative at x, by the three-term recurrence.
std::pair<double, double> legendre(std::int64_t n, double x) {
  double before = 1;
  double value = x;
  for (std::int64_t k = 2; k <= n; ++k) {
    const auto d = static_cast<double>(k);
    before = std::exchange(value, ((2 * d - 1) * x * value - (d - 1) * before) / d);
  }
  return {value, static_cast<double>(n) * (x * value - before) / (x * x - 1)};
}

PathPoints gauss_legendre(std::int64_t n) {
  PathPoints points{std::vector<double>(n), std::vector<double>(n)};
  if (n == 1) return {{0.5}, {1.0}};
  for (std::int64_t i = 0; i < (n + 1) / 2; ++i) {
    // Tricomi's first approximation, then Newton's method.
    double x = std::cos(std::numbers::pi * (static_cast<double>(i) + 0.75) /
                        (static_cast<double>(n) + 0.5));
    if (2 * i + 1 == n) x = 0;
    for (int round = 0; round < 20; ++round) {
      const auto [value, slope] = legendre(n, x);
      const double step = value / slope;
      x -= step;
      if (std::abs(step) < 1e-16) break;
    }
    const double slope = legendre(n, x).second;
    const double weight = 1 / ((1 - x * x) * slope * slope);  // half of that on [-1, 1]
    points.alphas[i] = (1 - x) / 2;
    points.alphas[n - 1 - i] = (1 + x) / 2;
    points.weights[i] = points.weights[n - 1 - i] = weight;
  }
  return points;
}

/// float32 values as LibTorch's linspace rounds them: which way depends on the processor's vectors,
/// so nothing but itself gives the same.
std::vector<double> float_linspace(double first, double last, std::int64_t n) {
  const at::Tensor values = at::linspace(first, last, n, at::kFloat).to(at::kDouble);
  const auto* data = values.data_ptr<double>();
  return {data, data + n};
}

}  // namespace

PathPoints path_points(PathRule rule, std::int64_t steps) {
  WS_CHECK(steps >= 1);
  if (rule == PathRule::kGaussLegendre) return gauss_legendre(steps);
  const double width = 1 / static_cast<double>(steps);
  PathPoints points{{}, std::vector<double>(steps, width)};
  switch (rule) {
    case PathRule::kRiemannLeft:
      points.alphas = float_linspace(0, 1 - width, steps);
      break;
    case PathRule::kRiemannRight:
      points.alphas = float_linspace(width, 1, steps);
      break;
    case PathRule::kRiemannMiddle:
      points.alphas = float_linspace(width / 2, 1 - width / 2, steps);
      break;
    default:
      points.alphas = float_linspace(0, 1, steps);
      points.weights.front() /= 2;
      // A single point is first and last, and halved once.
      if (steps > 1) points.weights.back() /= 2;
  }
  return points;
}

}  // namespace weightsmith
