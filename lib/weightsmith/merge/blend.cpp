#include "weightsmith/merge/blend.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "weightsmith/core/error.h"

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

template <class T>
void divide(T* sum, std::int64_t n, double divisor) {
  if (divisor == 1) return;
  int exponent = 0;
  const auto by = static_cast<T>(divisor);
  if (std::frexp(divisor, &exponent) == 0.5)  // a power of two: the product has the same bits
    for (std::int64_t j = 0; j < n; ++j) sum[j] *= 1 / by;
  else
    for (std::int64_t j = 0; j < n; ++j) sum[j] /= by;
}

/// add_row with columns of `inner` values each put where `map` says. The size of most kernels is
/// known to the compiler (kInner; 0: any).
template <class T, int kInner>
void add_columns(T* __restrict sum, const T* __restrict row, const AxisMap& map, std::int64_t inner,
                 T factor) {
  if (kInner > 0) inner = kInner;
  const auto columns = static_cast<std::int64_t>(map.target.size());
  const std::int32_t* __restrict const target = map.target.data();
  const auto add_all = [&](auto weight_of) {
    for (std::int64_t c = 0; c < columns; ++c) {
      const T weight = weight_of(c);
      T* const to = sum + target[c] * inner;
      const T* const from = row + c * inner;
      for (std::int64_t j = 0; j < inner; ++j) to[j] += weight * from[j];
    }
  };
  if (map.factor.empty())
    add_all([&](std::int64_t) { return factor; });
  else
    add_all([&](std::int64_t c) { return static_cast<T>(factor * map.factor[c]); });
}

/// Where the values of merged columns come from, for columns of one value: a place among the
/// columns of all models one after another, or the 0 behind them. layers[k] holds the k-th source
/// of every merged column.
struct ColumnSources {
  std::vector<std::vector<std::int32_t>> layers;
  std::vector<std::int64_t> offset;  ///< of each model's columns; the last entry is the 0's place
};

/// Nothing where columns are weighted, or where so many fall on one that most places would be the
/// 0's.
std::optional<ColumnSources> column_sources(const std::vector<AxisMap>& columns) {
  ColumnSources sources;
  sources.offset.push_back(0);
  const auto length = static_cast<std::size_t>(columns.front().length);
  std::vector<std::size_t> count(length, 0);
  for (const AxisMap& map : columns) {
    if (!map.factor.empty()) return std::nullopt;
    for (const std::int32_t target : map.target) ++count[target];
    sources.offset.push_back(sources.offset.back() + static_cast<std::int64_t>(map.target.size()));
  }
  const auto zero = static_cast<std::int32_t>(sources.offset.back());
  const std::size_t deepest = count.empty() ? 0 : *std::max_element(count.begin(), count.end());
  if (deepest * length > 2 * static_cast<std::size_t>(zero)) return std::nullopt;
  sources.layers.assign(deepest, std::vector<std::int32_t>(length, zero));
  std::fill(count.begin(), count.end(), 0);
  std::int32_t place = 0;
  for (const AxisMap& map : columns)
    for (const std::int32_t target : map.target) sources.layers[count[target]++][target] = place++;
  return sources;
}

/// What each model adds to merged row r, in the places of its own columns.
template <class T>
void collect(std::vector<T>& values, const Sources<T>& sources, std::int64_t r,
             const std::vector<const T*>& from, const ColumnSources& places) {
  const auto models = static_cast<std::int32_t>(from.size());
  std::int64_t s = sources.begin[r];
  for (std::int32_t model = 0; model < models; ++model) {
    const std::int64_t n = places.offset[model + 1] - places.offset[model];
    T* const own = values.data() + places.offset[model];
    bool is_first = true;
    for (; s < sources.begin[r + 1] && sources.list[s].model == model; ++s) {
      const Source<T>& source = sources.list[s];
      (is_first ? scale_row<T> : add_row<T>)(own, from[model] + source.row * n, n, source.factor);
      is_first = false;
    }
    if (is_first) std::fill(own, own + n, T{0});
  }
}

/// The sums of each merged column's sources among `values`. Read where they stand and written once:
/// twice as fast as adding every value to its column.
template <class T>
void gather(T* __restrict sum, const T* __restrict values, const ColumnSources& sources,
            std::int64_t n) {
  const auto& layers = sources.layers;
  std::size_t k = 0;
  if (layers.size() < 2) {
    std::fill(sum, sum + n, T{0});
  } else {
    const std::int32_t* __restrict const a = layers[0].data();
    const std::int32_t* __restrict const b = layers[1].data();
    for (std::int64_t c = 0; c < n; ++c) sum[c] = values[a[c]] + values[b[c]];
    k = 2;
  }
  for (; k < layers.size(); ++k) {
    const std::int32_t* __restrict const a = layers[k].data();
    for (std::int64_t c = 0; c < n; ++c) sum[c] += values[a[c]];
  }
}

template <class T>
void blend_rows(const std::vector<at::Tensor>& tensors, const std::vector<AxisMap>& rows,
                const std::vector<AxisMap>& columns, const std::vector<double>& weights,
                double divisor, std::int64_t inner, at::Tensor& merged) {
  const Sources<T> sources = sources_of<T>(rows, weights);
  std::vector<const T*> from;
  std::vector<std::int64_t> width;
  std::vector<char> stays;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    from.push_back(tensors[i].data_ptr<T>());
    width.push_back(static_cast<std::int64_t>(columns[i].target.size()) * inner);
    stays.push_back(columns[i].is_identity());
  }
  std::optional<ColumnSources> places;
  if (inner == 1 && std::find(stays.begin(), stays.end(), 0) != stays.end())
    places = column_sources(columns);
  const auto add = inner == 1   ? add_columns<T, 1>
                   : inner == 9 ? add_columns<T, 9>
                                : add_columns<T, 0>;
  T* const to = merged.data_ptr<T>();
  const std::int64_t wide = columns.front().length * inner;
  constexpr std::int64_t kWorthAThread = 32768;  // values
  const std::int64_t grain =
      std::max<std::int64_t>(1, kWorthAThread / std::max<std::int64_t>(wide, 1));
  at::parallel_for(0, rows.front().length, grain, [&](std::int64_t first, std::int64_t last) {
    std::vector<T> values(places ? places->offset.back() + 1 : 0);
    for (std::int64_t r = first; r < last; ++r) {
      T* const sum = to + r * wide;
      if (places) {
        collect(values, sources, r, from, *places);
        gather(sum, values.data(), *places, wide);
        divide(sum, wide, divisor);
        continue;
      }
      std::fill(sum, sum + wide, T{0});
      for (std::int64_t s = sources.begin[r]; s < sources.begin[r + 1]; ++s) {
        const Source<T>& source = sources.list[s];
        const T* const row = from[source.model] + source.row * width[source.model];
        if (stays[source.model])
          add_row(sum, row, wide, source.factor);
        else
          add(sum, row, columns[source.model], inner, source.factor);
      }
      divide(sum, wide, divisor);
    }
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
