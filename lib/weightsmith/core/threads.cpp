#include "weightsmith/core/threads.h"

#include <ATen/Parallel.h>
#include <sched.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>

#ifndef INTRA_OP_PARALLEL
#error "at::parallel_for would run on one thread: compile with OpenMP, as LibTorch was"
#endif

namespace weightsmith {
namespace {

std::optional<int> positive_integer(const char* text) {
  if (text == nullptr) return std::nullopt;
  const std::string_view s(text);
  int value = 0;
  // OMP_NUM_THREADS may be a list, one number a nesting level: the first counts.
  const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), value);
  if (error != std::errc{} || value < 1 || (end != s.data() + s.size() && *end != ','))
    return std::nullopt;
  return value;
}

/// CPUs granted by the cgroup's quota (version 2: "quota period" or "max period"; version 1: two
/// files).
std::optional<int> cgroup_quota() {
  double quota = -1;
  double period = 0;
  if (std::ifstream v2("/sys/fs/cgroup/cpu.max"); v2) {
    std::string first;
    if (v2 >> first >> period && first != "max") quota = std::strtod(first.c_str(), nullptr);
  } else {
    std::ifstream q("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
    std::ifstream p("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
    if (!(q >> quota && p >> period)) return std::nullopt;
  }
  if (quota <= 0 || period <= 0) return std::nullopt;
  return std::max(1, static_cast<int>(std::ceil(quota / period)));
}

int affinity_count() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return ::sched_getaffinity(0, sizeof(set), &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
}

}  // namespace

int available_threads() {
  if (const auto n = positive_integer(std::getenv("OMP_NUM_THREADS"))) return *n;
  if (const auto n = positive_integer(std::getenv("SLURM_CPUS_PER_TASK"))) return *n;
  const int affinity = affinity_count();
  return std::min(affinity, cgroup_quota().value_or(affinity));
}

int set_thread_count(int threads) {
  const int n = threads > 0 ? threads : available_threads();
  at::set_num_threads(n);
#ifdef _OPENMP
  // A LibTorch that ships an OpenMP of its own has told only that one.
  omp_set_num_threads(n);
#endif
  return n;
}

void keep_to_one_thread() {
  // LibTorch gives a thread its number when it is first asked. OpenMP's setting after that is the
  // thread's own, where at::set_num_threads would also count for threads to come.
  at::get_num_threads();
#ifdef _OPENMP
  omp_set_num_threads(1);
#endif
}

}  // namespace weightsmith
