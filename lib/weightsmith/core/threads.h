#pragma once

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

}  // namespace weightsmith
