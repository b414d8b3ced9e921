#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace weightsmith {

/// A square float32 matrix, rows `stride` elements apart, columns adjacent.
struct ScoreMatrix {
  const float* data = nullptr;
  std::int64_t n = 0;
  std::int64_t stride = 0;

  const float* row(std::int64_t i) const { return data + i * stride; }
};

/// `scores` (n, n) float32 on the CPU with adjacent columns; the tensor must outlive the view.
/// Throws Error{kInput} naming `where` otherwise.
ScoreMatrix score_matrix(const at::Tensor& scores, std::string_view where);

/// A one-to-one assignment of rows to columns and the prices that prove it optimal.
struct Assignment {
  std::vector<std::int32_t> column;  ///< (n): the column of row r
  std::vector<double> row_dual;      ///< (n)
  std::vector<double> column_dual;   ///< (n)
  double value = 0.0;                ///< sum of the assigned scores
};

/// The assignment of largest total score: the exact optimum of the float32 matrix, in double
/// arithmetic, with dual prices u, v such that score(r, c) <= u_r + v_c everywhere, with equality
/// where assigned (see certify). Where several assignments are optimal, one of them, the same on
/// every machine.
///
/// Successive shortest augmenting paths over reduced costs, after the column reduction and the
/// augmenting row reduction of R. Jonker and A. Volgenant, "A Shortest Augmenting Path Algorithm
/// for Dense and Sparse Linear Assignment Problems", Computing 38, 1987. Differences:
/// - A row is not scanned in full. It keeps a short list of its columns of largest margin
///   score - v, and a bound on the margin of all the others. Prices v never fall, so margins never
///   grow and the bound stays true; a row whose bound could still matter to the search is put back
///   in line under that bound and listed again when its turn comes. Exact, and the reason why most
///   rows are read a few times only.
/// - Searches are cut at the nearest free column found so far.
/// - The augmenting row reduction gives up after 20 n steps and at ties.
/// - The column reduction is undone where a sixteenth of rows and columns are zero (dead units).
///
/// `start`: column prices (n) of a similar matrix, from which few rows have to be assigned anew;
/// taken unless the column reduction leaves fewer than an eighth of the rows. Any of the scores'
/// magnitude lead to an optimum: they change the time, and which of several optima is found.
///
/// O(n^3) in the worst case, near n^2 for similarity matrices; memory 1 KB a row. n = 0 and 1 work.
/// Throws Error{kNumeric} naming `where` and the position of a NaN or infinite score.
Assignment solve_assignment(const ScoreMatrix& scores, std::string_view where = "assignment",
                            std::span<const double> start = {});

/// What the dual prices of an assignment prove.
struct Certificate {
  bool permutation = false;    ///< every column is used once
  double infeasibility = 0.0;  ///< largest score(r, c) - u_r - v_c, at least 0
  double slackness = 0.0;      ///< largest |u_r + v_c - score(r, c)| of an assigned pair
  double gap = 0.0;            ///< sum of the prices - value: no assignment is better by more
  double tolerance = 0.0;      ///< allowed for infeasibility and slackness: rounding only
  bool holds() const { return permutation && infeasibility <= tolerance && slackness <= tolerance; }
};

/// Checks dual feasibility and complementary slackness: one pass over the matrix, O(n^2). The
/// tolerance is 2^-44 of the largest magnitude among scores and prices.
Certificate certify(const ScoreMatrix& scores, const Assignment& assignment);

}  // namespace weightsmith
