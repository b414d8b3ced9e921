#include "weightsmith/match/align.h"

#include <spdlog/fmt/fmt.h>

#include <string>
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

Alignment align_units(const ScoreMatrix& scores, const std::string& where) {
  stop_here_if_requested();
  Assignment assignment = solve_assignment(scores, where);
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

}  // namespace

Matching align(const Similarity& similarity, std::int64_t blocks, std::string_view where) {
  check_similarity(similarity, where);
  const std::int64_t n = similarity.units;
  if (blocks < 1 || n % blocks != 0)
    throw Error(ErrorKind::kInput, where, fmt::format("{} units in {} blocks", n, blocks),
                "blocks must divide the units evenly");
  Matching matching = identity_matching(similarity.models, n);
  if (similarity.models == 1 || n == 0) return matching;
  for (std::int64_t i = 1; i < similarity.models; ++i) {
    const ScoreMatrix scores{similarity.cross_block(i), n, similarity.block_stride()};
    const std::string pair = fmt::format("{}, models 0 and {}", where, i);
    const Alignment alignment =
        blocks == 1 ? align_units(scores, pair) : align_in_blocks(scores, blocks, pair);
    for (std::int64_t r = 0; r < n; ++r)
      matching.slot[i * n + alignment.unit[r]] = static_cast<std::int32_t>(r);
    matching.value += alignment.value / static_cast<double>(similarity.models - 1);
  }
  return matching;
}

}  // namespace weightsmith
