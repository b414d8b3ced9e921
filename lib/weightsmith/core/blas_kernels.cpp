#include "weightsmith/core/blas_kernels.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <system_error>

namespace weightsmith {
namespace {

constexpr const char* kCoreType = "OPENBLAS_CORETYPE";

}  // namespace

VectorUnits vector_units() {
  VectorUnits has;
#if defined(__x86_64__)
  has.avx2 = __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
  has.avx512 = has.avx2 && __builtin_cpu_supports("avx512f") != 0 &&
               __builtin_cpu_supports("avx512bw") != 0 && __builtin_cpu_supports("avx512cd") != 0 &&
               __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0;
#endif
  return has;
}

std::string blas_kernels() {
  // LibTorch may come with any BLAS: what is there is asked, and nothing is linked for it.
  using CoreName = char* (*)();
  const auto core_name = reinterpret_cast<CoreName>(::dlsym(RTLD_DEFAULT, "openblas_get_corename"));
  const char* name = core_name == nullptr ? nullptr : core_name();
  return name == nullptr ? "" : name;
}

std::optional<std::string> better_blas_kernels(const std::string& chosen, const VectorUnits& has) {
  if (chosen != "Prescott") return std::nullopt;
  if (has.avx512) return "SkylakeX";
  if (has.avx2) return "Haswell";
  return std::nullopt;
}

void restart_with_better_blas_kernels(char** argv) {
  if (std::getenv(kCoreType) != nullptr) return;
  const std::optional<std::string> better = better_blas_kernels(blas_kernels(), vector_units());
  if (!better) return;
  // Under its own path: the process would be called "exe" otherwise.
  std::error_code failed;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", failed);
  if (failed || ::setenv(kCoreType, better->c_str(), 1) != 0) return;
  ::execv(program.c_str(), argv);
  ::unsetenv(kCoreType);
}

}  // namespace weightsmith
