#include "weightsmith/match/similarity.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "weightsmith/core/error.h"
#include "weightsmith/match/row_kernels.h"

namespace weightsmith {
namespace {

std::vector<std::int64_t> expected_shape(const Similarity& s) {
  if (s.scope == Similarity::Scope::kAllPairs) return {s.stack.size(), s.stack.size()};
  return {s.stack.models() - 1, s.stack.units(0), s.stack.units(0)};
}

/// Throws unless `values` has the shape.
void check_values(const at::Tensor& values, const UnitStack& stack, bool even_or_all_pairs,
                  const std::vector<std::int64_t>& shape, std::string_view where) {
  const bool sound = stack.models() >= 1 && values.defined() && even_or_all_pairs &&
                     values.sizes().vec() == shape && values.scalar_type() == at::kFloat &&
                     values.device().is_cpu() && values.is_contiguous();
  if (sound) return;
  throw Error(
      ErrorKind::kInput, where,
      fmt::format(
          "similarities of {} units of {} models have shape [{}]", stack.size(), stack.models(),
          values.defined() ? fmt::format("{}", fmt::join(values.sizes(), ", ")) : std::string()),
      fmt::format("contiguous float32 of shape [{}] on the CPU is needed", fmt::join(shape, ", ")));
}

}  // namespace

const float* Similarity::cross_block(std::int64_t model) const {
  WS_CHECK(model >= 1 && model < stack.models());
  const float* data = values.data_ptr<float>();
  const std::int64_t n = stack.units(0);
  return data + (scope == Scope::kAllPairs ? stack.offset(model) : (model - 1) * n * n);
}

std::int64_t Similarity::block_stride() const {
  return scope == Scope::kAllPairs ? stack.size() : stack.units(0);
}

Similarity all_pairs_similarity(const at::Tensor& values, std::int64_t models,
                                std::string_view where) {
  if (models < 1)
    throw Error(ErrorKind::kInput, where, fmt::format("{} models", models), "at least 1 is needed");
  if (!values.defined() || values.dim() != 2 || values.size(0) != values.size(1) ||
      values.size(0) % models != 0)
    throw Error(ErrorKind::kInput, where,
                values.defined() ? fmt::format("the similarities have shape [{}], models: {}",
                                               fmt::join(values.sizes(), ", "), models)
                                 : std::string("there are no similarities"),
                "a square matrix whose size is a multiple of the number of models is needed");
  return {Similarity::Scope::kAllPairs,
          {models, values.size(0) / models},
          values.detach().to(at::kCPU, at::kFloat).contiguous()};
}

Similarity no_similarity(const UnitStack& stack, Similarity::Scope scope) {
  Similarity similarity{scope, stack, {}};
  similarity.values = at::zeros(expected_shape(similarity), at::kFloat);
  return similarity;
}

void check_similarity(const Similarity& similarity, std::string_view where) {
  check_values(similarity.values, similarity.stack,
               similarity.scope == Similarity::Scope::kAllPairs || similarity.stack.is_even(),
               expected_shape(similarity), where);
}

void check_similarity(const PackedSimilarity& similarity, std::string_view where) {
  const bool all_pairs = similarity.scope == Similarity::Scope::kAllPairs;
  check_values(similarity.values, similarity.stack, all_pairs || similarity.stack.is_even(),
               all_pairs
                   ? std::vector<std::int64_t>{packed_size(similarity.stack, similarity.scope)}
                   : expected_shape({similarity.scope, similarity.stack, {}}),
               where);
}

std::int64_t packed_size(const UnitStack& stack, Similarity::Scope scope) {
  if (scope == Similarity::Scope::kAllPairs) return stack.size() * (stack.size() + 1) / 2;
  return (stack.models() - 1) * stack.units(0) * stack.units(0);
}

PackedSimilarity packed(const Similarity& similarity) {
  check_similarity(similarity, "similarities");
  if (similarity.scope == Similarity::Scope::kCrossModel)
    return {similarity.scope, similarity.stack, similarity.values};
  const std::int64_t n = similarity.stack.size();
  PackedSimilarity result{similarity.scope, similarity.stack,
                          at::empty({packed_size(similarity.stack, similarity.scope)}, at::kFloat)};
  const float* const from = similarity.values.data_ptr<float>();
  float* const to = result.values.data_ptr<float>();
  for (std::int64_t r = 0; r < n; ++r)
    std::copy(from + r * n + r, from + (r + 1) * n, to + packed_row(r, n) + r);
  return result;
}

Similarity unpacked(const PackedSimilarity& similarity, Similarity::Scope scope) {
  check_similarity(similarity, "similarities");
  if (similarity.scope == Similarity::Scope::kCrossModel) {
    WS_CHECK(scope == similarity.scope);
    return {similarity.scope, similarity.stack, similarity.values};
  }
  Similarity result{scope, similarity.stack, {}};
  result.values = at::empty(expected_shape(result), at::kFloat);
  const std::int64_t n = similarity.stack.size();
  const float* const from = similarity.values.data_ptr<float>();
  float* const to = result.values.data_ptr<float>();
  if (scope == Similarity::Scope::kCrossModel) {
    WS_CHECK(similarity.stack.is_even());
    const std::int64_t units = similarity.stack.units(0);
    for (std::int64_t i = 1; i < similarity.stack.models(); ++i)
      for (std::int64_t r = 0; r < units; ++r) {
        const float* const row = from + packed_row(r, n) + i * units;
        std::copy(row, row + units, to + ((i - 1) * units + r) * units);
      }
    return result;
  }
  mirror_tiles(n, [&](std::int64_t r, std::int64_t begin, std::int64_t end) {
    const float* const row = from + packed_row(r, n);
    for (std::int64_t c = begin; c < end; ++c) to[r * n + c] = to[c * n + r] = row[c];
  });
  return result;
}

namespace {

/// `row`: the similarities of stacked unit i with those from `begin` on.
void check_finite_row(const float* row, std::int64_t i, std::int64_t begin, std::int64_t end,
                      std::string_view where) {
  if (row_kernels().all_finite(row, end - begin)) return;
  for (std::int64_t j = begin; j < end; ++j)
    if (i != j && !std::isfinite(row[j - begin]))
      throw Error(
          ErrorKind::kNumeric, where,
          fmt::format("the similarity of stacked units {} and {} is {}", i, j, row[j - begin]),
          "similarities must be finite");
}

}  // namespace

void check_finite(const Similarity& similarity, std::string_view where) {
  check_similarity(similarity, where);
  WS_CHECK(similarity.scope == Similarity::Scope::kAllPairs);
  const std::int64_t stacked = similarity.stack.size();
  const float* const values = similarity.values.data_ptr<float>();
  for (std::int64_t i = 0; i < stacked; ++i)
    check_finite_row(values + i * stacked, i, 0, stacked, where);
}

void check_finite(const PackedSimilarity& similarity, std::string_view where) {
  check_similarity(similarity, where);
  WS_CHECK(similarity.scope == Similarity::Scope::kAllPairs);
  const std::int64_t stacked = similarity.stack.size();
  const float* const values = similarity.values.data_ptr<float>();
  for (std::int64_t i = 0; i < stacked; ++i)
    check_finite_row(values + packed_row(i, stacked) + i, i, i, stacked, where);
}

void blend(PackedSimilarity& weight, const PackedSimilarity& activation, double balance,
           std::string_view where) {
  check_similarity(weight, where);
  check_similarity(activation, where);
  if (weight.scope != activation.scope || weight.stack != activation.stack)
    throw Error(ErrorKind::kInput, where,
                fmt::format("weight space has {} units of {} models, activation space {} of {}",
                            weight.stack.size(), weight.stack.models(), activation.stack.size(),
                            activation.stack.models()),
                "both spaces must describe the same units");
  weight.values.mul_(balance).add_(activation.values, 1.0 - balance);
}

}  // namespace weightsmith
