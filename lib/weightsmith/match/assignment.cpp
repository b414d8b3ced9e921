#include "weightsmith/match/assignment.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>

#include "weightsmith/core/error.h"
#include "weightsmith/match/row_kernels.h"

namespace weightsmith {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::int64_t kLanes = 64;
constexpr std::int64_t kListRoom = 64;        // candidates a row
constexpr std::int64_t kListRank = 16;        // the threshold is this lane maximum: about 20 pass
constexpr std::int64_t kFewParts = 8;         // less than n / 8 rows left over are few
constexpr std::int64_t kFewDeadParts = 16;    // and so are less than n / 16 lines of zeros
constexpr std::int64_t kReductionSteps = 20;  // augmenting row reductions a row, on average

[[noreturn]] void fail_not_finite(const ScoreMatrix& scores, std::int64_t row,
                                  std::string_view where) {
  const float* s = scores.row(row);
  const std::int64_t column =
      std::find_if(s, s + scores.n, [](float x) { return !std::isfinite(x); }) - s;
  throw Error(ErrorKind::kNumeric, where,
              fmt::format("the score of row {} and column {} is {}", row, column, s[column]),
              "scores must be finite");
}

/// One column of a row's list. Entries are sorted by `margin`, so that a search may stop early.
struct Candidate {
  double margin;  // score - price when the list was made: an upper bound ever since
  float score;
  std::int32_t column;
};

struct CandidateList {
  std::int32_t size = -1;    // -1: not made yet
  double bound = kInfinity;  // no column outside the list has a larger margin
};

/// A node of the search, ordered by distance; the smaller index first among equals.
struct Entry {
  double distance;
  std::int32_t index;
  bool operator>(const Entry& other) const {
    return distance > other.distance || (distance == other.distance && index > other.index);
  }
};

class Solver {
 public:
  Solver(const ScoreMatrix& scores, std::string_view where, std::span<const double> start)
      : scores_(scores),
        n_(scores.n),
        kernels_(row_kernels()),
        price_(n_),
        column_of_(n_, -1),
        row_of_(n_, -1),
        assigned_score_(n_),
        lists_(n_),
        candidates_(n_ * kListRoom),
        distance_(n_, kInfinity),
        settled_(n_, 0),
        from_row_(n_),
        from_score_(n_),
        offset_(n_),
        scratch_(n_) {
    const std::int64_t left = reduce_columns(where);
    if (left * kFewParts < n_) return;
    if (!start.empty())
      start_from(start);
    else if (zero_lines() * kFewDeadParts >= n_)
      start_from(std::vector<double>(n_, 0.0));
  }

  Assignment solve() {
    for (const std::int32_t row : reduce_rows()) augment(row);
    Assignment result{column_of_, std::vector<double>(n_), price_, 0.0};
    for (std::int64_t i = 0; i < n_; ++i) {
      const double score = assigned_score_[i];
      result.row_dual[i] = score - price_[column_of_[i]];
      result.value += score;
    }
    return result;
  }

 private:
  /// Prices start at the columns' largest scores, so that no row has a positive margin; a column
  /// goes to the row of that score unless the row has one already. Returns how many rows are left.
  std::int64_t reduce_columns(std::string_view where) {
    std::vector<float> largest(n_, -std::numeric_limits<float>::infinity());
    std::vector<std::int32_t> row(n_, 0);
    for (std::int64_t i = 0; i < n_; ++i)
      if (!kernels_.update_column_maxima(scores_.row(i), n_, static_cast<std::int32_t>(i),
                                         largest.data(), row.data()))
        fail_not_finite(scores_, i, where);
    for (std::int64_t j = n_ - 1; j >= 0; --j) {
      price_[j] = largest[j];
      if (column_of_[row[j]] < 0) assign(row[j], static_cast<std::int32_t>(j), largest[j]);
    }
    return std::count(column_of_.begin(), column_of_.end(), -1);
  }

  /// Rows without a score other than 0, and columns whose largest is 0: units that never vary. From
  /// the columns' largest scores on, such rows would all queue for the same cheap columns.
  std::int64_t zero_lines() const {
    std::int64_t lines = std::count(price_.begin(), price_.end(), 0.0);
    for (std::int64_t i = 0; i < n_; ++i) {
      const float* const s = scores_.row(i);
      lines += std::all_of(s, s + n_, [](float x) { return x == 0.0F; }) ? 1 : 0;
    }
    return lines;
  }

  /// Every row then looks for its column at these prices.
  void start_from(std::span<const double> prices) {
    std::copy(prices.begin(), prices.end(), price_.begin());
    std::fill(column_of_.begin(), column_of_.end(), -1);
    std::fill(row_of_.begin(), row_of_.end(), -1);
  }

  /// Augmenting row reduction: a free row takes its best column and raises that column's price
  /// until its second best is as good; the row that had it looks again. Returns the rows left free.
  std::vector<std::int32_t> reduce_rows() {
    std::vector<std::int32_t> stack;
    for (std::int64_t i = n_ - 1; i >= 0; --i)
      if (column_of_[i] < 0) stack.push_back(static_cast<std::int32_t>(i));
    std::vector<std::int32_t> left;
    for (std::int64_t steps = kReductionSteps * n_; !stack.empty(); --steps) {
      const std::int32_t row = stack.back();
      stack.pop_back();
      Best best = steps > 0 ? best_two(row) : Best{};
      if (!best.certain && steps > 0) {
        make_list(row);
        best = best_two(row);
      }
      // At a tie the price would not move, and the two rows could take turns for ever.
      if (!best.certain || best.margin <= best.second) {
        left.push_back(row);
        continue;
      }
      const std::int32_t evicted = row_of_[best.column];
      price_[best.column] += best.margin - best.second;
      assign(row, best.column, best.score);
      if (evicted >= 0) {
        column_of_[evicted] = -1;
        stack.push_back(evicted);
      }
    }
    std::sort(left.begin(), left.end());
    return left;
  }

  struct Best {
    double margin = -kInfinity;
    double second = -kInfinity;
    float score = 0;
    std::int32_t column = -1;
    bool certain = false;  // no column outside the list comes between
  };

  Best best_two(std::int32_t row) {
    if (lists_[row].size < 0) make_list(row);
    Best best;
    for (const Candidate *c = list_begin(row), *end = list_end(row);
         c != end && c->margin > best.second; ++c) {
      const double margin = c->score - price_[c->column];
      if (margin > best.margin) {
        best.second = best.margin;
        best.margin = margin;
        best.score = c->score;
        best.column = c->column;
      } else if (margin > best.second) {
        best.second = margin;
      }
    }
    best.certain = best.column >= 0 && best.second >= lists_[row].bound;
    return best;
  }

  void make_list(std::int32_t row) {
    const float* scores = scores_.row(row);
    std::array<double, kLanes> lane;
    kernels_.lane_maxima(scores, price_.data(), n_, lane.data());
    std::array<double, kLanes> sorted = lane;
    std::nth_element(sorted.begin(), sorted.begin() + kListRank, sorted.end(), std::greater<>());
    double bound = sorted[kListRank];
    std::int64_t count = kernels_.collect_at_least(scores, price_.data(), n_, bound,
                                                   scratch_.data(), std::min(kListRoom, n_));
    if (count > kListRoom) {  // ties by the dozen: the row is then read in full when its turn comes
      count = 0;
      bound = *std::max_element(lane.begin(), lane.end());
    }
    if (count == n_) bound = -kInfinity;
    Candidate* list = list_begin(row);
    for (std::int64_t k = 0; k < count; ++k) {
      const std::int32_t column = scratch_[k];
      list[k] = {scores[column] - price_[column], scores[column], column};
    }
    std::sort(list, list + count, [](const Candidate& a, const Candidate& b) {
      return a.margin > b.margin || (a.margin == b.margin && a.column < b.column);
    });
    lists_[row] = {static_cast<std::int32_t>(count), bound};
  }

  /// Assigns `root` along a shortest path of reduced costs (Dijkstra) and moves the prices.
  void augment(std::int32_t root) {
    nearest_ = {kInfinity, -1};
    reached_ = -kInfinity;
    visit(root, 0.0);
    while (true) {
      const double next_column = columns_.empty() ? kInfinity : columns_.front().distance;
      const double next_row = unlisted_.empty() ? kInfinity : unlisted_[soonest_].distance;
      if (std::min(next_column, next_row) >= nearest_.distance) break;
      if (next_row <= next_column) {
        list_again();
        continue;
      }
      std::pop_heap(columns_.begin(), columns_.end(), std::greater<>());
      const Entry entry = columns_.back();
      columns_.pop_back();
      if (settled_[entry.index] != 0) continue;  // an older, longer entry of the same column
      reached_ = entry.distance;
      settled_[entry.index] = 1;
      tree_.push_back(entry);
      const std::int32_t row = row_of_[entry.index];
      visit(row, reached_ + (static_cast<double>(assigned_score_[row]) - price_[entry.index]));
    }
    WS_CHECK(nearest_.index >= 0, "no free column was reached");
    for (const Entry& entry : tree_) {
      price_[entry.index] += nearest_.distance - entry.distance;
      settled_[entry.index] = 0;
    }
    for (const std::int32_t column : touched_) distance_[column] = kInfinity;
    columns_.clear();
    unlisted_.clear();
    tree_.clear();
    touched_.clear();
    for (std::int32_t column = nearest_.index, row = -1; row != root;) {
      row = from_row_[column];
      const std::int32_t freed = column_of_[row];
      assign(row, column, from_score_[column]);
      column = freed;
    }
  }

  /// Relaxes the edges of a row that joined the search: column c lies at offset + price - score.
  void visit(std::int32_t row, double offset) {
    if (lists_[row].size < 0) make_list(row);
    offset_[row] = offset;
    relax_list(row);
    await(row);
  }

  /// The columns outside the list lie at offset - bound at the least: wait for that distance.
  void await(std::int32_t row) {
    const double distance = offset_[row] - lists_[row].bound;
    if (distance >= nearest_.distance) return;
    unlisted_.push_back({std::max(distance, reached_), row});
    if (unlisted_.size() == 1 || unlisted_[soonest_] > unlisted_.back())
      soonest_ = unlisted_.size() - 1;
  }

  /// The soonest waiting row is due: a new list, from today's prices.
  void list_again() {
    const Entry entry = unlisted_[soonest_];
    unlisted_[soonest_] = unlisted_.back();
    unlisted_.pop_back();
    soonest_ = 0;
    for (std::size_t k = 1; k < unlisted_.size(); ++k)
      if (unlisted_[soonest_] > unlisted_[k]) soonest_ = k;
    reached_ = entry.distance;
    const std::int32_t row = entry.index;
    const double bound = lists_[row].bound;
    make_list(row);
    if (lists_[row].bound < bound) {
      relax_list(row);
      await(row);
      return;
    }
    const float* scores = scores_.row(row);
    const std::int64_t count =
        kernels_.collect_shorter(scores, price_.data(), n_, offset_[row], nearest_.distance,
                                 distance_.data(), scratch_.data());
    for (std::int64_t k = 0; k < count; ++k)
      relax(row, offset_[row], scratch_[k], scores[scratch_[k]]);
  }

  void relax_list(std::int32_t row) {
    const double offset = offset_[row];
    for (const Candidate *c = list_begin(row), *end = list_end(row);
         c != end && offset - c->margin < nearest_.distance; ++c)
      relax(row, offset, c->column, c->score);
  }

  void relax(std::int32_t row, double offset, std::int32_t column, float score) {
    // Rounding must not lead back behind what is settled: prices would fall.
    const double distance = std::max((offset + price_[column]) - score, reached_);
    if (distance >= nearest_.distance || distance >= distance_[column]) return;
    from_row_[column] = row;
    from_score_[column] = score;
    if (row_of_[column] < 0) {
      nearest_ = {distance, column};
      return;
    }
    if (distance_[column] == kInfinity) touched_.push_back(column);
    distance_[column] = distance;
    columns_.push_back({distance, column});
    std::push_heap(columns_.begin(), columns_.end(), std::greater<>());
  }

  void assign(std::int32_t row, std::int32_t column, float score) {
    column_of_[row] = column;
    row_of_[column] = row;
    assigned_score_[row] = score;
  }

  Candidate* list_begin(std::int32_t row) { return candidates_.data() + row * kListRoom; }
  Candidate* list_end(std::int32_t row) { return list_begin(row) + lists_[row].size; }

  const ScoreMatrix scores_;
  const std::int64_t n_;
  const RowKernels& kernels_;
  std::vector<double> price_;
  std::vector<std::int32_t> column_of_;
  std::vector<std::int32_t> row_of_;
  std::vector<float> assigned_score_;  // of a row, so that the matrix is not read at random
  std::vector<CandidateList> lists_;
  std::vector<Candidate> candidates_;  // (n, kListRoom)

  // The search of one augmentation.
  std::vector<double> distance_;        // of a column that is not free
  std::vector<char> settled_;           // its distance is final
  std::vector<std::int32_t> from_row_;  // the row a column was reached from
  std::vector<float> from_score_;       // and the score of that edge
  std::vector<double> offset_;          // of a row in the search
  std::vector<std::int32_t> touched_;   // columns whose distance is to be forgotten
  std::vector<Entry> columns_;          // heap of columns to settle
  std::vector<Entry> unlisted_;         // rows that wait to be listed again
  std::size_t soonest_ = 0;             // the first of them
  std::vector<Entry> tree_;             // settled columns
  Entry nearest_{kInfinity, -1};        // free column
  double reached_ = 0.0;                // distance of the latest step
  std::vector<std::int32_t> scratch_;
};

}  // namespace

ScoreMatrix score_matrix(const at::Tensor& scores, std::string_view where) {
  if (!scores.defined() || scores.dim() != 2 || scores.size(0) != scores.size(1) ||
      scores.scalar_type() != at::kFloat || !scores.device().is_cpu() ||
      (scores.size(1) > 1 && scores.stride(1) != 1))
    throw Error(ErrorKind::kInput, where,
                scores.defined() ? fmt::format("the scores have {} dimensions of {} elements",
                                               scores.dim(), scores.numel())
                                 : std::string("there are no scores"),
                "a square float32 matrix on the CPU with adjacent columns is needed");
  return {scores.data_ptr<float>(), scores.size(0), scores.stride(0)};
}

Assignment solve_assignment(const ScoreMatrix& scores, std::string_view where,
                            std::span<const double> start) {
  WS_CHECK(scores.n >= 0 && scores.n <= std::numeric_limits<std::int32_t>::max());
  WS_CHECK(start.empty() || static_cast<std::int64_t>(start.size()) == scores.n);
  return Solver(scores, where, start).solve();
}

Certificate certify(const ScoreMatrix& scores, const Assignment& assignment) {
  const std::int64_t n = scores.n;
  WS_CHECK(static_cast<std::int64_t>(assignment.column.size()) == n &&
           static_cast<std::int64_t>(assignment.row_dual.size()) == n &&
           static_cast<std::int64_t>(assignment.column_dual.size()) == n);
  const RowKernels& kernels = row_kernels();
  Certificate certificate;
  std::vector<char> used(n, 0);
  certificate.permutation = true;
  double magnitude = 0.0;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int32_t column = assignment.column[i];
    if (column < 0 || column >= n || used[column] != 0) {
      certificate.permutation = false;
      return certificate;
    }
    used[column] = 1;
    const double score = scores.row(i)[column];
    const double row_dual = assignment.row_dual[i];
    const double column_dual = assignment.column_dual[column];
    magnitude = std::max({magnitude, std::abs(score), std::abs(row_dual), std::abs(column_dual)});
    certificate.slackness =
        std::max(certificate.slackness, std::abs(row_dual + column_dual - score));
    certificate.gap += row_dual + column_dual - score;
    const double margin = kernels.largest_margin(scores.row(i), assignment.column_dual.data(), n);
    certificate.infeasibility = std::max(certificate.infeasibility, margin - row_dual);
  }
  certificate.tolerance = magnitude * 0x1.0p-44;
  return certificate;
}

}  // namespace weightsmith
