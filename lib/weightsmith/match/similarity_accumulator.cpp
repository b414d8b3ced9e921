#include "weightsmith/match/similarity_accumulator.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <utility>

#include "weightsmith/core/error.h"

namespace weightsmith {
namespace {

constexpr std::int64_t kPieceFloats = std::int64_t{16} << 20;  // 64 MB
constexpr std::int64_t kStrip = 128;                           // rows, so that products stay large
constexpr double kSmallestScale = 1e-7;                        // the authors' bound

struct RowMoments {
  double mean = 0.0;      // of the row as it was
  double residual = 0.0;  // mean of what is left after centring
  double squares = 0.0;   // sum of squared deviations from the mean
};

/// Sum of term(x) over a row, in eight chains so that additions overlap.
template <class Term>
double sum_of(const float* x, std::int64_t n, Term term) {
  std::array<double, 8> sums{};
  std::int64_t j = 0;
  for (; j + 8 <= n; j += 8)
    for (int k = 0; k < 8; ++k) sums[k] += term(static_cast<double>(x[j + k]));
  for (; j < n; ++j) sums[j % 8] += term(static_cast<double>(x[j]));
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

/// Subtracts the float32 nearest to the mean, which is exact for values near it, and measures what
/// is left in double.
RowMoments centre_row(float* x, std::int64_t n) {
  const double length = static_cast<double>(n);
  const double mean = sum_of(x, n, [](double v) { return v; }) / length;
  const auto shift = static_cast<float>(mean);
  for (std::int64_t j = 0; j < n; ++j) x[j] -= shift;
  const double residual = sum_of(x, n, [](double v) { return v; }) / length;
  const double squares = sum_of(x, n, [](double v) { return v * v; });
  return {static_cast<double>(shift) + residual, residual,
          // NaN must come first to pass through.
          std::max(squares - length * residual * residual, 0.0)};
}

/// A rectangle of pairs of stacked units.
struct Rectangle {
  std::int64_t row;
  std::int64_t column;
  std::int64_t height;
  std::int64_t width;
};

/// The pairs that are asked for, each once: rectangles of models with models; of a model with
/// itself strips, of which only the part right of the diagonal is there.
std::vector<Rectangle> rectangles(const UnitStack& stack, Similarity::Scope scope) {
  std::vector<Rectangle> found;
  const auto add = [&](std::int64_t row, std::int64_t column, std::int64_t height,
                       std::int64_t width) {
    if (height > 0 && width > 0) found.push_back({row, column, height, width});
  };
  for (std::int64_t i = 0; i < stack.models(); ++i) {
    if (scope == Similarity::Scope::kCrossModel && i > 0) break;
    const std::int64_t n = stack.units(i);
    if (scope == Similarity::Scope::kAllPairs) {
      const std::int64_t strip = std::max(kStrip, n / 8);
      for (std::int64_t top = 0; top < n; top += strip)
        add(stack.offset(i) + top, stack.offset(i) + top, std::min(strip, n - top), n - top);
    }
    for (std::int64_t j = i + 1; j < stack.models(); ++j)
      add(stack.offset(i), stack.offset(j), n, stack.units(j));
  }
  return found;
}

/// The first n numbers of memory that is enlarged where it is too small.
at::Tensor at_least(at::Tensor& memory, std::int64_t n) {
  if (!memory.defined() || memory.numel() < n) memory = at::empty({n}, at::kFloat);
  return memory.narrow(0, 0, n);
}

}  // namespace

SimilarityAccumulator::SimilarityAccumulator(const UnitStack& stack, Similarity::Scope scope,
                                             std::shared_ptr<Workspace> workspace)
    : stack_(stack),
      scope_(scope),
      workspace_(workspace ? std::move(workspace) : std::make_shared<Workspace>()) {
  WS_CHECK(stack.models() >= 1 && (scope == Similarity::Scope::kAllPairs || stack.is_even()));
  mean_ = at::zeros({stack.size()}, at::kDouble);
  squares_ = at::zeros({stack.size()}, at::kDouble);
  for (const Rectangle& r : rectangles(stack, scope))
    products_.push_back({r.row, r.column, at::zeros({r.height, r.width}, at::kDouble)});
}

std::int64_t SimilarityAccumulator::bytes(const UnitStack& stack, Similarity::Scope scope) {
  std::int64_t entries = 0;
  for (const Rectangle& r : rectangles(stack, scope)) entries += r.height * r.width;
  return entries * static_cast<std::int64_t>(sizeof(double));
}

void SimilarityAccumulator::add(const std::vector<at::Tensor>& features, std::int64_t channel_dim,
                                std::string_view where) {
  const at::NoGradGuard no_grad;
  if (static_cast<std::int64_t>(features.size()) != stack_.models())
    throw Error(
        ErrorKind::kInput, where,
        fmt::format("features of {} models, expected {}", features.size(), stack_.models()));
  std::vector<at::Tensor> moved;  // (units, ...) each
  const auto is_beside = [&moved](const at::Tensor& first) {
    return moved.empty() || moved[0].sizes().slice(1) == first.sizes().slice(1);
  };
  for (std::size_t i = 0; i < features.size(); ++i) {
    const at::Tensor& f = features[i];
    const std::int64_t dim = channel_dim < 0 ? f.dim() + channel_dim : channel_dim;
    const std::int64_t units = stack_.units(static_cast<std::int64_t>(i));
    const bool sound = f.defined() && dim >= 0 && dim < f.dim() && f.size(dim) == units &&
                       at::isFloatingType(f.scalar_type()) && f.dim() == features[0].dim();
    const at::Tensor first = sound ? f.detach().movedim(dim, 0) : f;
    if (!sound || !is_beside(first))
      throw Error(ErrorKind::kInput, where,
                  fmt::format("the features of model {} are {} of shape [{}]", i,
                              f.defined() ? c10::toString(f.scalar_type()) : "missing",
                              f.defined() ? fmt::format("{}", fmt::join(f.sizes(), ", ")) : ""),
                  fmt::format("{} units along dimension {} and the shape of model 0 are needed",
                              units, channel_dim));
    moved.push_back(first);
  }
  for (at::Tensor& m : moved)
    if (m.dim() == 1) m = m.unsqueeze(1);
  const std::int64_t extent = moved[0].size(1);
  std::int64_t column_floats = 0;
  for (const at::Tensor& m : moved) column_floats += m.numel() / std::max<std::int64_t>(1, extent);
  if (column_floats == 0) return;
  const std::int64_t step = std::max<std::int64_t>(1, kPieceFloats / column_floats);
  for (std::int64_t begin = 0; begin < extent; begin += step) {
    std::vector<at::Tensor> chunk;
    for (const at::Tensor& m : moved)
      chunk.push_back(m.narrow(1, begin, std::min(step, extent - begin)));
    add_chunk(chunk, where);
  }
}

void SimilarityAccumulator::add_chunk(const std::vector<at::Tensor>& chunk,
                                      std::string_view where) {
  const std::int64_t stacked = stack_.size();
  std::int64_t length = 1;
  for (std::int64_t d = 1; d < chunk[0].dim(); ++d) length *= chunk[0].size(d);
  const at::Tensor piece = at_least(workspace_->piece, stacked * length).view({stacked, length});
  for (std::int64_t i = 0; i < stack_.models(); ++i)
    piece.narrow(0, stack_.offset(i), stack_.units(i)).view(chunk[i].sizes()).copy_(chunk[i]);

  std::vector<RowMoments> moments(stacked);
  float* const rows = piece.data_ptr<float>();
  at::parallel_for(0, stacked, std::max<std::int64_t>(1, 32768 / length),
                   [&](std::int64_t begin, std::int64_t end) {
                     for (std::int64_t u = begin; u < end; ++u)
                       moments[u] = centre_row(rows + u * length, length);
                   });
  for (std::int64_t u = 0; u < stacked; ++u) {
    // A bounded sum of squares also bounds every product: |<x, y>| <= |x| |y|.
    if (moments[u].squares < std::numeric_limits<float>::max()) continue;
    // Centring has spread a NaN or infinity over its row.
    const bool finite = std::isfinite(rows[u * length]);
    throw Error(ErrorKind::kNumeric, where,
                fmt::format("unit {} of model {} has features that are {}",
                            u - stack_.offset(stack_.model_of(u)), stack_.model_of(u),
                            finite ? "too large for float32" : "NaN or infinite"),
                "check the model and its inputs");
  }

  // Chan et al.: sums of products about the joint mean = both sums + the means' distance, weighted.
  const auto old_count = static_cast<double>(count_);
  const auto new_count = static_cast<double>(length);
  const double weight = old_count * new_count / (old_count + new_count);
  double* const mean = mean_.data_ptr<double>();
  double* const squares = squares_.data_ptr<double>();
  std::vector<double> distance(stacked);
  for (std::int64_t u = 0; u < stacked; ++u) {
    distance[u] = moments[u].mean - mean[u];
    squares[u] += moments[u].squares + weight * distance[u] * distance[u];
    mean[u] += distance[u] * new_count / (old_count + new_count);
  }
  for (const Products& products : products_) {
    const std::int64_t height = products.sums.size(0);
    const std::int64_t width = products.sums.size(1);
    at::Tensor product = at_least(workspace_->product, height * width).view({height, width});
    at::mm_out(product, piece.narrow(0, products.row, height),
               piece.narrow(0, products.column, width).t());
    const float* const found = product.data_ptr<float>();
    double* const sums = products.sums.data_ptr<double>();
    const RowMoments* const of_columns = moments.data() + products.column;
    const double* const distance_of_columns = distance.data() + products.column;
    at::parallel_for(0, height, std::max<std::int64_t>(1, 32768 / width),
                     [&](std::int64_t begin, std::int64_t end) {
                       for (std::int64_t r = begin; r < end; ++r) {
                         const double apart = weight * distance[products.row + r];
                         const double off_centre = new_count * moments[products.row + r].residual;
                         const float* const row = found + r * width;
                         double* const sum = sums + r * width;
                         for (std::int64_t c = 0; c < width; ++c)
                           sum[c] += static_cast<double>(row[c]) + apart * distance_of_columns[c] -
                                     off_centre * of_columns[c].residual;
                       }
                     });
  }
  count_ += length;
}

Similarity SimilarityAccumulator::correlation(std::string_view where) const {
  return whole(true, where);
}

Similarity SimilarityAccumulator::cosine(std::string_view where) const {
  return whole(false, where);
}

PackedSimilarity SimilarityAccumulator::packed_correlation(std::string_view where) const {
  return packed(true, where);
}

PackedSimilarity SimilarityAccumulator::packed_cosine(std::string_view where) const {
  return packed(false, where);
}

Similarity SimilarityAccumulator::whole(bool centred, std::string_view where) const {
  Similarity result = no_similarity(stack_, scope_);
  float* const values = result.values.data_ptr<float>();
  const std::int64_t stacked = stack_.size();
  const std::int64_t n = stack_.units(0);
  if (scope_ == Similarity::Scope::kAllPairs)
    normalise(centred, where, [=](std::int64_t u, std::int64_t v, float value) {
      values[u * stacked + v] = values[v * stacked + u] = value;
    });
  else
    normalise(centred, where, [=](std::int64_t u, std::int64_t v, float value) {
      values[(v / n - 1) * n * n + u * n + v % n] = value;
    });
  return result;
}

PackedSimilarity SimilarityAccumulator::packed(bool centred, std::string_view where) const {
  if (scope_ == Similarity::Scope::kCrossModel) return weightsmith::packed(whole(centred, where));
  PackedSimilarity result{scope_, stack_, at::empty({packed_size(stack_, scope_)}, at::kFloat)};
  float* const values = result.values.data_ptr<float>();
  const std::int64_t stacked = stack_.size();
  normalise(centred, where, [=](std::int64_t u, std::int64_t v, float value) {
    values[packed_row(u, stacked) + v] = value;
  });
  return result;
}

/// Calls put(u, v, value) for all pairs that are asked for, u ≤ v; from several threads.
template <class Put>
void SimilarityAccumulator::normalise(bool centred, std::string_view where, const Put& put) const {
  if (count_ == 0)
    throw Error(ErrorKind::kInput, where, "no features were collected",
                "the similarity of units needs at least one observation");
  const auto count = static_cast<double>(count_);
  const double* const mean = mean_.data_ptr<double>();
  std::vector<double> scale(stack_.size());  // sigma, or the norm
  for (std::size_t u = 0; u < scale.size(); ++u)
    scale[u] =
        std::sqrt(squares_.data_ptr<double>()[u] / count + (centred ? 0.0 : mean[u] * mean[u]));
  const double smallest = centred ? kSmallestScale : std::numeric_limits<double>::min();
  for (const Products& products : products_) {
    const std::int64_t height = products.sums.size(0);
    const std::int64_t width = products.sums.size(1);
    const double* const sums = products.sums.data_ptr<double>();
    // Tile by tile: a mirror image written row by row would miss the caches.
    constexpr std::int64_t kTile = 64;
    const auto tile = [&](std::int64_t r0, std::int64_t c0) {
      for (std::int64_t r = r0; r < std::min(r0 + kTile, height); ++r)
        for (std::int64_t c = c0; c < std::min(c0 + kTile, width); ++c) {
          const std::int64_t u = products.row + r;
          const std::int64_t v = products.column + c;
          if (v < u) continue;
          const double moment = sums[r * width + c] / count + (centred ? 0.0 : mean[u] * mean[v]);
          put(u, v, static_cast<float>(moment / std::max(scale[u] * scale[v], smallest)));
        }
    };
    at::parallel_for(0, (height + kTile - 1) / kTile, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t)
        for (std::int64_t c0 = 0; c0 < width; c0 += kTile) tile(t * kTile, c0);
    });
  }
}

}  // namespace weightsmith
