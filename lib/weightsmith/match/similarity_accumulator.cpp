#include "weightsmith/match/similarity_accumulator.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>

#include "weightsmith/core/error.h"
#include "weightsmith/core/threads.h"
#include "weightsmith/core/transpose_four.h"
#include "weightsmith/match/row_kernels.h"

namespace weightsmith {
namespace {

constexpr std::int64_t kPieceFloats = std::int64_t{16} << 20;  // 64 MB
constexpr std::int64_t kBlock = 32;                            // rows that are filled together
constexpr double kSmallestScale = 1e-7;                        // the authors' bound
constexpr double kSmallMean = 1.0 / 16;                        // its square, of the variance

struct RowMoments {
  double mean = 0.0;      // of the row as it was
  double residual = 0.0;  // mean of what is left after centring
  double squares = 0.0;   // sum of squared deviations from the mean
};

/// Subtracts the float32 nearest to the mean, which is exact for values near it, and measures what
/// is left in double. A row whose mean is small beside its deviation, as of most weights, stays as
/// it is: nothing would cancel, and its products are as exact.
RowMoments centre_row(float* x, std::int64_t n) {
  const RowKernels& kernels = row_kernels();
  const auto length = static_cast<double>(n);
  const RowSums all = kernels.sums(x, n);
  const double mean = all.entries / length;
  const double squares = all.squares - all.entries * mean;
  if (all.entries * mean <= kSmallMean * squares) return {mean, mean, squares};
  const auto shift = static_cast<float>(mean);
  const RowSums left = kernels.subtract(x, shift, n);
  const double residual = left.entries / length;
  return {static_cast<double>(shift) + residual, residual,
          // NaN must come first to pass through.
          std::max(left.squares - left.entries * residual, 0.0)};
}

/// Where the numbers of the units of one model's member stand: unit u's are runs of `run` of them,
/// which begin at data + u * unit_stride + starts[k].
struct UnitColumns {
  const float* data;
  std::int64_t unit_stride;
  std::int64_t run;
  std::vector<std::int64_t> starts;

  std::int64_t size() const { return run * static_cast<std::int64_t>(starts.size()); }
};

/// `values`: float32 (units, observations…) on the CPU, of any strides; dimension `dim`, if not 0,
/// is read in this order.
UnitColumns columns_of(const at::Tensor& values, std::int64_t dim,
                       const std::vector<std::int64_t>& order) {
  UnitColumns columns{values.data_ptr<float>(), values.stride(0), 1, {0}};
  std::int64_t d = values.dim() - 1;
  for (; d > dim && (values.size(d) == 1 || values.stride(d) == columns.run); --d)
    columns.run *= values.size(d);
  for (std::int64_t outer = 1; outer <= d; ++outer) {
    std::vector<std::int64_t> starts;
    starts.reserve(columns.starts.size() * values.size(outer));
    for (const std::int64_t start : columns.starts)
      for (std::int64_t k = 0; k < values.size(outer); ++k)
        starts.push_back(start + (outer == dim ? order[k] : k) * values.stride(outer));
    columns.starts = std::move(starts);
  }
  return columns;
}

/// Asks for n numbers that are copied soon: in an order of slots they lie anywhere.
void prefetch(const float* from, std::int64_t n) {
  constexpr std::int64_t kLine = 16;  // numbers
  for (std::int64_t j = 0; j < n; j += kLine) __builtin_prefetch(from + j, 0, 2);
}

/// Copies runs of kRun values (0: any number), whose size the compiler then knows.
template <int kRun>
void copy_runs(const UnitColumns& columns, const float* from, std::int64_t units, float* to,
               std::int64_t stride) {
  const std::int64_t run = kRun > 0 ? kRun : columns.run;
  const auto runs = static_cast<std::int64_t>(columns.starts.size());
  const std::int64_t* const starts = columns.starts.data();
  const auto copy = [&](std::int64_t u, std::int64_t k) {
    std::memcpy(to + u * stride + k * run, from + u * columns.unit_stride + starts[k],
                static_cast<std::size_t>(run) * sizeof(float));
  };
  if (columns.unit_stride == run) {  // units side by side
    for (std::int64_t k = 0; k < runs; ++k) {
      if (k + 1 < runs) prefetch(from + starts[k + 1], units * run);
      for (std::int64_t u = 0; u < units; ++u) copy(u, k);
    }
  } else {
    for (std::int64_t u = 0; u < units; ++u)
      for (std::int64_t k = 0; k < runs; ++k) copy(u, k);
  }
}

/// Copies runs of one number of units side by side.
void transpose(const UnitColumns& columns, const float* from, std::int64_t units, float* to,
               std::int64_t stride) {
  const auto runs = static_cast<std::int64_t>(columns.starts.size());
  const std::int64_t* const starts = columns.starts.data();
  const auto copy = [&](std::int64_t first_unit, std::int64_t first_run, std::int64_t end_run) {
    for (std::int64_t u = first_unit; u < units; ++u)
      for (std::int64_t k = first_run; k < end_run; ++k) to[u * stride + k] = from[starts[k] + u];
  };
  const std::int64_t whole_units = units / 4 * 4;
  const std::int64_t whole_runs = runs / 4 * 4;
  for (std::int64_t k = 0; k < whole_runs; k += 4) {
    for (std::int64_t j = k + 8; j < std::min(k + 12, runs); ++j) prefetch(from + starts[j], units);
    for (std::int64_t u = 0; u < whole_units; u += 4) {
      std::array<const float*, 4> run;
      std::array<float*, 4> unit;
      for (std::int64_t j = 0; j < 4; ++j) {
        run[j] = from + starts[k + j] + u;
        unit[j] = to + (u + j) * stride + k;
      }
      transpose_four(run, unit);
    }
    copy(whole_units, k, k + 4);
  }
  copy(0, whole_runs, runs);
}

/// Copies the columns of units from `unit` on, at most kBlock of them, to rows `stride` apart.
void copy_block(const UnitColumns& columns, std::int64_t unit, std::int64_t units, float* to,
                std::int64_t stride) {
  const float* const from = columns.data + unit * columns.unit_stride;
  const auto copy = columns.run == 1 && columns.unit_stride == 1 ? transpose
                    : columns.run == 1                           ? copy_runs<1>
                    : columns.run == 9                           ? copy_runs<9>
                                                                 : copy_runs<0>;
  copy(columns, from, units, to, stride);
}

/// A rectangle of pairs of stacked units.
struct Rectangle {
  std::int64_t row;
  std::int64_t column;
  std::int64_t height;
  std::int64_t width;
};

constexpr std::int64_t kLargestTile = std::int64_t{4} << 20;  // pairs: 16 MB of products

/// Cuts a rectangle into strips, one a thread: of fewer and larger matrices less is copied into the
/// order that the kernel of products reads.
void add_strips(std::vector<Rectangle>& tiles, const Rectangle& all) {
  if (all.height == 0 || all.width == 0) return;
  const std::int64_t threads = at::get_num_threads();
  const std::int64_t height =
      std::clamp<std::int64_t>(kLargestTile / all.width, 1,
                               std::max<std::int64_t>((all.height + threads - 1) / threads, 64));
  for (std::int64_t r = 0; r < all.height; r += height)
    tiles.push_back({all.row + r, all.column, std::min(height, all.height - r), all.width});
}

/// The pairs of n units from `first` on with each other: half against half, and so on with the
/// halves. Of the small tiles that are left on the diagonal half is computed for nothing.
void add_triangle(std::vector<Rectangle>& tiles, std::int64_t first, std::int64_t n,
                  std::int64_t smallest) {
  if (n <= smallest) {
    if (n > 0) tiles.push_back({first, first, n, n});
    return;
  }
  const std::int64_t half = (n / 2 + 15) / 16 * 16;
  add_strips(tiles, {first, first + half, half, n - half});
  add_triangle(tiles, first, half, smallest);
  add_triangle(tiles, first + half, n - half, smallest);
}

/// The pairs that are asked for, in tiles that one thread multiplies at nearly its full speed; the
/// largest first, so that threads end together.
std::vector<Rectangle> tiles_of(const UnitStack& stack, Similarity::Scope scope) {
  std::vector<Rectangle> found;
  if (scope == Similarity::Scope::kAllPairs) {
    add_triangle(found, 0, stack.size(), std::clamp<std::int64_t>(stack.size() / 16, 64, 128));
  } else {
    for (std::int64_t j = 1; j < stack.models(); ++j)
      add_strips(found, {0, stack.offset(j), stack.units(0), stack.units(j)});
  }
  std::stable_sort(found.begin(), found.end(), [](const Rectangle& a, const Rectangle& b) {
    return a.height * a.width > b.height * b.width;
  });
  return found;
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
  for (const Rectangle& r : tiles_of(stack, scope))
    tiles_.push_back({r.row, r.column, at::zeros({r.height, r.width}, at::kDouble)});
}

std::int64_t SimilarityAccumulator::bytes(const UnitStack& stack, Similarity::Scope scope) {
  std::int64_t entries = 0;
  for (const Rectangle& r : tiles_of(stack, scope)) entries += r.height * r.width;
  return entries * static_cast<std::int64_t>(sizeof(double));
}

void SimilarityAccumulator::add(const std::vector<at::Tensor>& features, std::int64_t channel_dim,
                                std::string_view where) {
  std::vector<UnitRows> member;
  for (at::Tensor& values : units_first(features, channel_dim, where))
    member.push_back({std::move(values)});
  add_members({member}, where);
}

void SimilarityAccumulator::add_together(const std::vector<std::vector<UnitRows>>& members,
                                         std::string_view where) {
  std::vector<std::vector<UnitRows>> checked = members;
  for (std::vector<UnitRows>& member : checked) {
    std::vector<at::Tensor> values;
    for (const UnitRows& rows : member) values.push_back(rows.values);
    values = units_first(values, 0, where);
    for (std::size_t i = 0; i < member.size(); ++i) {
      UnitRows& rows = member[i];
      WS_CHECK(rows.dim == 0 ||
               (rows.dim >= 2 && rows.dim < values[i].dim() &&
                static_cast<std::int64_t>(rows.order.size()) == values[i].size(rows.dim)));
      rows.values = std::move(values[i]);
    }
  }
  add_members(checked, where);
}

std::vector<at::Tensor> SimilarityAccumulator::units_first(const std::vector<at::Tensor>& features,
                                                           std::int64_t channel_dim,
                                                           std::string_view where) const {
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
  return moved;
}

void SimilarityAccumulator::add_members(const std::vector<std::vector<UnitRows>>& members,
                                        std::string_view where) {
  const at::NoGradGuard no_grad;
  if (stack_.size() == 0) return;
  const std::int64_t room = kPieceFloats / stack_.size();  // columns of a piece
  std::vector<std::vector<UnitRows>> piece;
  std::int64_t used = 0;
  const auto finish = [&] {
    if (used > 0) add_piece(piece, where);
    piece.clear();
    used = 0;
  };
  for (const std::vector<UnitRows>& member : members) {
    const at::Tensor& first = member.front().values;
    const std::int64_t extent = first.size(1);
    std::int64_t columns = 1;  // of one step along that dimension
    for (std::int64_t d = 2; d < first.dim(); ++d) columns *= first.size(d);
    if (columns == 0) continue;
    for (std::int64_t begin = 0; begin < extent;) {
      if (used > 0 && used + columns > room) finish();
      const std::int64_t steps =
          std::clamp<std::int64_t>((room - used) / columns, 1, extent - begin);
      std::vector<UnitRows>& part = piece.emplace_back();
      for (const UnitRows& rows : member)
        part.push_back({rows.values.narrow(1, begin, steps), rows.dim, rows.order});
      used += steps * columns;
      begin += steps;
    }
  }
  finish();
}

void SimilarityAccumulator::add_piece(const std::vector<std::vector<UnitRows>>& members,
                                      std::string_view where) {
  const std::int64_t stacked = stack_.size();
  // [model][member], and what they point into where it had to be converted.
  std::vector<std::vector<UnitColumns>> columns(stack_.models());
  std::vector<at::Tensor> converted;
  for (const std::vector<UnitRows>& member : members)
    for (std::size_t i = 0; i < member.size(); ++i)
      columns[i].push_back(
          columns_of(converted.emplace_back(member[i].values.to(at::kCPU, at::kFloat)),
                     member[i].dim, member[i].order));
  std::int64_t length = 0;
  for (const UnitColumns& c : columns.front()) length += c.size();
  // Rows whose distance is no power of two spread a column over the caches' sets.
  const std::int64_t stride = (length + 31) / 16 * 16;
  at::Tensor& memory = workspace_->piece;
  if (!memory.defined() || memory.numel() < stacked * stride)
    memory = at::empty({stacked * stride}, at::kFloat);
  const at::Tensor piece =
      memory.narrow(0, 0, stacked * stride).view({stacked, stride}).narrow(1, 0, length);

  std::vector<RowMoments> moments(stacked);
  float* const rows = piece.data_ptr<float>();
  for (std::int64_t i = 0; i < stack_.models(); ++i) {
    const std::int64_t blocks = (stack_.units(i) + kBlock - 1) / kBlock;
    at::parallel_for(0, blocks, std::max<std::int64_t>(1, 32768 / (kBlock * length)),
                     [&](std::int64_t first, std::int64_t last) {
                       for (std::int64_t unit = first * kBlock; unit < last * kBlock;
                            unit += kBlock) {
                         const std::int64_t units = std::min(kBlock, stack_.units(i) - unit);
                         const std::int64_t row = stack_.offset(i) + unit;
                         float* to = rows + row * stride;
                         for (const UnitColumns& c : columns[i]) {
                           copy_block(c, unit, units, to, stride);
                           to += c.size();
                         }
                         for (std::int64_t u = row; u < row + units; ++u)
                           moments[u] = centre_row(rows + u * stride, length);
                       }
                     });
  }
  for (std::int64_t u = 0; u < stacked; ++u) {
    // A bounded sum of squares also bounds every product: |<x, y>| <= |x| |y|. Small means, which
    // stay in their rows, are a part of them.
    if (moments[u].squares * (1 + kSmallMean) < std::numeric_limits<float>::max()) continue;
    // Centring has spread a NaN or infinity over its row.
    const bool finite = std::isfinite(rows[u * stride]);
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
  std::vector<double> residual(stacked);
  for (std::int64_t u = 0; u < stacked; ++u) {
    residual[u] = moments[u].residual;
    distance[u] = moments[u].mean - mean[u];
    squares[u] += moments[u].squares + weight * distance[u] * distance[u];
    mean[u] += distance[u] * new_count / (old_count + new_count);
  }
  share_tasks(static_cast<std::int64_t>(tiles_.size()), [&](std::int64_t t) {
    const Tile& tile = tiles_[t];
    const std::int64_t height = tile.sums.size(0);
    const std::int64_t width = tile.sums.size(1);
    const at::Tensor product =
        at::mm(piece.narrow(0, tile.row, height), piece.narrow(0, tile.column, width).t());
    const float* row = product.data_ptr<float>();
    double* sum = tile.sums.data_ptr<double>();
    const double* const residual_of_columns = residual.data() + tile.column;
    const double* const distance_of_columns = distance.data() + tile.column;
    for (std::int64_t r = tile.row; r < tile.row + height; ++r, row += width, sum += width) {
      const double apart = weight * distance[r];
      const double off_centre = new_count * residual[r];
      for (std::int64_t c = 0; c < width; ++c)
        sum[c] += static_cast<double>(row[c]) + apart * distance_of_columns[c] -
                  off_centre * residual_of_columns[c];
    }
  });
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
  return unpacked(packed(centred, where), scope_);
}

PackedSimilarity SimilarityAccumulator::packed(bool centred, std::string_view where) const {
  PackedSimilarity result{scope_, stack_, at::empty({packed_size(stack_, scope_)}, at::kFloat)};
  float* const values = result.values.data_ptr<float>();
  const std::int64_t stacked = stack_.size();
  if (scope_ == Similarity::Scope::kAllPairs) {
    normalise(centred, where,
              [=](std::int64_t u, std::int64_t v) { return values + packed_row(u, stacked) + v; });
  } else {
    const std::int64_t n = stack_.units(0);
    result.values = result.values.view({stack_.models() - 1, n, n});
    normalise(centred, where, [=](std::int64_t u, std::int64_t v) {
      return values + (v / n - 1) * n * n + u * n + v % n;
    });
  }
  return result;
}

/// Writes all pairs u ≤ v that are asked for, those of a row of a tile from place(u, v) on.
template <class Place>
void SimilarityAccumulator::normalise(bool centred, std::string_view where,
                                      const Place& place) const {
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
  share_tasks(static_cast<std::int64_t>(tiles_.size()), [&](std::int64_t t) {
    const Tile& tile = tiles_[t];
    const std::int64_t height = tile.sums.size(0);
    const std::int64_t width = tile.sums.size(1);
    const double* const sums = tile.sums.data_ptr<double>();
    for (std::int64_t r = 0; r < height; ++r) {
      const std::int64_t u = tile.row + r;
      const std::int64_t begin = std::max<std::int64_t>(0, u - tile.column);
      if (begin >= width) continue;
      float* const to = place(u, tile.column + begin);
      for (std::int64_t c = begin; c < width; ++c) {
        const std::int64_t v = tile.column + c;
        const double moment = sums[r * width + c] / count + (centred ? 0.0 : mean[u] * mean[v]);
        to[c - begin] = static_cast<float>(moment / std::max(scale[u] * scale[v], smallest));
      }
    }
  });
}

}  // namespace weightsmith
