#include "weightsmith/distance/field_distance.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>

#include "weightsmith/core/error.h"
#include "weightsmith/core/rng.h"
#include "weightsmith/core/stop.h"
#include "weightsmith/data/random_stream.h"

namespace weightsmith {

EnumNames<DistanceKind> enum_names(DistanceKind) {
  return {{DistanceKind::kCosine, "cosine"},
          {DistanceKind::kEuclidean, "euclidean"},
          {DistanceKind::kFrechetCosine, "frechet_cosine"},
          {DistanceKind::kFrechetEuclidean, "frechet_euclidean"},
          {DistanceKind::kCosineNormalised, "cosine_normalised"},
          {DistanceKind::kAbsolute, "absolute"},
          {DistanceKind::kInverseCosine, "inverse_cosine"}};
}

FieldSource source_of(const at::Tensor& field) {
  WS_CHECK(field.dim() == 3);
  const at::Tensor rows = field.reshape({-1, field.size(2)});
  return {field.size(0), field.size(1), field.size(2),
          [rows](std::int64_t begin, std::int64_t count) { return rows.narrow(0, begin, count); }};
}

namespace {

constexpr double kEps = 1e-8;

bool is_frechet(DistanceKind kind) {
  return kind == DistanceKind::kFrechetCosine || kind == DistanceKind::kFrechetEuclidean;
}
bool is_cosine(DistanceKind kind) {
  return kind == DistanceKind::kCosine || kind == DistanceKind::kFrechetCosine ||
         kind == DistanceKind::kCosineNormalised;
}

void check_shapes(const std::vector<FieldSource>& fields) {
  for (std::size_t m = 0; m < fields.size(); ++m) {
    const FieldSource &a = fields.front(), &b = fields[m];
    if (a.samples != b.samples || a.steps != b.steps || a.dimensions != b.dimensions)
      throw Error(ErrorKind::kInput, fmt::format("field {}", m),
                  fmt::format("is ({}, {}, {}), the first is ({}, {}, {})", b.samples, b.steps,
                              b.dimensions, a.samples, a.steps, a.dimensions),
                  "compute them from the same reference and settings");
  }
  WS_CHECK(!fields.empty());
}

/// Mean and reciprocal deviation of each of D over all rows, (models, 1, D) float64. A coordinate
/// that does not vary stays 0.
struct Standardisation {
  at::Tensor mean, scale;
};

/// Runs over all fields in stretches of rows: `visit(begin, (models, rows, D))`.
void for_stretches(const std::vector<FieldSource>& fields, std::int64_t memory_bytes,
                   const std::function<void(std::int64_t, const at::Tensor&)>& visit) {
  const FieldSource& first = fields.front();
  const std::int64_t rows = first.samples * first.steps;
  // Rows, their unit vectors and products.
  const std::int64_t row_bytes = 4 * 8 * static_cast<std::int64_t>(fields.size()) *
                                 std::max<std::int64_t>(first.dimensions, 1);
  const std::int64_t stretch = std::max<std::int64_t>(1, memory_bytes / row_bytes);
  for (std::int64_t begin = 0; begin < rows; begin += stretch) {
    stop_here_if_requested();
    const std::int64_t count = std::min(stretch, rows - begin);
    std::vector<at::Tensor> parts;
    for (const FieldSource& field : fields) parts.push_back(field.rows(begin, count));
    visit(begin, at::stack(parts));
  }
}

Standardisation standardise(const std::vector<FieldSource>& fields, std::int64_t memory_bytes) {
  const FieldSource& first = fields.front();
  const auto rows = static_cast<double>(first.samples * first.steps);
  const auto models = static_cast<std::int64_t>(fields.size());
  // Shifted by the first row, so that a mean far from zero costs no digits.
  at::Tensor shift;
  at::Tensor sum = at::zeros({models, 1, first.dimensions}, at::kDouble);
  at::Tensor squares = at::zeros_like(sum);
  for_stretches(fields, memory_bytes, [&](std::int64_t, const at::Tensor& block) {
    const at::Tensor exact = block.to(at::kDouble);
    if (!shift.defined()) shift = exact.narrow(1, 0, 1).clone();
    const at::Tensor centred = exact - shift;
    sum += centred.sum(1, true);
    squares += centred.square().sum(1, true);
  });
  const at::Tensor variance =
      ((squares - sum.square() / rows) / std::max(rows - 1, 1.0)).clamp_min(0);
  const at::Tensor deviation = variance.sqrt();
  return {shift + sum / rows,
          at::where(deviation > 0, deviation.reciprocal(), at::zeros_like(deviation))};
}

/// What one stretch gives: (pairs..., rows), pairs = (models, models) or (models).
at::Tensor row_values(const at::Tensor& block, DistanceKind kind,
                      std::optional<std::size_t> against) {
  if (is_cosine(kind)) {
    const at::Tensor unit = block / block.norm(2, {2}, true).clamp_min(kEps);
    const at::Tensor rows = unit.transpose(0, 1);  // (rows, models, D)
    if (against) {
      const at::Tensor one = rows.narrow(1, static_cast<std::int64_t>(*against), 1);
      return (1 - at::matmul(rows, one.transpose(1, 2)).squeeze(2).to(at::kDouble)).t();
    }
    return (1 - at::matmul(rows, rows.transpose(1, 2)).to(at::kDouble)).permute({1, 2, 0});
  }
  std::vector<at::Tensor> columns;
  for (std::int64_t m = 0; m < block.size(0); ++m) {
    if (against && m != static_cast<std::int64_t>(*against)) continue;
    const at::Tensor gap = block - block[m];
    columns.push_back(
        (kind == DistanceKind::kAbsolute ? gap.abs().mean(2) : gap.norm(2, {2})).to(at::kDouble));
  }
  return against ? columns.front() : at::stack(columns, 1);
}

/// Dot products of a stretch's rows: (pairs..., rows) float64.
at::Tensor row_products(const at::Tensor& block, std::optional<std::size_t> against) {
  const at::Tensor rows = block.to(at::kDouble).transpose(0, 1);
  if (!against) return at::matmul(rows, rows.transpose(1, 2)).permute({1, 2, 0});
  const at::Tensor one = rows.narrow(1, static_cast<std::int64_t>(*against), 1);
  return at::matmul(rows, one.transpose(1, 2)).squeeze(2).t();
}

}  // namespace

at::Tensor mean_distance(const at::Tensor& per_sample, DistanceKind kind) {
  const at::Tensor mean = per_sample.mean(-1);
  return kind == DistanceKind::kInverseCosine ? mean.reciprocal() : mean;
}

FieldDistances field_distances(const std::vector<FieldSource>& fields, DistanceKind kind,
                               std::optional<std::size_t> against, std::int64_t memory_bytes) {
  check_shapes(fields);
  const FieldSource& first = fields.front();
  const auto models = static_cast<std::int64_t>(fields.size());
  const std::int64_t steps = first.steps;
  WS_CHECK(!against || *against < fields.size());
  const bool inverse = kind == DistanceKind::kInverseCosine;
  std::optional<Standardisation> standardisation;
  if (kind == DistanceKind::kCosineNormalised) standardisation = standardise(fields, memory_bytes);

  std::vector<std::int64_t> shape{models};
  if (!against) shape.push_back(models);
  shape.push_back(first.samples);
  FieldDistances result;
  result.per_sample = at::zeros(shape, at::kDouble);
  result.zero_norms.assign(fields.size(), 0);
  at::Tensor squares = at::zeros({models, first.samples}, at::kDouble);  // for inverse_cosine

  for_stretches(fields, memory_bytes, [&](std::int64_t begin, const at::Tensor& block) {
    at::Tensor seen = block;
    if (standardisation)
      seen = ((block.to(at::kDouble) - standardisation->mean) * standardisation->scale)
                 .to(block.scalar_type());
    at::Tensor short_steps = block.norm(2, {2}).lt(kEps);
    if (standardisation) short_steps = short_steps.logical_or(seen.norm(2, {2}).lt(kEps));
    const at::Tensor zero = short_steps.sum(1);
    for (std::int64_t m = 0; m < models; ++m) result.zero_norms[m] += zero[m].item<std::int64_t>();
    const std::int64_t count = block.size(1);
    const at::Tensor sample = at::floor_divide(at::arange(begin, begin + count, at::kLong), steps);
    const at::Tensor values =
        inverse ? row_products(seen, against) : row_values(seen, kind, against);
    if (is_frechet(kind)) {
      for (std::int64_t r = 0; r < count; ++r) {
        at::Tensor slot = result.per_sample.select(-1, (begin + r) / steps);
        slot.copy_(at::maximum(slot, values.select(-1, r)));
      }
    } else {
      result.per_sample.index_add_(result.per_sample.dim() - 1, sample, values.contiguous());
    }
    if (inverse) squares.index_add_(1, sample, block.to(at::kDouble).square().sum(2));
  });
  if (inverse) {
    const at::Tensor norm = squares.sqrt().clamp_min(kEps);
    if (against)
      result.per_sample /= norm * norm[static_cast<std::int64_t>(*against)];
    else
      result.per_sample /= norm.unsqueeze(1) * norm.unsqueeze(0);
  } else if (!is_frechet(kind)) {
    result.per_sample /= static_cast<double>(steps);
  }
  result.mean = mean_distance(result.per_sample, kind);
  return result;
}

BootstrapLimits bootstrap_limits(const at::Tensor& per_sample, DistanceKind kind,
                                 std::int64_t resamples, std::uint64_t seed, double level) {
  const std::int64_t samples = per_sample.size(-1);
  const at::Tensor flat = per_sample.reshape({-1, samples});
  // How often each resample draws each sample.
  at::Tensor weights = at::zeros({samples, resamples}, at::kDouble);
  auto* w = weights.data_ptr<double>();
  Rng rng(seed, {kBootstrapStream});
  for (std::int64_t r = 0; r < resamples; ++r)
    for (std::int64_t s = 0; s < samples; ++s)
      w[static_cast<std::int64_t>(rng.below(samples)) * resamples + r] +=
          1.0 / static_cast<double>(samples);
  at::Tensor means = at::mm(flat, weights);  // (pairs, resamples)
  if (kind == DistanceKind::kInverseCosine) means = means.reciprocal();
  const at::Tensor sorted = std::get<0>(means.sort(1));
  const auto at_share = [&](double share) {
    const auto rank = static_cast<std::int64_t>(share * static_cast<double>(resamples - 1) + 0.5);
    std::vector<std::int64_t> shape = per_sample.sizes().vec();
    shape.pop_back();
    return sorted.select(1, rank).reshape(shape).clone();
  };
  return {at_share((1 - level) / 2), at_share((1 + level) / 2)};
}

}  // namespace weightsmith
