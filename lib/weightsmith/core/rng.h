#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

namespace weightsmith {

/// Mixes the bits of one word (the finaliser of SplitMix64: Steele, Lea, Flood, "Fast splittable
/// pseudorandom number generators", OOPSLA 2014).
constexpr std::uint64_t mix_bits(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

/// SplitMix64: a generator whose whole state is one word. The standard library's engines are
/// portable but its distributions are not, and runs must agree between machines; a stream named by
/// (seed, epoch, sample, ...) gives the same numbers whatever the thread that draws them and needs
/// nothing in a checkpoint but the name.
class Rng {
 public:
  /// The stream named by a seed and any number of coordinates (purpose, epoch, sample, head, ...).
  explicit Rng(std::uint64_t seed, std::initializer_list<std::uint64_t> coordinates = {});

  std::uint64_t next() { return mix_bits(state_ += kStep); }
  /// Passes over the next `count` numbers that next() gives. O(1).
  void skip(std::uint64_t count) { state_ += count * kStep; }
  /// Uniform in [0, bound), without modulo bias. `bound` > 0.
  std::uint64_t below(std::uint64_t bound);
  /// Uniform in [0, 1) with 53 random bits.
  double uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }
  double uniform(double low, double high) { return low + (high - low) * uniform(); }
  /// Standard normal (Box–Muller, one value a pair of draws, so that the state stays one word).
  double normal();

 private:
  static constexpr std::uint64_t kStep = 0x9e3779b97f4a7c15ULL;
  std::uint64_t state_;
};

/// A uniform permutation of 0..n-1 (Fisher–Yates), the same on every machine.
std::vector<std::int64_t> random_permutation(std::int64_t n, Rng& rng);

}  // namespace weightsmith
