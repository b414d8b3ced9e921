#include "weightsmith/match/similarity.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

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
  const at::Tensor& values = similarity.values;
  const UnitStack& stack = similarity.stack;
  const bool sound = stack.models() >= 1 && values.defined() &&
                     (similarity.scope == Similarity::Scope::kAllPairs || stack.is_even()) &&
                     values.sizes().vec() == expected_shape(similarity) &&
                     values.scalar_type() == at::kFloat && values.device().is_cpu() &&
                     values.is_contiguous();
  if (sound) return;
  throw Error(
      ErrorKind::kInput, where,
      fmt::format(
          "similarities of {} units of {} models have shape [{}]", stack.size(), stack.models(),
          values.defined() ? fmt::format("{}", fmt::join(values.sizes(), ", ")) : std::string()),
      fmt::format("contiguous float32 of shape [{}] on the CPU is needed",
                  fmt::join(expected_shape(similarity), ", ")));
}

void check_finite(const Similarity& similarity, std::string_view where) {
  check_similarity(similarity, where);
  WS_CHECK(similarity.scope == Similarity::Scope::kAllPairs);
  const std::int64_t stacked = similarity.stack.size();
  const float* values = similarity.values.data_ptr<float>();
  const RowKernels& kernels = row_kernels();
  for (std::int64_t i = 0; i < stacked; ++i) {
    const float* row = values + i * stacked;
    if (kernels.all_finite(row, stacked)) continue;
    for (std::int64_t j = 0; j < stacked; ++j)
      if (i != j && !std::isfinite(row[j]))
        throw Error(ErrorKind::kNumeric, where,
                    fmt::format("the similarity of stacked units {} and {} is {}", i, j, row[j]),
                    "similarities must be finite");
  }
}

Similarity blend(const Similarity& weight, const Similarity& activation, double balance,
                 std::string_view where) {
  check_similarity(weight, where);
  check_similarity(activation, where);
  if (weight.scope != activation.scope || weight.stack != activation.stack)
    throw Error(ErrorKind::kInput, where,
                fmt::format("weight space has {} units of {} models, activation space {} of {}",
                            weight.stack.size(), weight.stack.models(), activation.stack.size(),
                            activation.stack.models()),
                "both spaces must describe the same units");
  Similarity result = weight;
  result.values = at::mul(weight.values, balance);
  result.values.add_(activation.values, 1.0 - balance);
  return result;
}

}  // namespace weightsmith
