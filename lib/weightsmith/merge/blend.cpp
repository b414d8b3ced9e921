#include "weightsmith/merge/blend.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <numeric>
#include <optional>
#include <utility>

#include "weightsmith/core/error.h"
#include "weightsmith/core/transpose_four.h"

namespace weightsmith {
namespace {

/// One row of one model that goes into a merged row.
template <class T>
struct Source {
  std::int32_t model;
  std::int32_t row;
  T factor;
};

/// The sources of merged row r: from begin[r] to begin[r + 1], by model and row.
template <class T>
struct Sources {
  std::vector<std::int64_t> begin;
  std::vector<Source<T>> list;
};

template <class T>
Sources<T> sources_of(const std::vector<AxisMap>& rows, const std::vector<double>& weights) {
  Sources<T> sources;
  sources.begin.assign(rows.front().length + 1, 0);
  for (const AxisMap& map : rows)
    for (const std::int32_t target : map.target) ++sources.begin[target + 1];
  std::partial_sum(sources.begin.begin(), sources.begin.end(), sources.begin.begin());
  sources.list.resize(sources.begin.back());
  std::vector<std::int64_t> next(sources.begin.begin(), sources.begin.end() - 1);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    for (std::size_t r = 0; r < rows[i].target.size(); ++r) {
      const double factor = weights[i] * (rows[i].factor.empty() ? 1.0 : rows[i].factor[r]);
      sources.list[next[rows[i].target[r]]++] = {
          static_cast<std::int32_t>(i), static_cast<std::int32_t>(r), static_cast<T>(factor)};
    }
  }
  return sources;
}

template <class T>
void add_row(T* __restrict sum, const T* __restrict row, std::int64_t n, T factor) {
  for (std::int64_t j = 0; j < n; ++j) sum[j] += factor * row[j];
}

/// As add_row on zeros.
template <class T>
void scale_row(T* __restrict sum, const T* __restrict row, std::int64_t n, T factor) {
  for (std::int64_t j = 0; j < n; ++j) sum[j] = T{0} + factor * row[j];
}

/// Division, as a product where that has the same bits.
template <class T>
struct Divisor {
  explicit Divisor(double divisor) {
    int exponent = 0;
    if (std::frexp(divisor, &exponent) == 0.5)  // a power of two
      factor = static_cast<T>(1 / divisor);
    else
      rest = static_cast<T>(divisor);
  }

  void divide(T* row, std::int64_t n) const {
    if (factor != T{1})
      for (std::int64_t j = 0; j < n; ++j) row[j] *= factor;
    divide_by_rest(row, n);
  }

  void divide_by_rest(T* row, std::int64_t n) const {
    if (rest == T{1}) return;
    for (std::int64_t j = 0; j < n; ++j) row[j] /= rest;
  }

  T factor = 1;
  T rest = 1;
};

/// add_row with columns of `inner` values each put where `map` says.
template <class T>
void add_columns(T* __restrict sum, const T* __restrict row, const AxisMap& map, std::int64_t inner,
                 T factor) {
  for (std::size_t c = 0; c < map.target.size(); ++c) {
    const T weight =
        map.factor.empty() ? factor : static_cast<T>(static_cast<double>(factor) * map.factor[c]);
    T* const to = sum + map.target[c] * inner;
    for (std::int64_t j = 0; j < inner; ++j)
      to[j] += weight * row[static_cast<std::int64_t>(c) * inner + j];
  }
}

/// A column of one model; model = the number of models: nothing.
struct ColumnSource {
  std::int32_t model;
  std::int32_t column;
};

/// What the columns of a merged row are sums of: two sources each, of which the second or both may
/// be nothing, and those beyond. Most matchings put two units into a slot.
struct ColumnSources {
  std::vector<ColumnSource> first;
  std::vector<ColumnSource> second;
  std::vector<std::pair<std::int32_t, ColumnSource>> more;  ///< with the merged column
};

/// No value where columns stay or are weighted.
std::optional<ColumnSources> column_sources(const std::vector<AxisMap>& columns) {
  const auto stays = [](const AxisMap& map) { return map.is_identity(); };
  const auto is_weighted = [](const AxisMap& map) { return !map.factor.empty(); };
  if (std::all_of(columns.begin(), columns.end(), stays) ||
      std::any_of(columns.begin(), columns.end(), is_weighted))
    return std::nullopt;
  const auto models = static_cast<std::int32_t>(columns.size());
  const std::vector<ColumnSource> nothing(columns.front().length, {models, 0});
  ColumnSources sources{nothing, nothing, {}};
  for (std::int32_t i = 0; i < models; ++i) {
    for (std::size_t c = 0; c < columns[i].target.size(); ++c) {
      const std::int32_t target = columns[i].target[c];
      const ColumnSource source{i, static_cast<std::int32_t>(c)};
      if (sources.first[target].model == models)
        sources.first[target] = source;
      else if (sources.second[target].model == models)
        sources.second[target] = source;
      else
        sources.more.emplace_back(target, source);
    }
  }
  return sources;
}

/// Rows that will be read soon, asked for a few lines at a time beside other work: matched rows lie
/// anywhere, and waiting for them takes longer than adding them.
class Prefetch {
 public:
  void clear() {
    rows_.clear();
    row_ = 0;
    at_ = 0;
  }

  void add(const void* row, std::int64_t bytes) {
    rows_.push_back({static_cast<const char*>(row), bytes});
  }

  void ask(int lines) {
    for (; lines > 0 && row_ < rows_.size(); --lines) {
      __builtin_prefetch(rows_[row_].begin + at_, 0, 2);
      at_ += kLine;
      if (at_ < rows_[row_].bytes) continue;
      at_ = 0;
      ++row_;
    }
  }

 private:
  static constexpr std::int64_t kLine = 64;

  struct Row {
    const char* begin;
    std::int64_t bytes;
  };

  std::vector<Row> rows_;
  std::size_t row_ = 0;
  std::int64_t at_ = 0;
};

/// What all rows of a merged parameter share. Dimensions behind the second are one of `inner`
/// values.
template <class T>
struct Blend {
  Sources<T> rows;
  std::vector<const T*> from;       ///< of each model
  std::vector<std::int64_t> width;  ///< of each model's rows
  std::int64_t columns;             ///< of a merged row
  std::int64_t inner;
  T* to;
  Divisor<T> divisor;

  std::int64_t models() const { return static_cast<std::int64_t>(from.size()); }
  const T* source_row(const Source<T>& s) const { return from[s.model] + s.row * width[s.model]; }
  T* merged_row(std::int64_t r) const { return to + r * columns * inner; }
  std::int64_t height() const { return static_cast<std::int64_t>(rows.begin.size()) - 1; }
};

/// Sums rows whose columns move: at first over each model's rows, then over its columns where the
/// sums are wanted. Reading at random what is near and writing once is faster than adding every
/// value to its place. For one thread.
template <class T>
class RowBlender {
 public:
  RowBlender(const Blend<T>& blend, const ColumnSources& columns)
      : blend_(blend),
        columns_(columns),
        widest_(*std::max_element(blend.width.begin(), blend.width.end())),
        zeros_(std::max(widest_, blend.inner), T{0}),
        sums_(kTogether * blend.models() * widest_),
        rows_(kTogether * (blend.models() + 1), zeros_.data()) {
    if (blend.inner > 1) return;
    std::vector<std::int64_t> offset(blend.models() + 1, 0);
    std::partial_sum(blend.width.begin(), blend.width.end(), offset.begin() + 1);
    const auto place = [&](const ColumnSource& source) {
      return static_cast<std::int32_t>(offset[source.model]) + source.column;
    };
    std::transform(columns.first.begin(), columns.first.end(), std::back_inserter(first_), place);
    std::transform(columns.second.begin(), columns.second.end(), std::back_inserter(second_),
                   place);
    for (const auto& [column, source] : columns.more) more_.emplace_back(column, place(source));
    values_.assign(kTogether * (offset.back() + 1), T{0});
    unused_.resize(blend.columns);
  }

  /// Rows from `begin` to `end`, a multiple of kTogether or the last.
  void run(std::int64_t begin, std::int64_t end) {
    const std::int64_t step = blend_.inner == 1 ? kTogether : 1;
    const auto gather = blend_.inner == 9 ? &RowBlender::gather_row<9> : &RowBlender::gather_row<0>;
    for (std::int64_t r = begin; r < end; r += step) {
      for (std::int64_t k = 0; k < step; ++k) collect(r + k, k);
      prefetch_.clear();
      for (std::int64_t next = r + step; next < std::min(end, r + 2 * step); ++next)
        for (std::int64_t s = blend_.rows.begin[next]; s < blend_.rows.begin[next + 1]; ++s)
          prefetch_.add(blend_.source_row(blend_.rows.list[s]),
                        blend_.width[blend_.rows.list[s].model] * sizeof(T));
      if (blend_.inner == 1)
        gather_rows(r);
      else
        (this->*gather)(r);
      for (std::int64_t k = r; k < std::min(end, r + step); ++k)
        blend_.divisor.divide_by_rest(blend_.merged_row(k), blend_.columns * blend_.inner);
    }
  }

  static constexpr std::int64_t kTogether = 4;  ///< rows whose columns of one value move together

 private:
  const T** rows_of(std::int64_t k) { return rows_.data() + k * (blend_.models() + 1); }

  /// What each model adds to merged row r, as the k-th of those that are summed together: a row of
  /// its own where that is all, else a sum.
  void collect(std::int64_t r, std::int64_t k) {
    const T** const rows = rows_of(k);
    const bool exists = r < blend_.height();
    std::int64_t s = exists ? blend_.rows.begin[r] : 0;
    const std::int64_t end = exists ? blend_.rows.begin[r + 1] : 0;
    const std::vector<Source<T>>& list = blend_.rows.list;
    for (std::int64_t model = 0; model < blend_.models(); ++model) {
      const std::int64_t first = s;
      while (s < end && list[s].model == model) ++s;
      if (s == first) {
        rows[model] = zeros_.data();
      } else if (s == first + 1 && list[first].factor == T{1}) {
        rows[model] = blend_.source_row(list[first]);
      } else {
        T* const sum = sums_.data() + (k * blend_.models() + model) * widest_;
        const std::int64_t width = blend_.width[model];
        scale_row(sum, blend_.source_row(list[first]), width, list[first].factor);
        for (std::int64_t q = first + 1; q < s; ++q)
          add_row(sum, blend_.source_row(list[q]), width, list[q].factor);
        rows[model] = sum;
      }
    }
  }

  /// The columns of merged row r. The size of most kernels is known to the compiler (kInner; 0:
  /// any).
  template <int kInner>
  void gather_row(std::int64_t r) {
    const std::int64_t inner = kInner > 0 ? kInner : blend_.inner;
    const T* const* const rows = rows_.data();
    const T factor = blend_.divisor.factor;
    T* const sum = blend_.merged_row(r);
    const int lines = static_cast<int>(2 + inner * sizeof(T) / 64);
    for (std::int64_t c = 0; c < blend_.columns; ++c) {
      const ColumnSource a = columns_.first[c];
      const ColumnSource b = columns_.second[c];
      const T* const x = rows[a.model] + a.column * inner;
      const T* const y = rows[b.model] + b.column * inner;
      T* __restrict const to = sum + c * inner;
      prefetch_.ask(lines);
      for (std::int64_t j = 0; j < inner; ++j) to[j] = (x[j] + y[j]) * factor;
    }
    for (const auto& [column, source] : columns_.more) {
      const T* const x = rows[source.model] + source.column * inner;
      T* __restrict const to = sum + column * inner;
      for (std::int64_t j = 0; j < inner; ++j) to[j] += x[j] * factor;
    }
  }

  /// The columns, of one value each, of four merged rows from r on: side by side, so that a column
  /// is looked up once for all of them.
  void gather_rows(std::int64_t r) {
    interleave();
    std::array<T*, 4> to;
    for (std::int64_t k = 0; k < 4; ++k)
      to[k] = r + k < blend_.height() ? blend_.merged_row(r + k) : unused_.data();
    const T factor = blend_.divisor.factor;
    std::array<T, 16> sums;
    const auto sum_column = [&](std::int64_t c, T* __restrict sum) {
      const T* const x = values_.data() + first_[c] * 4;
      const T* const y = values_.data() + second_[c] * 4;
      for (std::int64_t k = 0; k < 4; ++k) sum[k] = (x[k] + y[k]) * factor;
    };
    std::int64_t c = 0;
    for (; c + 4 <= blend_.columns; c += 4) {
      prefetch_.ask(2);
      for (std::int64_t j = 0; j < 4; ++j) sum_column(c + j, sums.data() + 4 * j);
      transpose_four<T>({sums.data(), sums.data() + 4, sums.data() + 8, sums.data() + 12},
                        {to[0] + c, to[1] + c, to[2] + c, to[3] + c});
    }
    for (; c < blend_.columns; ++c) {
      sum_column(c, sums.data());
      for (std::int64_t k = 0; k < 4; ++k) to[k][c] = sums[k];
    }
    for (const auto& [column, place] : more_)
      for (std::int64_t k = 0; k < 4; ++k) to[k][column] += values_[place * 4 + k] * factor;
  }

  /// values_: four rows' values of each column of each model side by side.
  void interleave() {
    T* values = values_.data();
    for (std::int64_t model = 0; model < blend_.models(); ++model) {
      std::array<const T*, 4> from;
      for (std::int64_t k = 0; k < 4; ++k) from[k] = rows_of(k)[model];
      const std::int64_t width = blend_.width[model];
      std::int64_t c = 0;
      for (; c + 4 <= width; c += 4, values += 16)
        transpose_four<T>({from[0] + c, from[1] + c, from[2] + c, from[3] + c},
                          {values, values + 4, values + 8, values + 12});
      for (; c < width; ++c, values += 4)
        for (std::int64_t k = 0; k < 4; ++k) values[k] = from[k][c];
    }
  }

  const Blend<T>& blend_;
  const ColumnSources& columns_;
  std::int64_t widest_;
  std::vector<T> zeros_;
  std::vector<T> sums_;         // [k][model], as wide as the widest model's rows
  std::vector<const T*> rows_;  // [k][model], the last model's for nothing
  Prefetch prefetch_;
  // Of columns of one value: places in values_, whose last is nothing's.
  std::vector<std::int32_t> first_;
  std::vector<std::int32_t> second_;
  std::vector<std::pair<std::int32_t, std::int32_t>> more_;
  std::vector<T> values_;
  std::vector<T> unused_;  // in place of rows behind the last
};

/// Sums rows whose columns stay or are weighted.
template <class T>
void add_rows(const Blend<T>& blend, const std::vector<AxisMap>& columns, std::int64_t begin,
              std::int64_t end) {
  const std::int64_t wide = blend.columns * blend.inner;
  std::vector<char> stays;
  for (const AxisMap& map : columns) stays.push_back(map.is_identity());
  for (std::int64_t r = begin; r < end; ++r) {
    T* const sum = blend.merged_row(r);
    std::fill(sum, sum + wide, T{0});
    for (std::int64_t s = blend.rows.begin[r]; s < blend.rows.begin[r + 1]; ++s) {
      const Source<T>& source = blend.rows.list[s];
      if (stays[source.model])
        add_row(sum, blend.source_row(source), wide, source.factor);
      else
        add_columns(sum, blend.source_row(source), columns[source.model], blend.inner,
                    source.factor);
    }
    blend.divisor.divide(sum, wide);
  }
}

template <class T>
void blend_rows(const std::vector<at::Tensor>& tensors, const std::vector<AxisMap>& rows,
                const std::vector<AxisMap>& columns, const std::vector<double>& weights,
                double divisor, std::int64_t inner, at::Tensor& merged) {
  Blend<T> blend{sources_of<T>(rows, weights), {},    {},
                 columns.front().length,       inner, merged.data_ptr<T>(),
                 Divisor<T>(divisor)};
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    blend.from.push_back(tensors[i].data_ptr<T>());
    blend.width.push_back(static_cast<std::int64_t>(columns[i].target.size()) * inner);
  }
  const std::optional<ColumnSources> sources = column_sources(columns);
  constexpr std::int64_t kTogether = RowBlender<T>::kTogether;
  constexpr std::int64_t kWorthAThread = 32768;  // values
  const std::int64_t wide = std::max<std::int64_t>(blend.columns * inner * kTogether, 1);
  at::parallel_for(0, (blend.height() + kTogether - 1) / kTogether,
                   std::max<std::int64_t>(1, kWorthAThread / wide),
                   [&](std::int64_t first, std::int64_t last) {
                     const std::int64_t begin = first * kTogether;
                     const std::int64_t end = std::min(blend.height(), last * kTogether);
                     if (sources)
                       RowBlender<T>(blend, *sources).run(begin, end);
                     else
                       add_rows(blend, columns, begin, end);
                   });
}

}  // namespace

AxisMap::AxisMap(std::int64_t positions) : length(positions), target(positions) {
  std::iota(target.begin(), target.end(), 0);
}

void AxisMap::spread(const GroupMember& member, const Matching& matching, std::int64_t model,
                     const std::vector<double>& factors) {
  const std::int64_t units = matching.stack.units(model);
  const std::int64_t k = member.length / units;
  const std::int32_t* slot = matching.slots_of(model);
  // Of a position the place in the stretch, -1 outside.
  std::vector<std::int64_t> places;
  if (!member.index.empty()) {
    WS_CHECK(matching.slots == units, member.parameter);
    places.assign(length, -1);
    for (std::size_t j = 0; j < member.index.size(); ++j)
      places[member.index[j]] = static_cast<std::int64_t>(j);
  }
  const std::int64_t grown = (matching.slots - units) * k;
  if (!factors.empty() && factor.empty()) factor.assign(target.size(), 1.0);
  for (std::size_t p = 0; p < target.size(); ++p) {
    const std::int64_t at = target[p];
    const std::int64_t place = places.empty() ? at - member.offset : places[at];
    if (place < 0) continue;
    if (place >= member.length) {
      target[p] = static_cast<std::int32_t>(at + grown);
      continue;
    }
    const std::int64_t moved = slot[place / k] * k + place % k;
    target[p] =
        static_cast<std::int32_t>(places.empty() ? member.offset + moved : member.index[moved]);
    if (!factors.empty()) factor[p] *= factors[slot[place / k]];
  }
  length += grown;
}

bool AxisMap::is_identity() const {
  if (!factor.empty() || length != static_cast<std::int64_t>(target.size())) return false;
  for (std::size_t p = 0; p < target.size(); ++p)
    if (target[p] != static_cast<std::int32_t>(p)) return false;
  return true;
}

at::Tensor blend(const std::vector<at::Tensor>& tensors, const std::vector<AxisMap>& rows,
                 const std::vector<AxisMap>& columns, const std::vector<double>& weights,
                 double divisor) {
  const std::size_t models = tensors.size();
  WS_CHECK(models > 0 && rows.size() == models && columns.size() == models &&
           weights.size() == models);
  const at::Tensor& first = tensors.front();
  std::vector<std::int64_t> shape = first.sizes().vec();
  std::int64_t inner = 1;
  for (std::size_t d = 2; d < shape.size(); ++d) inner *= shape[d];
  std::vector<at::Tensor> dense;
  for (std::size_t i = 0; i < models; ++i) {
    const at::Tensor& tensor = tensors[i];
    WS_CHECK(tensor.dim() == first.dim() && tensor.scalar_type() == first.scalar_type());
    WS_CHECK(rows[i].length == rows.front().length && columns[i].length == columns.front().length);
    WS_CHECK(tensor.numel() == static_cast<std::int64_t>(rows[i].target.size()) *
                                   static_cast<std::int64_t>(columns[i].target.size()) * inner);
    dense.push_back(tensor.contiguous());
  }
  if (shape.size() == 1) {
    // One row whose columns move costs less than as many rows of one value.
    const std::vector<AxisMap> row(models, AxisMap(1));
    for (at::Tensor& tensor : dense) tensor = tensor.unsqueeze(0);
    return blend(dense, row, rows, weights, divisor).squeeze(0);
  }
  if (!shape.empty()) {
    shape[0] = rows.front().length;
    shape[1] = columns.front().length;
  }
  at::Tensor merged = at::empty(shape, first.options().memory_format(at::MemoryFormat::Contiguous));
  if (first.scalar_type() == at::kDouble)
    blend_rows<double>(dense, rows, columns, weights, divisor, inner, merged);
  else
    blend_rows<float>(dense, rows, columns, weights, divisor, inner, merged);
  return merged;
}

}  // namespace weightsmith
