#pragma once

#include <cstdint>
#include <vector>

#include "weightsmith/config/enum_names.h"

namespace weightsmith {

/// How a path integral over [0, 1] is discretised.
enum class PathRule {
  kGaussLegendre,
  kRiemannLeft,
  kRiemannRight,
  kRiemannMiddle,
  kRiemannTrapezoid
};
EnumNames<PathRule> enum_names(PathRule);

/// Places on the path and the width that each stands for: ∫ f(α) dα ≈ Σ weights[t] f(alphas[t]).
struct PathPoints {
  std::vector<double> alphas;
  std::vector<double> weights;
};

/// The `steps` ≥ 1 points of a rule, ascending, as captum 0.5 has them (Sundararajan, Taly, Yan,
/// "Axiomatic Attribution for Deep Networks", ICML 2017, section 5): Gauss–Legendre in double
/// precision; the Riemann rules at places rounded to float32, which published fields show. The
/// weights of the trapezoid add up to 1 − 1/steps, as theirs do.
PathPoints path_points(PathRule rule, std::int64_t steps);

}  // namespace weightsmith
