// Times assignment and zip on one thread, best of five, and leaves the matrices and times in a
// folder for match_against_scipy.py, which times SciPy on the same matrices.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <spdlog/fmt/fmt.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "support/matrices.h"
#include "weightsmith/core/atomic_file.h"
#include "weightsmith/core/blas_kernels.h"
#include "weightsmith/match/assignment.h"
#include "weightsmith/match/similarity_accumulator.h"
#include "weightsmith/match/zip.h"

using namespace weightsmith;
using namespace weightsmith::testing;

namespace {

constexpr int kRepeats = 5;

template <class Work>
double best_ms(Work&& work) {
  double best = std::numeric_limits<double>::infinity();
  for (int k = 0; k < kRepeats; ++k) {
    const auto start = std::chrono::steady_clock::now();
    work();
    const std::chrono::duration<double, std::milli> elapsed =
        std::chrono::steady_clock::now() - start;
    best = std::min(best, elapsed.count());
  }
  return best;
}

/// Two layers of `units` rectified units on the same inputs; the second is a permuted, perturbed
/// copy of the first (`noise` deviations of its filters) or, without noise, a stranger.
at::Tensor hidden_layers(std::int64_t units, std::int64_t latent, double noise, Rng& rng) {
  const at::Tensor factors = falling_factors(latent, 4096, rng);
  const at::Tensor filters = normal_matrix(units, latent, rng);
  at::Tensor others = normal_matrix(units, latent, rng);
  if (noise > 0) {
    const auto order = random_permutation(units, rng);
    others = filters.index_select(0, at::tensor(order, at::kLong)) + noise * others;
  }
  at::Tensor layers = at::relu(at::mm(at::cat({filters, others}), factors));
  return layers + 0.1 * layers.std() * normal_matrix(2 * units, 4096, rng);
}

/// With half of the units of both layers dead.
at::Tensor half_dead(const at::Tensor& correlation) {
  const std::int64_t n = correlation.size(0);
  at::Tensor dead = correlation.clone();
  dead.narrow(0, n / 4, n / 2).zero_();
  dead.narrow(1, n / 3, n / 2).zero_();
  return dead;
}

at::Tensor cross_correlation(const at::Tensor& layers) {
  const std::int64_t n = layers.size(0) / 2;
  return row_correlation(layers.narrow(0, 0, n), layers.narrow(0, n, n)).contiguous();
}

void bench_assignment(const std::filesystem::path& folder, nlohmann::json& results) {
  // "changed": the same scores with noise of a tenth of their deviation, solved anew and from the
  // prices of the scores before, as in the sweeps of a merge.
  std::printf("%-22s %6s %12s %12s %10s %12s %12s\n", "assignment", "n", "solve", "certify",
              "certified", "changed", "from prices");
  for (const std::int64_t n : {1024, 2048}) {
    Rng rng(static_cast<std::uint64_t>(n));
    const std::pair<const char*, at::Tensor> families[] = {
        {"correlation, copies", cross_correlation(hidden_layers(n, 64, 0.5, rng))},
        {"correlation, drifted", cross_correlation(hidden_layers(n, 32, 1.5, rng))},
        {"correlation, strangers", cross_correlation(hidden_layers(n, 64, 0.0, rng))},
        {"strangers, half dead", half_dead(cross_correlation(hidden_layers(n, 64, 0.0, rng)))},
        {"uniform", random_matrix(n, n, rng)},
        {"low rank 16", at::mm(normal_matrix(n, 16, rng), normal_matrix(16, n, rng))},
        {"low rank 4", at::mm(normal_matrix(n, 4, rng), normal_matrix(4, n, rng))}};
    for (const auto& [name, matrix] : families) {
      const ScoreMatrix scores = score_matrix(matrix, name);
      Assignment assignment;
      Certificate certificate;
      const double solve = best_ms([&] { assignment = solve_assignment(scores); });
      const double check = best_ms([&] { certificate = certify(scores, assignment); });
      const at::Tensor noisy = matrix + 0.1 * matrix.std() * normal_matrix(n, n, rng);
      const ScoreMatrix changed = score_matrix(noisy, name);
      Assignment again;
      const double anew = best_ms([&] { again = solve_assignment(changed); });
      const double from_prices =
          best_ms([&] { again = solve_assignment(changed, name, assignment.column_dual); });
      const bool certified = certificate.holds() && certify(changed, again).holds();
      std::printf("%-22s %6ld %9.2f ms %9.2f ms %10s %9.2f ms %9.2f ms\n", name,
                  static_cast<long>(n), solve, check, certified ? "yes" : "NO", anew, from_prices);
      const std::string file = fmt::format("assignment_{}.f32", results.size());
      write_text_atomically(folder / file, {reinterpret_cast<const char*>(scores.data),
                                            static_cast<std::size_t>(n * n) * sizeof(float)});
      results.push_back(
          {{"name", name}, {"n", n}, {"file", file}, {"ms", solve}, {"value", assignment.value}});
    }
  }
}

void bench_zip() {
  std::printf("\n%-22s %6s %12s\n", "zip", "size", "time");
  for (const std::int64_t units : {1024, 2048}) {
    Rng rng(7);
    for (const auto& [name, noise] : {std::pair{"copies", 0.5}, {"strangers", 0.0}}) {
      const at::Tensor layers = hidden_layers(units, 64, noise, rng);
      const Similarity similarity =
          all_pairs_similarity(row_correlation(layers, layers), 2, "bench");
      for (const double b : {1.0, 0.1}) {
        const double time = best_ms([&] { zip(similarity, {0.5, 0.5, b, 1.0}, 1, "bench"); });
        std::printf("%-22s %6ld %9.2f ms\n", fmt::format("{}, b = {}", name, b).c_str(),
                    static_cast<long>(2 * units), time);
      }
    }
  }
}

void bench_similarity() {
  std::printf("\n%-22s %6s %12s %14s\n", "similarity", "units", "a batch", "product alone");
  for (const auto& [units, shape] :
       {std::pair<std::int64_t, std::vector<std::int64_t>>{64, {128, 64, 16, 16}},
        {512, {128, 512, 4, 4}},
        {2048, {128, 2048}}}) {
    const at::Tensor a = at::randn(shape);
    const at::Tensor b = at::randn(shape);
    SimilarityAccumulator statistics({2, units}, Similarity::Scope::kAllPairs);
    const double time = best_ms([&] { statistics.add({a, b}, 1, "bench"); });
    const at::Tensor rows = at::randn({2 * units, a.numel() / units});
    at::Tensor product = at::empty({2 * units, 2 * units});
    const double alone = best_ms([&] { at::mm_out(product, rows, rows.t()); });
    std::printf("%-22s %6ld %9.2f ms %11.2f ms\n", "2 models, all pairs", static_cast<long>(units),
                time, alone);
  }
}

}  // namespace

int main(int argc, char** argv) {
  restart_with_better_blas_kernels(argv);
  if (argc != 2) {
    std::fprintf(stderr, "usage: match_bench FOLDER\n");
    return 2;
  }
  at::set_num_threads(1);
  const std::filesystem::path folder = argv[1];
  make_folder(folder);
  nlohmann::json results = nlohmann::json::array();
  bench_assignment(folder, results);
  write_text_atomically(folder / "assignment.json", results.dump(2));
  bench_zip();
  bench_similarity();
  return 0;
}
