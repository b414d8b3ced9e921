#pragma once

#include <optional>
#include <string>

namespace weightsmith {

/// What the processor has that OpenBLAS's kernels can use.
struct VectorUnits {
  bool avx2 = false;    ///< with FMA
  bool avx512 = false;  ///< F, BW, CD, DQ and VL
};

VectorUnits vector_units();

/// What OpenBLAS calls the kernels that it runs ("SkylakeX"), or "" where products are not computed
/// by an OpenBLAS that tells.
std::string blas_kernels();

/// The kernels that fit the processor better than those that OpenBLAS chose, if any. OpenBLAS knows
/// processors by their numbers, and before 0.3.25 (Debian 12 has 0.3.21) it ran the kernels of
/// "Prescott", SSE3, on those that are younger: a product takes ten times as long as it need.
std::optional<std::string> better_blas_kernels(const std::string& chosen, const VectorUnits& has);

/// Starts this program again with OPENBLAS_CORETYPE set to better_blas_kernels, if there are any:
/// OpenBLAS chooses once, before main. Returns where that is not so, where the user has set
/// OPENBLAS_CORETYPE, and where the program cannot be started again. To be called before anything
/// else, as the process stays (its number too) and all that it holds goes.
void restart_with_better_blas_kernels(char** argv);

}  // namespace weightsmith
