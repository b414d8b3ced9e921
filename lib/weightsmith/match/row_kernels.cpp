#include "weightsmith/match/row_kernels.h"

#include <bit>
#include <cstring>
#include <limits>

#include "weightsmith/core/error.h"

// The passes are written once, on the compilers' vector types, and compiled once a register width:
// each body is inlined into a function whose `target` attribute says what it may use. Vectors
// travel by reference only, since passing wide ones by value has no ABI without the wide registers.
#define WS_INLINE [[gnu::always_inline]] inline

#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#define WS_X86_KERNELS 1
#endif

namespace weightsmith {
namespace {

constexpr float kFloatInfinity = std::numeric_limits<float>::infinity();
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::int64_t kLanes = 64;
constexpr std::int64_t kChains = 32;  // of additions, so that they overlap

template <class Vector, class T>
WS_INLINE void load(Vector& vector, const T* from) {
  std::memcpy(&vector, from, sizeof(Vector));
}

template <class Vector, class T>
WS_INLINE void store(T* to, const Vector& vector) {
  std::memcpy(to, &vector, sizeof(Vector));
}

template <class Vector, class T>
WS_INLINE void fill(Vector& vector, T value) {
  for (std::size_t k = 0; k < sizeof(Vector) / sizeof(vector[0]); ++k) vector[k] = value;
}

/// The vector types of one register width. (A width that depends on a template parameter is not
/// portable between compilers, hence the macro.)
template <int kBytes>
struct Types;

#define WS_VECTOR_TYPES(bytes, word)                                   \
  template <>                                                          \
  struct Types<bytes> {                                                \
    typedef float Floats __attribute__((vector_size(bytes)));          \
    typedef std::int32_t Ints __attribute__((vector_size(bytes)));     \
    typedef double Doubles __attribute__((vector_size(bytes)));        \
    typedef float HalfFloats __attribute__((vector_size(bytes / 2)));  \
    typedef std::int64_t Longs __attribute__((vector_size(bytes)));    \
    typedef std::int8_t Flags __attribute__((vector_size(bytes / 8))); \
    typedef word Word; /* one byte a lane of Longs */                  \
  }
WS_VECTOR_TYPES(16, std::uint16_t);
WS_VECTOR_TYPES(32, std::uint32_t);
WS_VECTOR_TYPES(64, std::uint64_t);
#undef WS_VECTOR_TYPES

template <int kBytes>
struct Body {
  static constexpr std::int64_t kFloats = kBytes / 4;
  static constexpr std::int64_t kDoubles = kBytes / 8;
  using Floats = typename Types<kBytes>::Floats;
  using Ints = typename Types<kBytes>::Ints;
  using Doubles = typename Types<kBytes>::Doubles;
  using HalfFloats = typename Types<kBytes>::HalfFloats;
  using Longs = typename Types<kBytes>::Longs;
  using Flags = typename Types<kBytes>::Flags;
  using Word = typename Types<kBytes>::Word;

  WS_INLINE static void margin(const float* row, const double* price, Doubles& out) {
    HalfFloats narrow;
    Doubles prices;
    load(narrow, row);
    load(prices, price);
    out = __builtin_convertvector(narrow, Doubles) - prices;
  }

  WS_INLINE static Word word(const Longs& mask) {
    const Flags flags = __builtin_convertvector(mask, Flags);
    Word bits;
    std::memcpy(&bits, &flags, sizeof bits);
    return bits;
  }

  WS_INLINE static bool update_column_maxima(const float* row, std::int64_t n, std::int32_t index,
                                             float* maxima, std::int32_t* argument) {
    Ints indices;
    fill(indices, index);
    Floats residue;  // x - x is NaN for NaN and the infinities, else 0
    fill(residue, 0.0F);
    std::int64_t j = 0;
    for (; j + kFloats <= n; j += kFloats) {
      Floats values;
      Floats largest;
      Ints arguments;
      load(values, row + j);
      load(largest, maxima + j);
      load(arguments, argument + j);
      residue += values - values;
      const Ints higher = values > largest;
      largest = higher ? values : largest;
      arguments = higher ? indices : arguments;
      store(maxima + j, largest);
      store(argument + j, arguments);
    }
    float sum = 0;
    for (std::int64_t k = 0; k < kFloats; ++k) sum += residue[k];
    for (; j < n; ++j) {
      sum += row[j] - row[j];
      if (row[j] > maxima[j]) {
        maxima[j] = row[j];
        argument[j] = index;
      }
    }
    return sum == 0.0F;
  }

  WS_INLINE static bool all_finite(const float* row, std::int64_t n) {
    Floats residue[4];
    for (Floats& vector : residue) fill(vector, 0.0F);
    std::int64_t j = 0;
    for (; j + 4 * kFloats <= n; j += 4 * kFloats) {
      for (std::int64_t k = 0; k < 4; ++k) {
        Floats values;
        load(values, row + j + k * kFloats);
        residue[k] += values - values;
      }
    }
    float sum = 0;
    for (const Floats& vector : residue)
      for (std::int64_t k = 0; k < kFloats; ++k) sum += vector[k];
    for (; j < n; ++j) sum += row[j] - row[j];
    return sum == 0.0F;
  }

  WS_INLINE static void lane_maxima(const float* row, const double* price, std::int64_t n,
                                    double* maxima) {
    constexpr std::int64_t kVectors = kLanes / kDoubles;
    Doubles largest[kVectors];
    for (Doubles& vector : largest) fill(vector, -kInfinity);
    std::int64_t j = 0;
    for (; j + kLanes <= n; j += kLanes) {
      for (std::int64_t k = 0; k < kVectors; ++k) {
        Doubles margins;
        margin(row + j + k * kDoubles, price + j + k * kDoubles, margins);
        largest[k] = margins > largest[k] ? margins : largest[k];
      }
    }
    for (std::int64_t k = 0; k < kVectors; ++k) store(maxima + k * kDoubles, largest[k]);
    for (; j < n; ++j) {
      const double m = static_cast<double>(row[j]) - price[j];
      if (m > maxima[j % kLanes]) maxima[j % kLanes] = m;
    }
  }

  WS_INLINE static std::int64_t collect_at_least(const float* row, const double* price,
                                                 std::int64_t n, double threshold,
                                                 std::int32_t* columns, std::int64_t capacity) {
    Doubles thresholds;
    fill(thresholds, threshold);
    std::int64_t count = 0;
    std::int64_t j = 0;
    for (; j + kDoubles <= n; j += kDoubles) {
      Doubles margins;
      margin(row + j, price + j, margins);
      for (Word bits = word(margins >= thresholds); bits != 0;) {
        const int lane = std::countr_zero(bits) / 8;
        bits &= static_cast<Word>(~(Word{255} << (8 * lane)));
        if (count == capacity) return capacity + 1;
        columns[count++] = static_cast<std::int32_t>(j + lane);
      }
    }
    for (; j < n; ++j) {
      if (static_cast<double>(row[j]) - price[j] < threshold) continue;
      if (count == capacity) return capacity + 1;
      columns[count++] = static_cast<std::int32_t>(j);
    }
    return count;
  }

  WS_INLINE static std::int64_t collect_shorter(const float* row, const double* price,
                                                std::int64_t n, double offset, double limit,
                                                const double* distance, std::int32_t* columns) {
    Doubles offsets;
    Doubles limits;
    fill(offsets, offset);
    fill(limits, limit);
    std::int64_t count = 0;
    std::int64_t j = 0;
    for (; j + kDoubles <= n; j += kDoubles) {
      HalfFloats narrow;
      Doubles prices;
      Doubles distances;
      load(narrow, row + j);
      load(prices, price + j);
      load(distances, distance + j);
      const Doubles lengths = (offsets + prices) - __builtin_convertvector(narrow, Doubles);
      distances = distances < limits ? distances : limits;
      for (Word bits = word(lengths < distances); bits != 0;) {
        const int lane = std::countr_zero(bits) / 8;
        bits &= static_cast<Word>(~(Word{255} << (8 * lane)));
        columns[count++] = static_cast<std::int32_t>(j + lane);
      }
    }
    for (; j < n; ++j) {
      const double length = (offset + price[j]) - static_cast<double>(row[j]);
      if (length < limit && length < distance[j]) columns[count++] = static_cast<std::int32_t>(j);
    }
    return count;
  }

  WS_INLINE static double largest_margin(const float* row, const double* price, std::int64_t n) {
    Doubles largest[2];
    for (Doubles& vector : largest) fill(vector, -kInfinity);
    std::int64_t j = 0;
    for (; j + 2 * kDoubles <= n; j += 2 * kDoubles) {
      for (std::int64_t k = 0; k < 2; ++k) {
        Doubles margins;
        margin(row + j + k * kDoubles, price + j + k * kDoubles, margins);
        largest[k] = margins > largest[k] ? margins : largest[k];
      }
    }
    double result = -kInfinity;
    for (const Doubles& vector : largest)
      for (std::int64_t k = 0; k < kDoubles; ++k)
        if (vector[k] > result) result = vector[k];
    for (; j < n; ++j) {
      const double m = static_cast<double>(row[j]) - price[j];
      if (m > result) result = m;
    }
    return result;
  }

  WS_INLINE static FirstMaximum first_maximum(const float* row, const std::int32_t* alive,
                                              std::int64_t n) {
    Floats lowest;
    Floats largest;
    Ints positions;
    Ints at;
    fill(lowest, -kFloatInfinity);
    fill(largest, -kFloatInfinity);
    fill(at, -1);
    for (std::int64_t k = 0; k < kFloats; ++k) positions[k] = static_cast<std::int32_t>(k);
    std::int64_t j = 0;
    for (; j + kFloats <= n; j += kFloats) {
      Floats values;
      Ints live;
      load(values, row + j);
      load(live, alive + j);
      values = live < 0 ? values : lowest;
      const Ints higher = values > largest;
      largest = higher ? values : largest;
      at = higher ? positions : at;
      positions += static_cast<std::int32_t>(kFloats);
    }
    FirstMaximum best{-kFloatInfinity, -1};
    for (std::int64_t k = 0; k < kFloats; ++k) {
      if (at[k] < 0) continue;
      if (largest[k] > best.value || (largest[k] == best.value && at[k] < best.index))
        best = {largest[k], at[k]};
    }
    for (; j < n; ++j)
      if (alive[j] < 0 && row[j] > best.value) best = {row[j], static_cast<std::int32_t>(j)};
    return best;
  }

  WS_INLINE static void lower_and_scale(float* x, const float* y, float factor, std::int64_t n) {
    Floats factors;
    fill(factors, factor);
    std::int64_t j = 0;
    for (; j + kFloats <= n; j += kFloats) {
      Floats first;
      Floats second;
      load(first, x + j);
      load(second, y + j);
      first = (second < first ? second : first) * factors;
      store(x + j, first);
    }
    for (; j < n; ++j) x[j] = (y[j] < x[j] ? y[j] : x[j]) * factor;
  }

  /// Sums of entry j of x go to chain j mod kChains, and chains are joined in one order whatever
  /// the width.
  using Chains = Doubles[kChains / kDoubles];

  WS_INLINE static double joined(const Chains& sums) {
    double chain[kChains];
    for (std::int64_t k = 0; k < kChains / kDoubles; ++k) store(chain + k * kDoubles, sums[k]);
    for (std::int64_t half = kChains / 2; half > 0; half /= 2)
      for (std::int64_t k = 0; k < half; ++k) chain[k] += chain[k + half];
    return chain[0];
  }

  /// n entries, fewer than kChains, with zeros behind them.
  WS_INLINE static void load_rest(const float* x, std::int64_t n, float (&rest)[kChains]) {
    for (float& entry : rest) entry = 0.0F;
    for (std::int64_t k = 0; k < n; ++k) rest[k] = x[k];
  }

  /// Both sums of kChains entries more.
  WS_INLINE static void add_chains(const float* entries, Chains& sums, Chains& squares) {
    for (std::int64_t k = 0; k < kChains / kDoubles; ++k) {
      HalfFloats narrow;
      load(narrow, entries + k * kDoubles);
      const Doubles wide = __builtin_convertvector(narrow, Doubles);
      sums[k] += wide;
      squares[k] += wide * wide;  // exact: a fused product has the same bits
    }
  }

  /// `prepare(j)`: called before the kChains entries from j on are read.
  template <class Prepare>
  WS_INLINE static RowSums sums_of(const float* x, std::int64_t n, const Prepare& prepare) {
    Chains sums;
    Chains squares;
    for (Doubles& vector : sums) fill(vector, 0.0);
    for (Doubles& vector : squares) fill(vector, 0.0);
    std::int64_t j = 0;
    for (; j + kChains <= n; j += kChains) {
      prepare(j);
      add_chains(x + j, sums, squares);
    }
    float rest[kChains];
    load_rest(x + j, n - j, rest);
    add_chains(rest, sums, squares);
    return {joined(sums), joined(squares)};
  }

  WS_INLINE static RowSums sums(const float* x, std::int64_t n) {
    return sums_of(x, n, [](std::int64_t) __attribute__((always_inline)){});
  }

  WS_INLINE static RowSums subtract(float* x, float shift, std::int64_t n) {
    Floats shifts;
    fill(shifts, shift);
    for (std::int64_t k = n / kChains * kChains; k < n; ++k) x[k] -= shift;
    return sums_of(
        x, n, [&](std::int64_t j) __attribute__((always_inline)) {
          for (std::int64_t k = j; k < j + kChains; k += kFloats) {
            Floats values;
            load(values, x + k);
            values -= shifts;
            store(x + k, values);
          }
        });
  }
};

#define WS_ROW_KERNELS(name, bytes, attributes)                                                   \
  namespace name {                                                                                \
  attributes bool update_column_maxima(const float* row, std::int64_t n, std::int32_t index,      \
                                       float* maxima, std::int32_t* argument) {                   \
    return Body<bytes>::update_column_maxima(row, n, index, maxima, argument);                    \
  }                                                                                               \
  attributes bool all_finite(const float* row, std::int64_t n) {                                  \
    return Body<bytes>::all_finite(row, n);                                                       \
  }                                                                                               \
  attributes void lane_maxima(const float* row, const double* price, std::int64_t n,              \
                              double* maxima) {                                                   \
    Body<bytes>::lane_maxima(row, price, n, maxima);                                              \
  }                                                                                               \
  attributes std::int64_t collect_at_least(const float* row, const double* price, std::int64_t n, \
                                           double threshold, std::int32_t* columns,               \
                                           std::int64_t capacity) {                               \
    return Body<bytes>::collect_at_least(row, price, n, threshold, columns, capacity);            \
  }                                                                                               \
  attributes std::int64_t collect_shorter(const float* row, const double* price, std::int64_t n,  \
                                          double offset, double limit, const double* distance,    \
                                          std::int32_t* columns) {                                \
    return Body<bytes>::collect_shorter(row, price, n, offset, limit, distance, columns);         \
  }                                                                                               \
  attributes double largest_margin(const float* row, const double* price, std::int64_t n) {       \
    return Body<bytes>::largest_margin(row, price, n);                                            \
  }                                                                                               \
  attributes FirstMaximum first_maximum(const float* row, const std::int32_t* alive,              \
                                        std::int64_t n) {                                         \
    return Body<bytes>::first_maximum(row, alive, n);                                             \
  }                                                                                               \
  attributes void lower_and_scale(float* x, const float* y, float factor, std::int64_t n) {       \
    Body<bytes>::lower_and_scale(x, y, factor, n);                                                \
  }                                                                                               \
  attributes RowSums sums(const float* x, std::int64_t n) { return Body<bytes>::sums(x, n); }     \
  attributes RowSums subtract(float* x, float shift, std::int64_t n) {                            \
    return Body<bytes>::subtract(x, shift, n);                                                    \
  }                                                                                               \
  constexpr RowKernels kSet{update_column_maxima,                                                 \
                            all_finite,                                                           \
                            lane_maxima,                                                          \
                            collect_at_least,                                                     \
                            collect_shorter,                                                      \
                            largest_margin,                                                       \
                            first_maximum,                                                        \
                            lower_and_scale,                                                      \
                            sums,                                                                 \
                            subtract};                                                            \
  }

WS_ROW_KERNELS(baseline, 16, )
#ifdef WS_X86_KERNELS
WS_ROW_KERNELS(avx2, 32, __attribute__((target("avx2"))))
WS_ROW_KERNELS(avx512, 64, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))))
#endif
#undef WS_ROW_KERNELS

}  // namespace

bool has_row_kernels(VectorWidth width) {
#ifdef WS_X86_KERNELS
  if (width == VectorWidth::k512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (width == VectorWidth::k256) return __builtin_cpu_supports("avx2");
#endif
  return width == VectorWidth::k128;
}

const RowKernels& row_kernels(VectorWidth width) {
  WS_CHECK(has_row_kernels(width), "this processor lacks the instructions");
#ifdef WS_X86_KERNELS
  if (width == VectorWidth::k512) return avx512::kSet;
  if (width == VectorWidth::k256) return avx2::kSet;
#endif
  return baseline::kSet;
}

const RowKernels& row_kernels() {
  static const RowKernels& widest = [&]() -> const RowKernels& {
    for (const VectorWidth width : {VectorWidth::k512, VectorWidth::k256})
      if (has_row_kernels(width)) return row_kernels(width);
    return row_kernels(VectorWidth::k128);
  }();
  return widest;
}

}  // namespace weightsmith
