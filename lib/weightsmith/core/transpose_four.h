#pragma once

#include <array>
#include <cstring>

namespace weightsmith {

/// to[j][i] = from[i][j] for four times four numbers, in registers: compilers move them one by one.
template <class T>
void transpose_four(const std::array<const T*, 4>& from, const std::array<T*, 4>& to) {
  typedef T Four __attribute__((vector_size(4 * sizeof(T))));  // `using` does not take a T's size
  Four a;
  Four b;
  Four c;
  Four d;
  std::memcpy(&a, from[0], sizeof a);
  std::memcpy(&b, from[1], sizeof b);
  std::memcpy(&c, from[2], sizeof c);
  std::memcpy(&d, from[3], sizeof d);
  const Four ab_first = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  const Four ab_last = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Four cd_first = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const Four cd_last = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  a = __builtin_shufflevector(ab_first, cd_first, 0, 1, 4, 5);
  b = __builtin_shufflevector(ab_first, cd_first, 2, 3, 6, 7);
  c = __builtin_shufflevector(ab_last, cd_last, 0, 1, 4, 5);
  d = __builtin_shufflevector(ab_last, cd_last, 2, 3, 6, 7);
  std::memcpy(to[0], &a, sizeof a);
  std::memcpy(to[1], &b, sizeof b);
  std::memcpy(to[2], &c, sizeof c);
  std::memcpy(to[3], &d, sizeof d);
}

}  // namespace weightsmith
