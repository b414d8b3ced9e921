#include "weightsmith/core/threads.h"

#include <ATen/Parallel.h>
#include <sched.h>

#include <catch2/catch.hpp>
#include <cstdlib>
#include <mutex>
#include <set>
#include <thread>

namespace weightsmith {
namespace {

/// Sets an environment variable for one scope.
class ScopedVariable {
 public:
  ScopedVariable(const char* name, const char* value) : name_(name) {
    const char* before = std::getenv(name);
    had_ = before != nullptr;
    if (had_) before_ = before;
    value != nullptr ? ::setenv(name, value, 1) : ::unsetenv(name);
  }
  ~ScopedVariable() { had_ ? ::setenv(name_, before_.c_str(), 1) : ::unsetenv(name_); }

 private:
  const char* name_;
  bool had_ = false;
  std::string before_;
};

TEST_CASE("threads come from OpenMP's variable, then Slurm's, then the affinity", "[core]") {
  const ScopedVariable omp("OMP_NUM_THREADS", "3,2");
  const ScopedVariable slurm("SLURM_CPUS_PER_TASK", "5");
  CHECK(available_threads() == 3);
  {
    const ScopedVariable none("OMP_NUM_THREADS", nullptr);
    CHECK(available_threads() == 5);
    const ScopedVariable nonsense("SLURM_CPUS_PER_TASK", "many");
    cpu_set_t set;
    CPU_ZERO(&set);
    REQUIRE(::sched_getaffinity(0, sizeof(set), &set) == 0);
    CHECK(available_threads() >= 1);
    CHECK(available_threads() <= CPU_COUNT(&set));
  }
}

TEST_CASE("the thread count reaches LibTorch", "[core]") {
  CHECK(set_thread_count(2) == 2);
  CHECK(at::get_num_threads() == 2);
}

TEST_CASE("loops of at::parallel_for run on that many threads", "[core]") {
  const auto threads_of = [](int count) {
    set_thread_count(count);
    std::mutex mutex;
    std::set<std::thread::id> seen;
    at::parallel_for(0, 8, 1, [&](std::int64_t, std::int64_t) {
      const std::lock_guard lock(mutex);
      seen.insert(std::this_thread::get_id());
    });
    return seen.size();
  };
  CHECK(threads_of(1) == 1);
  CHECK(threads_of(2) == 2);
}

TEST_CASE("a thread can keep to itself while the others keep their number", "[core]") {
  set_thread_count(2);
  int own = 0;
  std::thread([&own] {
    keep_to_one_thread();
    own = at::get_num_threads();
  }).join();
  CHECK(own == 1);
  CHECK(at::get_num_threads() == 2);
  int later = 0;
  std::thread([&later] { later = at::get_num_threads(); }).join();
  CHECK(later == 2);
  set_thread_count(0);
}

}  // namespace
}  // namespace weightsmith
