#include "weightsmith/match/align.h"

#include <ATen/Functions.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "weightsmith/core/error.h"
#include "weightsmith/core/stop.h"
#include "weightsmith/match/assignment.h"

namespace weightsmith {
namespace {

struct Alignment {
  std::vector<std::int32_t> unit;  // of the aligned model, by unit of model 0
  double value = 0.0;              // mean matched similarity
};

/// `prices`: where to start, then where it ended; empty: unknown.
Alignment align_units(const ScoreMatrix& scores, const std::string& where,
                      std::vector<double>* prices = nullptr) {
  stop_here_if_requested();
  Assignment assignment = solve_assignment(
      scores, where, prices ? std::span<const double>(*prices) : std::span<const double>());
  if (prices) *prices = std::move(assignment.column_dual);
  return {std::move(assignment.column), assignment.value / static_cast<double>(scores.n)};
}

Alignment align_in_blocks(const ScoreMatrix& scores, std::int64_t blocks,
                          const std::string& where) {
  const std::int64_t q = scores.n / blocks;
  std::vector<Alignment> inner(blocks * blocks);
  std::vector<float> means(blocks * blocks);
  for (std::int64_t j = 0; j < blocks; ++j) {
    for (std::int64_t k = 0; k < blocks; ++k) {
      const ScoreMatrix block{scores.row(j * q) + k * q, q, scores.stride};
      Alignment& pair = inner[j * blocks + k];
      pair = align_units(block, fmt::format("{}, blocks {} and {}", where, j, k));
      means[j * blocks + k] = static_cast<float>(pair.value);
    }
  }
  const Assignment outer = solve_assignment({means.data(), blocks, blocks}, where);
  Alignment result{std::vector<std::int32_t>(scores.n), 0.0};
  for (std::int64_t j = 0; j < blocks; ++j) {
    const std::int64_t k = outer.column[j];
    const Alignment& pair = inner[j * blocks + k];
    for (std::int64_t r = 0; r < q; ++r)
      result.unit[j * q + r] = static_cast<std::int32_t>(k * q + pair.unit[r]);
    result.value += pair.value / static_cast<double>(blocks);
  }
  return result;
}

Alignment align_matrix(const ScoreMatrix& scores, std::int64_t blocks, const std::string& where,
                       std::vector<double>* prices) {
  return blocks == 1 ? align_units(scores, where, prices) : align_in_blocks(scores, blocks, where);
}

/// Block j of model 0 against block k of model i, of q units each.
ScoreMatrix block_of(const Similarity& similarity, std::int64_t i, std::int64_t q, std::int64_t j,
                     std::int64_t k) {
  return {similarity.cross_block(i) + j * q * similarity.block_stride() + k * q, q,
          similarity.block_stride()};
}

void check_blocks(const Similarity& similarity, std::int64_t blocks, std::string_view where) {
  check_similarity(similarity, where);
  if (!similarity.stack.is_even())
    throw Error(ErrorKind::kInput, where, "the models have different numbers of units",
                "a permutation needs equal ones; zip does not");
  const std::int64_t units = similarity.stack.units(0);
  if (blocks < 1 || units % blocks != 0)
    throw Error(ErrorKind::kInput, where, fmt::format("{} units in {} blocks", units, blocks),
                "blocks must divide the units evenly");
}

void check_all_pairs(const Similarity& similarity, std::string_view where) {
  if (similarity.scope != Similarity::Scope::kAllPairs)
    throw Error(ErrorKind::kInput, where, "similarities with the first model only",
                "aligning with the mean needs similarities of all pairs");
}

/// The units of every model by slot, while models take turns.
class Turns {
 public:
  Turns(const Similarity& similarity, const Matching& start)
      : similarity_(similarity), n_(similarity.stack.units(0)), models_(similarity.stack.models()) {
    for (std::int64_t i = 0; i < models_; ++i) unit_.push_back(start.unit_of(i));
    scores_.resize(n_ * n_);
    prices_.resize(models_);
  }

  /// Assigns one model anew; whether that was a gain.
  bool turn(std::int64_t i, std::int64_t blocks, const std::string& where) {
    fill_scores(i);
    double present = 0;
    for (std::int64_t r = 0; r < n_; ++r)
      present += static_cast<double>(scores_[r * n_ + unit_[i][r]]);
    Alignment found = align_matrix({scores_.data(), n_, n_}, blocks, where, &prices_[i]);
    // Rounding must not count as a gain, or models could take turns for ever.
    if (!(found.value > present / static_cast<double>(n_) + 1e-9)) return false;
    unit_[i] = std::move(found.unit);
    return true;
  }

  Matching matching() const {
    Matching matching = identity_matching(models_, n_);
    double total = 0;
    const float* values = similarity_.values.data_ptr<float>();
    for (std::int64_t r = 0; r < n_; ++r) {
      for (std::int64_t i = 0; i < models_; ++i) {
        matching.slot[i * n_ + unit_[i][r]] = unit_[0][r];
        for (std::int64_t j = i + 1; j < models_; ++j)
          total += static_cast<double>(
              values[(i * n_ + unit_[i][r]) * models_ * n_ + j * n_ + unit_[j][r]]);
      }
    }
    const double pairs = static_cast<double>(models_ * (models_ - 1)) / 2;
    matching.value = total / (pairs * static_cast<double>(n_));
    return matching;
  }

 private:
  /// Slots (rows) against the units of model i: mean similarity with the other models' units there.
  void fill_scores(std::int64_t i) {
    std::fill(scores_.begin(), scores_.end(), 0.0F);
    const float part = 1.0F / static_cast<float>(models_ - 1);
    const float* values = similarity_.values.data_ptr<float>();
    for (std::int64_t j = 0; j < models_; ++j) {
      if (j == i) continue;
      for (std::int64_t r = 0; r < n_; ++r) {
        const float* row = values + (j * n_ + unit_[j][r]) * models_ * n_ + i * n_;
        for (std::int64_t k = 0; k < n_; ++k) scores_[r * n_ + k] += part * row[k];
      }
    }
  }

  const Similarity& similarity_;
  std::int64_t n_;
  std::int64_t models_;
  std::vector<std::vector<std::int32_t>> unit_;  // [model][slot]
  std::vector<float> scores_;
  AlignPrices prices_;  // of each model's last turn
};

}  // namespace

Matching align(const Similarity& similarity, std::int64_t blocks, std::string_view where,
               AlignPrices* prices) {
  check_blocks(similarity, blocks, where);
  const std::int64_t n = similarity.stack.units(0);
  Matching matching = identity_matching(similarity.stack.models(), n);
  if (similarity.stack.models() == 1 || n == 0) return matching;
  if (prices) prices->resize(similarity.stack.models() - 1);
  for (std::int64_t i = 1; i < similarity.stack.models(); ++i) {
    const ScoreMatrix scores{similarity.cross_block(i), n, similarity.block_stride()};
    const std::string pair = fmt::format("{}, models 0 and {}", where, i);
    const Alignment alignment =
        align_matrix(scores, blocks, pair, prices ? &(*prices)[i - 1] : nullptr);
    for (std::int64_t r = 0; r < n; ++r)
      matching.slot[i * n + alignment.unit[r]] = static_cast<std::int32_t>(r);
    matching.value += alignment.value / static_cast<double>(similarity.stack.models() - 1);
  }
  return matching;
}

at::Tensor block_affinities(const Similarity& similarity, std::int64_t blocks,
                            std::string_view where) {
  check_blocks(similarity, blocks, where);
  const std::int64_t q = similarity.stack.units(0) / blocks;
  at::Tensor means = at::empty({similarity.stack.models() - 1, blocks, blocks}, at::kFloat);
  auto* mean = means.data_ptr<float>();
  for (std::int64_t i = 1; i < similarity.stack.models(); ++i)
    for (std::int64_t j = 0; j < blocks; ++j)
      for (std::int64_t k = 0; k < blocks; ++k)
        *mean++ = static_cast<float>(align_units(block_of(similarity, i, q, j, k),
                                                 fmt::format("{}, blocks {} and {}", where, j, k))
                                         .value);
  return means;
}

Matching align_within(const Similarity& similarity, const Matching& blocks,
                      std::string_view where) {
  const std::int64_t count = blocks.stack.units(0);
  check_blocks(similarity, count, where);
  const std::int64_t n = similarity.stack.units(0);
  const std::int64_t q = n / count;
  Matching matching = identity_matching(similarity.stack.models(), n);
  const double parts = static_cast<double>((similarity.stack.models() - 1) * count);
  for (std::int64_t i = 1; i < similarity.stack.models(); ++i) {
    const std::vector<std::int32_t> block = blocks.unit_of(i);
    for (std::int64_t j = 0; j < count; ++j) {
      const Alignment inner = align_units(block_of(similarity, i, q, j, block[j]),
                                          fmt::format("{}, blocks {} and {}", where, j, block[j]));
      for (std::int64_t r = 0; r < q; ++r)
        matching.slot[i * n + block[j] * q + inner.unit[r]] = static_cast<std::int32_t>(j * q + r);
      matching.value += inner.value / parts;
    }
  }
  return matching;
}

Similarity block_similarity(const Similarity& similarity, std::int64_t blocks,
                            std::string_view where) {
  check_blocks(similarity, blocks, where);
  check_all_pairs(similarity, where);
  const std::int64_t models = similarity.stack.models();
  const std::int64_t n = similarity.stack.units(0);
  Similarity result = no_similarity({models, blocks}, Similarity::Scope::kAllPairs);
  const auto part = [](const at::Tensor& all, std::int64_t i, std::int64_t j, std::int64_t size) {
    return all.narrow(0, i * size, size).narrow(1, j * size, size);
  };
  for (std::int64_t i = 0; i < models; ++i)
    for (std::int64_t j = i + 1; j < models; ++j) {
      const Similarity pair{Similarity::Scope::kCrossModel,
                            {2, n},
                            part(similarity.values, i, j, n).contiguous().unsqueeze(0)};
      const at::Tensor means = block_affinities(pair, blocks, where)[0];
      part(result.values, i, j, blocks).copy_(means);
      part(result.values, j, i, blocks).copy_(means.t());
    }
  return result;
}

Matching align_within_to_mean(const Similarity& similarity, const Matching& blocks,
                              std::string_view where) {
  const std::int64_t count = blocks.stack.units(0);
  check_blocks(similarity, count, where);
  check_all_pairs(similarity, where);
  const std::int64_t models = similarity.stack.models();
  const std::int64_t n = similarity.stack.units(0);
  const std::int64_t q = n / count;
  Matching matching = identity_matching(models, n);
  std::vector<std::vector<std::int32_t>> block;  // [model][slot]
  for (std::int64_t i = 0; i < models; ++i) block.push_back(blocks.unit_of(i));
  for (std::int64_t j = 0; j < count; ++j) {
    std::vector<std::int64_t> units;  // of the blocks in slot j, model after model
    for (std::int64_t i = 0; i < models; ++i)
      for (std::int64_t r = 0; r < q; ++r) units.push_back(i * n + block[i][j] * q + r);
    const at::Tensor index = at::tensor(units, at::kLong);
    const Matching inner =
        align_to_mean({Similarity::Scope::kAllPairs,
                       {models, q},
                       similarity.values.index_select(0, index).index_select(1, index)},
                      1, where);
    for (std::size_t u = 0; u < units.size(); ++u)
      matching.slot[units[u]] = static_cast<std::int32_t>(j * q) + inner.slot[u];
    matching.value += inner.value / static_cast<double>(count);
  }
  return matching;
}

Matching align_to_mean(const Similarity& similarity, std::int64_t blocks, std::string_view where,
                       AlignPrices* prices) {
  check_blocks(similarity, blocks, where);
  if (similarity.stack.models() <= 2 || similarity.stack.units(0) == 0)
    return align(similarity, blocks, where, prices);
  check_all_pairs(similarity, where);
  Turns turns(similarity, align(similarity, blocks, where, prices));
  // Every gain raises a total that is bounded; the bound on rounds is for a clock, not for sense.
  constexpr int kMostRounds = 100;
  for (int round = 0; round < kMostRounds; ++round) {
    bool gained = false;
    for (std::int64_t i = 0; i < similarity.stack.models(); ++i)
      gained |= turns.turn(i, blocks, fmt::format("{}, model {} against the others", where, i));
    if (!gained) break;
  }
  return turns.matching();
}

}  // namespace weightsmith
