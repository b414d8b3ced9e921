#include "weightsmith/eval/paired_test.h"

#include <cmath>
#include <limits>
#include <numeric>

#include "weightsmith/core/error.h"

namespace weightsmith {
namespace {

/// The continued fraction of the incomplete beta function (DLMF 8.17.22), by Lentz's method; good
/// for x < (a + 1) / (a + b + 2).
double beta_fraction(double a, double b, double x) {
  constexpr double kTiny = 1e-300;
  constexpr int kTerms = 10000;
  double numerator = 1;
  double denominator = 1 - (a + b) * x / (a + 1);
  if (std::abs(denominator) < kTiny) denominator = kTiny;
  denominator = 1 / denominator;
  double value = denominator;
  for (int m = 1; m <= kTerms; ++m) {
    const double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
    const double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
    double change = 1;
    for (const double term : {even, odd}) {
      denominator = 1 + term * denominator;
      if (std::abs(denominator) < kTiny) denominator = kTiny;
      denominator = 1 / denominator;
      numerator = 1 + term / numerator;
      if (std::abs(numerator) < kTiny) numerator = kTiny;
      change = numerator * denominator;
      value *= change;
    }
    if (std::abs(change - 1) < std::numeric_limits<double>::epsilon()) break;
  }
  return value;
}

/// The regularised incomplete beta function I_x(a, b).
double incomplete_beta(double a, double b, double x) {
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  const double front = std::exp(std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b) +
                                a * std::log(x) + b * std::log1p(-x));
  if (x < (a + 1) / (a + b + 2)) return front * beta_fraction(a, b, x) / a;
  return 1 - front * beta_fraction(b, a, 1 - x) / b;
}

/// The t with P(|T| > t) = 0.05.
double student_bound(double freedom) {
  double low = 0;
  double high = 20;  // with one degree of freedom it is 12.7
  for (int i = 0; i < 200; ++i) {
    const double middle = (low + high) / 2;
    (student_two_sided(middle, freedom) > 0.05 ? low : high) = middle;
  }
  return low;
}

}  // namespace

SampleMoments sample_moments(const std::vector<double>& values) {
  WS_CHECK(!values.empty());
  const auto n = static_cast<double>(values.size());
  SampleMoments moments;
  moments.mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  if (values.size() == 1) return moments;
  double squares = 0;
  for (const double value : values) squares += (value - moments.mean) * (value - moments.mean);
  moments.deviation = std::sqrt(squares / (n - 1));
  return moments;
}

double student_two_sided(double t, double freedom) {
  return incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t));
}

PairedTest paired_test(const std::vector<double>& a, const std::vector<double>& b) {
  WS_CHECK(a.size() == b.size());
  std::vector<double> differences;
  for (std::size_t i = 0; i < a.size(); ++i) differences.push_back(a[i] - b[i]);
  const SampleMoments moments = sample_moments(differences);
  PairedTest test;
  test.n = static_cast<std::int64_t>(a.size());
  test.mean_difference = moments.mean;
  test.deviation = moments.deviation;
  // Equal differences of floating-point accuracies may leave a rounding error behind.
  const double noise = 1e-12 * (std::abs(moments.mean) + 1e-300);
  if (!moments.deviation || *moments.deviation <= noise) return test;
  const auto n = static_cast<double>(a.size());
  const double error = *moments.deviation / std::sqrt(n);
  test.p = student_two_sided(std::abs(moments.mean) / error, n - 1);
  const double reach = student_bound(n - 1) * error;
  test.low = moments.mean - reach;
  test.high = moments.mean + reach;
  return test;
}

}  // namespace weightsmith
