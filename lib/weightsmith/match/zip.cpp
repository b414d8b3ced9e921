#include "weightsmith/match/zip.h"

#include <ATen/Parallel.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "weightsmith/core/error.h"
#include "weightsmith/core/stop.h"
#include "weightsmith/match/align.h"
#include "weightsmith/match/row_kernels.h"

namespace weightsmith {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::int64_t rounded_down(double x) { return static_cast<std::int64_t>(std::floor(x + 1e-4)); }

/// Clusters that `stacked` units are zipped down to.
std::int64_t kept_of(std::int64_t stacked, double reduce) {
  return rounded_down(static_cast<double>(stacked) * (1.0 - reduce));
}

/// How many merges inside one part (a model, a block of a model) are still allowed. A budget of 0
/// closes after its first merge, not before.
struct Budget {
  std::int64_t left = 0;
  bool closed = false;

  void spend() { closed = --left <= 0; }
};

/// The clusters of one zip: a matrix of their similarities, a row and column each, named by their
/// lowest unit. Its parts are the units of one model each.
class Clusters {
 public:
  explicit Clusters(const UnitStack& parts)
      : parts_(parts),
        n_(parts.size()),
        // A row length that is not a power of two spreads a column over the caches' sets.
        stride_((n_ + 31) / 16 * 16),
        kernels_(row_kernels()),
        values_(std::make_unique_for_overwrite<float[]>(n_ * stride_)),
        alive_(n_, -1),
        best_(n_, -kInfinity),
        best_column_(n_, -1),
        joined_(n_, -1) {}

  float* row(std::int64_t i) { return values_.get() + i * stride_; }

  /// Call once the rows are filled in.
  void start() {
    at::parallel_for(0, n_, 64, [this](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        row(i)[i] = -kInfinity;
        look_again(i);
      }
    });
  }

  struct Pair {
    float similarity = -kInfinity;
    std::int64_t low = -1;
    std::int64_t high = -1;
  };

  /// The largest entry, the first in row-major order among equals; `low` = -1 when none is left.
  Pair closest() {
    while (true) {
      const FirstMaximum top = kernels_.first_maximum(best_.data(), alive_.data(), n_);
      if (top.index < 0) return {};
      const std::int64_t column = best_column_[top.index];
      if (column != kStale)
        return {top.value, std::min<std::int64_t>(top.index, column),
                std::max<std::int64_t>(top.index, column)};
      look_again(top.index);
    }
  }

  /// `high` joins `low`.
  void merge(std::int64_t low, std::int64_t high, float a) {
    alive_[high] = 0;
    joined_[high] = static_cast<std::int32_t>(low);
    float* merged = row(low);
    kernels_.lower_and_scale(merged, row(high), a, n_);
    for (std::int64_t i = 0; i < n_; ++i) {
      if (alive_[i] == 0 || i == low) continue;
      const float value = merged[i];
      row(i)[low] = value;
      update_best(i, low, high, value);
    }
    look_again(low);
  }

  /// Forbids merges inside a part.
  void close_part(std::int64_t part) {
    const std::int64_t begin = parts_.offset(part);
    const std::int64_t end = parts_.offset(part + 1);
    for (std::int64_t i = begin; i < end; ++i) {
      if (alive_[i] == 0) continue;
      std::fill(row(i) + begin, row(i) + end, -kInfinity);
      look_again(i);
    }
  }

  std::int64_t part_of(std::int64_t cluster) const { return parts_.model_of(cluster); }

  /// Numbers surviving clusters from `first` on; returns the number of each unit.
  std::vector<std::int32_t> numbered(std::int64_t first) const {
    std::vector<std::int32_t> slot(n_);
    for (std::int64_t i = 0; i < n_; ++i)  // a unit joins a lower one, whose number is known
      slot[i] = joined_[i] < 0 ? static_cast<std::int32_t>(first++) : slot[joined_[i]];
    return slot;
  }

 private:
  static constexpr std::int32_t kStale = -2;

  void look_again(std::int64_t i) {
    const FirstMaximum top = kernels_.first_maximum(row(i), alive_.data(), n_);
    best_[i] = top.value;
    best_column_[i] = top.index;
  }

  /// Row i's entry of `low` is now `value`, and that of `high` is gone. Where the row's best was
  /// one of them and fell, it stays as an upper bound and the row is stale: it looks again only
  /// when it comes out on top.
  void update_best(std::int64_t i, std::int64_t low, std::int64_t high, float value) {
    const std::int32_t column = best_column_[i];
    if (value > best_[i]) {
      best_[i] = value;
      best_column_[i] = static_cast<std::int32_t>(low);
    } else if (column == low || column == high) {
      // An equal value at `low` stands before every other of its size: it was the first, or the
      // first was `high`, further right.
      best_column_[i] =
          value == best_[i] && value > -kInfinity ? static_cast<std::int32_t>(low) : kStale;
    } else if (value == best_[i] && low < column) {
      best_column_[i] = static_cast<std::int32_t>(low);
    }
  }

  const UnitStack parts_;
  const std::int64_t n_;
  const std::int64_t stride_;
  const RowKernels& kernels_;
  std::unique_ptr<float[]> values_;        // (n, stride); columns of dead clusters are left as is
  std::vector<std::int32_t> alive_;        // -1 or 0
  std::vector<float> best_;                // of a row: its largest entry, or a bound where stale
  std::vector<std::int32_t> best_column_;  // the first column of that entry, -1 where there is none
  std::vector<std::int32_t> joined_;       // the cluster a dead one joined
};

/// Fills the rows of clusters: cluster x is stacked unit unit[x], which ascend.
void fill_rows(const Similarity& similarity, Clusters& clusters,
               const std::vector<std::int64_t>& unit) {
  const auto n = static_cast<std::int64_t>(unit.size());
  const float* const values = similarity.values.data_ptr<float>();
  at::parallel_for(0, n, 64, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t x = begin; x < end; ++x) {
      const float* const from = values + unit[x] * similarity.stack.size();
      float* const to = clusters.row(x);
      for (std::int64_t y = 0; y < n; ++y) to[y] = from[unit[y]];
    }
  });
}

void fill_rows(const PackedSimilarity& similarity, Clusters& clusters,
               const std::vector<std::int64_t>& unit) {
  const auto n = static_cast<std::int64_t>(unit.size());
  const float* const values = similarity.values.data_ptr<float>();
  mirror_tiles(n, [&](std::int64_t x, std::int64_t begin, std::int64_t end) {
    const float* const from = values + packed_row(unit[x], similarity.stack.size());
    float* const to = clusters.row(x);
    for (std::int64_t y = begin; y < end; ++y) to[y] = clusters.row(y)[x] = from[unit[y]];
  });
}

struct Tally {
  double sum = 0.0;
  std::int64_t merges = 0;
};

/// Zips `clusters` by `merges` merges; the parts' budgets are `models` and, where blocks are
/// counted, `blocks`.
void zip_clusters(Clusters& clusters, std::int64_t merges, float a, std::vector<Budget>& models,
                  std::vector<Budget>* blocks, Tally& tally, std::string_view where) {
  for (std::int64_t done = 0; done < merges; ++done) {
    stop_here_if_requested();
    const Clusters::Pair pair = clusters.closest();
    if (pair.low < 0)
      throw Error(
          ErrorKind::kConfig, where,
          fmt::format("zip has no admissible pair left after {} of {} merges", done, merges),
          "raise the zip option b (merges allowed inside one model) or lower reduce");
    tally.sum += pair.similarity;
    ++tally.merges;
    clusters.merge(pair.low, pair.high, a);
    const std::int64_t part = clusters.part_of(pair.low);
    if (part != clusters.part_of(pair.high)) continue;
    models[part].spend();
    if (blocks != nullptr) (*blocks)[part].spend();
    if (models[part].closed || (blocks != nullptr && (*blocks)[part].closed))
      clusters.close_part(part);
  }
}

}  // namespace

void check_zip_options(const ZipOptions& options, std::string_view where) {
  const auto fail = [&](const char* name, double value, const char* range) {
    throw Error(ErrorKind::kConfig, where, fmt::format("the zip option {} is {}", name, value),
                fmt::format("it must be {}", range));
  };
  // Negated, so that NaN fails too.
  if (!(options.reduce >= 0.0 && options.reduce < 1.0)) fail("reduce", options.reduce, "in [0, 1)");
  if (!(options.a > 0.0 && std::isfinite(options.a))) fail("a", options.a, "above 0");
  if (!(options.b >= 0.0 && std::isfinite(options.b))) fail("b", options.b, "at least 0");
  if (!(options.b_block >= 0.0 && std::isfinite(options.b_block)))
    fail("b_block", options.b_block, "at least 0");
}

std::int64_t zip_slots(const UnitStack& stack, std::int64_t blocks, double reduce) {
  return blocks * kept_of(stack.size() / blocks, reduce);
}

namespace {

/// align() reads these as they are.
const Similarity& across_models(const Similarity& similarity) { return similarity; }
using weightsmith::across_models;

/// `given`: the sets of blocks, or null to find them.
template <class AnySimilarity>
Matching zip_in_sets(const AnySimilarity& similarity, const ZipOptions& options,
                     std::int64_t blocks, const Matching* given, std::string_view where) {
  check_zip_options(options, where);
  check_similarity(similarity, where);
  const UnitStack& stack = similarity.stack;
  const std::int64_t models = stack.models();
  if (similarity.scope != Similarity::Scope::kAllPairs)
    throw Error(ErrorKind::kInput, where, "zip got similarities across models only",
                "similarities of all pairs are needed");
  std::vector<std::int64_t> in_block;  // units of a block of each model
  for (std::int64_t i = 0; i < models; ++i) {
    if (blocks < 1 || stack.units(i) % blocks != 0)
      throw Error(ErrorKind::kInput, where,
                  fmt::format("{} units in {} blocks", stack.units(i), blocks),
                  "blocks must divide the units evenly");
    in_block.push_back(stack.units(i) / blocks);
  }
  check_finite(similarity, where);

  const std::int64_t stacked = stack.size();
  if (stacked == 0) return identity_matching(models, 0);
  const UnitStack set_stack(in_block);  // the blocks that form a set
  const std::int64_t set = set_stack.size();
  const std::int64_t kept = kept_of(set, options.reduce);
  if (kept < 1)
    throw Error(ErrorKind::kConfig, where,
                fmt::format("reduce {} leaves none of {} units", options.reduce, set),
                "lower the zip option reduce; 1 - 1 / models keeps the width");
  const std::int64_t removed = stacked - kept_of(stacked, options.reduce);
  std::vector<Budget> model_budgets(
      models, Budget{rounded_down(static_cast<double>(removed / models) * options.b)});
  const Budget block_budget{rounded_down(static_cast<double>(removed) * options.b_block /
                                         static_cast<double>(models * blocks))};
  // The set of every block of every model.
  const auto sets = [&]() -> std::vector<std::int32_t> {
    if (given != nullptr) return given->slot;
    std::vector<std::int32_t> found(models * blocks, 0);
    if (blocks == 1) return found;
    if (!stack.is_even())
      throw Error(ErrorKind::kInput, where,
                  "the models have different numbers of units in blocks that are to be assigned",
                  "only blocks of equal models can be");
    const Matching order = align(across_models(similarity), blocks, where);
    const std::int64_t q = in_block.front();
    for (std::int64_t i = 0; i < models; ++i)
      for (std::int64_t k = 0; k < blocks; ++k)
        found[i * blocks + k] = static_cast<std::int32_t>(order.slots_of(i)[k * q] / q);
    return found;
  };
  const std::vector<std::int32_t> set_of = sets();

  std::vector<std::int32_t> slot(stacked);
  std::int64_t slots = 0;
  Tally tally;
  for (std::int64_t s = 0; s < blocks; ++s) {
    std::vector<std::int64_t> unit;  // of the set's blocks, model after model
    for (std::int64_t i = 0; i < models; ++i)
      for (std::int64_t k = 0; k < blocks; ++k)
        if (set_of[i * blocks + k] == s)
          for (std::int64_t u = 0; u < in_block[i]; ++u)
            unit.push_back(stack.offset(i) + k * in_block[i] + u);
    Clusters clusters(set_stack);
    fill_rows(similarity, clusters, unit);
    clusters.start();
    std::vector<Budget> block_budgets(models, block_budget);
    for (std::int64_t i = 0; i < models; ++i)
      if (model_budgets[i].closed) clusters.close_part(i);
    zip_clusters(clusters, set - kept, static_cast<float>(options.a), model_budgets,
                 blocks > 1 ? &block_budgets : nullptr, tally, where);
    const std::vector<std::int32_t> numbered = clusters.numbered(slots);
    for (std::size_t x = 0; x < unit.size(); ++x) slot[unit[x]] = numbered[x];
    slots += kept;
  }
  const double value = tally.merges == 0 ? 0.0 : tally.sum / static_cast<double>(tally.merges);
  return make_matching(stack, slots, std::move(slot), value);
}

}  // namespace

Matching zip(const Similarity& similarity, const ZipOptions& options, std::int64_t blocks,
             std::string_view where) {
  return zip_in_sets(similarity, options, blocks, nullptr, where);
}

Matching zip(const PackedSimilarity& similarity, const ZipOptions& options, std::int64_t blocks,
             std::string_view where) {
  return zip_in_sets(similarity, options, blocks, nullptr, where);
}

Matching zip_within(const PackedSimilarity& similarity, const ZipOptions& options,
                    const Matching& blocks, std::string_view where) {
  WS_CHECK(blocks.stack.models() == similarity.stack.models() && blocks.is_permutation(), where);
  return zip_in_sets(similarity, options, blocks.slots, &blocks, where);
}

}  // namespace weightsmith
