#include "weightsmith/core/blas_kernels.h"

#include <catch2/catch.hpp>

using namespace weightsmith;

TEST_CASE("OpenBLAS's choice of kernels is mended only where it fell back", "[blas_kernels]") {
  const VectorUnits none;
  const VectorUnits avx2{true, false};
  const VectorUnits avx512{true, true};
  CHECK(better_blas_kernels("Prescott", avx512) == "SkylakeX");
  CHECK(better_blas_kernels("Prescott", avx2) == "Haswell");
  CHECK_FALSE(better_blas_kernels("Prescott", none));
  for (const char* chosen : {"SkylakeX", "Haswell", "Zen", "Nehalem", "", "armv8"}) {
    INFO(chosen);
    CHECK_FALSE(better_blas_kernels(chosen, avx512));
  }
}
