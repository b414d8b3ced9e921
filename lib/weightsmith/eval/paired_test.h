#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace weightsmith {

/// Mean and standard deviation of a sample (divided by n − 1; none for a single value).
struct SampleMoments {
  double mean = 0;
  std::optional<double> deviation;
};
SampleMoments sample_moments(const std::vector<double>& values);

/// Whether two methods differ, measured side by side under the same n conditions (seeds): Student's
/// paired t-test ("The probable error of a mean", Biometrika 6, 1908) of the differences a_i − b_i,
/// which takes them as normal. `p` is two-sided; [low, high] is the 95 % interval of the mean
/// difference. p, low and high are absent for n < 2 and where all differences are equal.
struct PairedTest {
  std::int64_t n = 0;
  double mean_difference = 0;
  std::optional<double> deviation;  ///< of the differences
  std::optional<double> p;
  std::optional<double> low;
  std::optional<double> high;
};
/// As many of `a` as of `b`, at least one.
PairedTest paired_test(const std::vector<double>& a, const std::vector<double>& b);

/// P(|T| > t) for Student's distribution with `freedom` degrees of freedom, t ≥ 0.
double student_two_sided(double t, double freedom);

}  // namespace weightsmith
