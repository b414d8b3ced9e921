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
  if (s.scope == Similarity::Scope::kAllPairs) return {s.models * s.units, s.models * s.units};
  return {s.models - 1, s.units, s.units};
}

}  // namespace

const float* Similarity::cross_block(std::int64_t model) const {
  WS_CHECK(model >= 1 && model < models);
  const float* data = values.data_ptr<float>();
  return scope == Scope::kAllPairs ? data + model * units : data + (model - 1) * units * units;
}

std::int64_t Similarity::block_stride() const {
  return scope == Scope::kAllPairs ? models * units : units;
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
  return {Similarity::Scope::kAllPairs, models, values.size(0) / models,
          values.detach().to(at::kCPU, at::kFloat).contiguous()};
}

Similarity no_similarity(std::int64_t models, std::int64_t units, Similarity::Scope scope) {
  Similarity similarity{scope, models, units, {}};
  similarity.values = at::zeros(expected_shape(similarity), at::kFloat);
  return similarity;
}

void check_similarity(const Similarity& similarity, std::string_view where) {
  const at::Tensor& values = similarity.values;
  const bool sound = similarity.models >= 1 && similarity.units >= 0 && values.defined() &&
                     values.sizes().vec() == expected_shape(similarity) &&
                     values.scalar_type() == at::kFloat && values.device().is_cpu() &&
                     values.is_contiguous();
  if (sound) return;
  throw Error(ErrorKind::kInput, where,
              fmt::format("similarities of {} models of {} units have shape [{}]",
                          similarity.models, similarity.units,
                          values.defined() ? fmt::format("{}", fmt::join(values.sizes(), ", "))
                                           : std::string()),
              fmt::format("contiguous float32 of shape [{}] on the CPU is needed",
                          fmt::join(expected_shape(similarity), ", ")));
}

void check_finite(const Similarity& similarity, std::string_view where) {
  check_similarity(similarity, where);
  WS_CHECK(similarity.scope == Similarity::Scope::kAllPairs);
  const std::int64_t stacked = similarity.models * similarity.units;
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
  if (weight.scope != activation.scope || weight.models != activation.models ||
      weight.units != activation.units)
    throw Error(ErrorKind::kInput, where,
                fmt::format("weight space has {} models of {} units, activation space {} of {}",
                            weight.models, weight.units, activation.models, activation.units),
                "both spaces must describe the same units");
  Similarity result = weight;
  result.values = at::mul(weight.values, balance);
  result.values.add_(activation.values, 1.0 - balance);
  return result;
}

}  // namespace weightsmith
