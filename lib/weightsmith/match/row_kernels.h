#pragma once

#include <cstdint>

namespace weightsmith {

/// Where the first of the largest entries stands. `index` is -1 where there is none.
struct FirstMaximum {
  float value;
  std::int32_t index;
};

/// Sums of the entries of a row and of their squares.
struct RowSums {
  double entries;
  double squares;
};

/// Passes over one row of a float32 matrix: the inner loops of the assignment, of zip and of
/// second moments, for one width of vector registers. Every set returns the same values to the last
/// bit, so that a matching does not depend on the machine it was computed on.
struct RowKernels {
  /// Raises `maxima[j]` to row[j] and, where it did, sets `argument[j] = index` (n entries each).
  /// Returns whether all of `row` is finite.
  bool (*update_column_maxima)(const float* row, std::int64_t n, std::int32_t index, float* maxima,
                               std::int32_t* argument);

  /// Whether all n entries are finite.
  bool (*all_finite)(const float* row, std::int64_t n);

  /// `maxima[k]` = the largest row[j] - price[j] among the columns j with j mod 64 = k; -infinity
  /// where there is none.
  void (*lane_maxima)(const float* row, const double* price, std::int64_t n, double maxima[64]);

  /// Writes the columns with row[j] - price[j] >= threshold to `columns`, in ascending order.
  /// Returns their number, or capacity + 1 (with `columns` full) when there are more.
  std::int64_t (*collect_at_least)(const float* row, const double* price, std::int64_t n,
                                   double threshold, std::int32_t* columns, std::int64_t capacity);

  /// Writes the columns with offset + price[j] - row[j] < min(limit, distance[j]) to `columns`
  /// (room for n), in ascending order, and returns their number.
  std::int64_t (*collect_shorter)(const float* row, const double* price, std::int64_t n,
                                  double offset, double limit, const double* distance,
                                  std::int32_t* columns);

  /// The largest row[j] - price[j]; -infinity for n = 0.
  double (*largest_margin)(const float* row, const double* price, std::int64_t n);

  /// The first of the largest entries with alive[j] = -1 (alive[j] is -1 or 0). Entries of
  /// -infinity do not count.
  FirstMaximum (*first_maximum)(const float* row, const std::int32_t* alive, std::int64_t n);

  /// x[j] = min(x[j], y[j]) * factor.
  void (*lower_and_scale)(float* x, const float* y, float factor, std::int64_t n);

  /// Sums of x, in double.
  RowSums (*sums)(const float* x, std::int64_t n);

  /// x[j] -= shift, and sums of what is left, in double.
  RowSums (*subtract)(float* x, float shift, std::int64_t n);
};

enum class VectorWidth { k128, k256, k512 };

/// Whether this processor runs the set (k256 stands for AVX2, k512 for AVX-512 F, BW, DQ and VL;
/// k128 is the baseline and runs everywhere).
bool has_row_kernels(VectorWidth width);

/// A set that has_row_kernels() confirms. Throws Error{kInternal} for another.
const RowKernels& row_kernels(VectorWidth width);

/// The widest set this processor runs, found once.
const RowKernels& row_kernels();

}  // namespace weightsmith
