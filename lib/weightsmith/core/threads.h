#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace weightsmith {

/// The threads this process may use: OMP_NUM_THREADS, else SLURM_CPUS_PER_TASK, else the smaller of
/// its CPU affinity and its cgroup's CPU quota (rounded up). At least 1.
int available_threads();

/// Makes LibTorch (and its OpenMP and BLAS pools) use `threads`; 0 means available_threads().
/// Debian's LibTorch starts with one. Returns the number set.
int set_thread_count(int threads);

/// Operations of LibTorch in the calling thread do their work in it alone and start no OpenMP pool.
/// Other threads keep their number.
void keep_to_one_thread();

/// Calls work(task) for every task in [0, tasks) on as many threads as LibTorch uses, each taking
/// the next one when it is done. Operations of LibTorch and its BLAS in there run on the calling
/// thread alone, unless there is but one task. The first exception is thrown on.
template <class Work>
void share_tasks(std::int64_t tasks, const Work& work) {
  std::atomic<std::int64_t> next = 0;
  const std::int64_t threads = std::min<std::int64_t>(at::get_num_threads(), tasks);
  at::parallel_for(0, threads, 1, [&](std::int64_t, std::int64_t) {
    for (std::int64_t task = next++; task < tasks; task = next++) work(task);
  });
}

}  // namespace weightsmith
