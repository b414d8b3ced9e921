#include "weightsmith/core/rng.h"

#include <cmath>
#include <numbers>
#include <numeric>
#include <utility>

#include "weightsmith/core/error.h"

namespace weightsmith {

Rng::Rng(std::uint64_t seed, std::initializer_list<std::uint64_t> coordinates)
    : state_(mix_bits(seed + 0x9e3779b97f4a7c15ULL)) {
  for (const std::uint64_t c : coordinates)
    state_ = mix_bits(state_ ^ mix_bits(c + 0x632be59bd9b4e019ULL));
}

std::uint64_t Rng::below(std::uint64_t bound) {
  WS_CHECK(bound > 0);
  const std::uint64_t threshold =
      (0 - bound) % bound;  // 2^64 mod bound: draws under it would be favoured
  while (true) {
    const std::uint64_t draw = next();
    if (draw >= threshold) return draw % bound;
  }
}

double Rng::normal() {
  const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));  // 1 - u lies in (0, 1]
  return radius * std::cos(2.0 * std::numbers::pi * uniform());
}

std::vector<std::int64_t> random_permutation(std::int64_t n, Rng& rng) {
  std::vector<std::int64_t> order(n);
  std::iota(order.begin(), order.end(), std::int64_t{0});
  for (std::int64_t i = n - 1; i > 0; --i) std::swap(order[i], order[rng.below(i + 1)]);
  return order;
}

}  // namespace weightsmith
