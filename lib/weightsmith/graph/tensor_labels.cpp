#include "weightsmith/graph/tensor_labels.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <set>

#include "weightsmith/core/error.h"

namespace weightsmith {
namespace {

using Dims = std::vector<std::int64_t>;

bool contains(const Dims& dims, std::int64_t dim) {
  return std::find(dims.begin(), dims.end(), dim) != dims.end();
}

Dims intersection(const Dims& a, const Dims& b) {
  Dims both;
  std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(both));
  return both;
}

/// True where nothing but zeros (no label) departs from one value along `dim`.
bool is_constant_along(const at::Tensor& x, std::int64_t dim, at::Tensor& value) {
  if (x.size(dim) == 1 || x.stride(dim) == 0) {
    value = x.select(dim, 0);
    return true;
  }
  // Two slices tell most dimensions apart without a look at the rest.
  const at::Tensor first = x.select(dim, 0);
  const at::Tensor second = x.select(dim, 1);
  if ((first != second).logical_and(first != 0).logical_and(second != 0).any().item<bool>())
    return false;
  const at::Tensor most = x.amax(dim);
  const at::Tensor least =
      at::where(x == 0, at::full({}, std::numeric_limits<double>::infinity(), at::kDouble), x)
          .amin(dim);
  if (!(least >= most).all().item<bool>()) return false;
  value = most;
  return true;
}

/// The labels of a tensor, given one for each element, without the dimensions that do not matter.
LabelArray essential(at::Tensor x) {
  LabelArray array;
  std::int64_t at = 0;
  for (std::int64_t dim = 0, rank = x.dim(); dim < rank; ++dim) {
    at::Tensor value;
    if (is_constant_along(x, at, value)) {
      x = value;
    } else {
      array.dims.push_back(dim);
      ++at;
    }
  }
  array.labels = x.to(at::kLong).contiguous();
  return array;
}

/// The array where dimension d of the tensor is called now[d].
LabelArray renumbered(const LabelArray& array, const Dims& now) {
  std::vector<std::pair<std::int64_t, std::int64_t>> order;
  for (std::size_t i = 0; i < array.dims.size(); ++i) {
    WS_CHECK(now[array.dims[i]] >= 0);
    order.emplace_back(now[array.dims[i]], static_cast<std::int64_t>(i));
  }
  std::sort(order.begin(), order.end());
  LabelArray result;
  Dims permutation;
  for (const auto& [dim, from] : order) {
    result.dims.push_back(dim);
    permutation.push_back(from);
  }
  result.labels = array.labels.permute(permutation).contiguous();
  return result;
}

}  // namespace

const LabelArray* TensorLabels::array_at(std::int64_t dim) const {
  for (const LabelArray& array : arrays)
    if (contains(array.dims, dim)) return &array;
  return nullptr;
}

TensorLabels fixed_labels(at::IntArrayRef shape) {
  TensorLabels labels;
  labels.shape = shape.vec();
  for (const std::int64_t size : shape) labels.neutral.push_back(size == 1);
  return labels;
}

TensorLabels fresh_labels(LabelStore& store, at::IntArrayRef shape) {
  TensorLabels labels = fixed_labels(shape);
  for (std::int64_t d = 0; d < labels.rank(); ++d)
    if (shape[d] > 1) labels.arrays.push_back({{d}, store.fresh({shape[d]})});
  return labels;
}

TensorLabels LabelAlgebra::place(const TensorLabels& x, const Dims& dims, std::int64_t rank) const {
  TensorLabels placed = fixed_labels(Dims(rank, 1));
  placed.from_parameters = x.from_parameters;
  placed.is_static = x.is_static;
  placed.alone = x.alone;
  for (std::int64_t d = 0; d < x.rank(); ++d) {
    placed.shape[dims[d]] = x.shape[d];
    placed.neutral[dims[d]] = x.neutral[d];
  }
  for (const LabelArray& array : x.arrays) placed.arrays.push_back(renumbered(array, dims));
  return placed;
}

TensorLabels LabelAlgebra::meet(const TensorLabels& a, const TensorLabels& b) {
  const std::int64_t rank = std::max(a.rank(), b.rank());
  Dims a_dims(a.rank());
  Dims b_dims(b.rank());
  std::iota(a_dims.begin(), a_dims.end(), rank - a.rank());
  std::iota(b_dims.begin(), b_dims.end(), rank - b.rank());
  return meet(a, a_dims, b, b_dims, rank);
}

TensorLabels LabelAlgebra::meet(const TensorLabels& a, const Dims& a_dims, const TensorLabels& b,
                                const Dims& b_dims, std::int64_t rank) {
  return meet_aligned(place(a, a_dims, rank), place(b, b_dims, rank));
}

void LabelAlgebra::fill_blanks(TensorLabels& x, const TensorLabels& other) {
  for (LabelArray& array : x.arrays) {
    const at::Tensor blank = array.labels == 0;
    if (!blank.any().item<bool>()) continue;
    const auto twin = std::find_if(other.arrays.begin(), other.arrays.end(),
                                   [&](const LabelArray& y) { return y.dims == array.dims; });
    if (twin != other.arrays.end()) {
      array.labels = at::where(blank, twin->labels, array.labels);
    } else if (std::any_of(array.dims.begin(), array.dims.end(),
                           [&](std::int64_t d) { return !other.neutral[d]; })) {
      // A constant no longer: its place decides what it meets.
      array.labels = at::where(blank, store_.fresh(array.labels.sizes()), array.labels);
    }
  }
}

TensorLabels LabelAlgebra::meet_aligned(TensorLabels a, TensorLabels b) {
  const TensorLabels a_before = a;
  fill_blanks(a, b);
  fill_blanks(b, a_before);
  for (const LabelArray& x : a.arrays)
    for (const LabelArray& y : b.arrays) {
      const Dims both = intersection(x.dims, y.dims);
      if (!both.empty())
        store_.unite(store_.blocks_by(x, both).labels, store_.blocks_by(y, both).labels);
    }
  TensorLabels result = fixed_labels(a.shape);
  for (std::size_t d = 0; d < a.shape.size(); ++d) {
    result.shape[d] = a.shape[d] == 1 ? b.shape[d] : a.shape[d];
    result.neutral[d] = a.neutral[d] && b.neutral[d];
  }
  const auto keep = [&](const TensorLabels& x, const TensorLabels& other) {
    for (const LabelArray& array : x.arrays) {
      Dims fixed;
      for (const std::int64_t d : array.dims)
        if (other.is_fixed(d)) fixed.push_back(d);
      if (!fixed.empty()) store_.distinguish(array, fixed, {Cause::kInput, node_});
      if (fixed != array.dims) result.arrays.push_back(array);
    }
  };
  keep(a, b);
  keep(b, a);
  tidy(result);
  // Beside other labels a single one is no part of what the result is.
  if (a.arrays.empty() && b.arrays.empty()) {
    result.alone = a.alone;
    result.alone.insert(result.alone.end(), b.alone.begin(), b.alone.end());
  }
  result.from_parameters = a.from_parameters && (b.from_parameters || b.is_static);
  result.from_parameters |= b.from_parameters && a.is_static;
  result.is_static = a.is_static && b.is_static;
  return result;
}

bool LabelAlgebra::agree(const LabelArray& a, const LabelArray& b) {
  const Dims both = intersection(a.dims, b.dims);
  const at::Tensor left = store_.blocks_by(a, both).labels.contiguous();
  const at::Tensor right = store_.blocks_by(b, both).labels.contiguous();
  const auto* x = left.data_ptr<Label>();
  const auto* y = right.data_ptr<Label>();
  for (std::int64_t i = 0; i < left.numel(); ++i)
    if (store_.find(x[i]) != store_.find(y[i])) return false;
  return true;
}

void LabelAlgebra::tidy(TensorLabels& x) {
  if (x.arrays.size() < 2) return;
  std::vector<LabelArray> arrays = std::move(x.arrays);
  x.arrays.clear();
  std::stable_sort(arrays.begin(), arrays.end(), [](const LabelArray& a, const LabelArray& b) {
    return a.dims.size() > b.dims.size();
  });
  for (LabelArray& array : arrays) {
    bool is_part = false;
    bool fits = true;
    for (const LabelArray& kept : x.arrays) {
      const Dims both = intersection(kept.dims, array.dims);
      is_part |= both == array.dims;
      if (!both.empty() && both != array.dims) fits &= agree(kept, array);
    }
    if (is_part) continue;
    x.arrays.push_back(std::move(array));
    if (fits) continue;
    Dims joint = x.arrays.back().dims;  // and all that hangs together with it
    for (bool grows = true; grows;) {
      grows = false;
      for (const LabelArray& kept : x.arrays) {
        Dims both;
        std::set_union(joint.begin(), joint.end(), kept.dims.begin(), kept.dims.end(),
                       std::back_inserter(both));
        if (both == joint || intersection(joint, kept.dims).empty()) continue;
        joint = std::move(both);
        grows = true;
      }
    }
    const LabelArray joined = join(x, joint, Cause::kInput);
    std::erase_if(x.arrays,
                  [&](const LabelArray& kept) { return !intersection(kept.dims, joint).empty(); });
    x.arrays.push_back(joined);
  }
}

TensorLabels LabelAlgebra::disjoint(const TensorLabels& x) {
  TensorLabels result = x;
  result.arrays.clear();
  std::vector<bool> done(x.shape.size(), false);
  for (const LabelArray& first : x.arrays) {
    if (done[first.dims.front()]) continue;
    Dims joint = first.dims;
    for (std::size_t before = 0; before != joint.size();) {
      before = joint.size();
      for (const LabelArray& other : x.arrays) {
        if (intersection(joint, other.dims).empty()) continue;
        Dims both;
        std::set_union(joint.begin(), joint.end(), other.dims.begin(), other.dims.end(),
                       std::back_inserter(both));
        joint = std::move(both);
      }
    }
    for (const std::int64_t d : joint) done[d] = true;
    result.arrays.push_back(join(x, joint, Cause::kInput));
  }
  return result;
}

LabelArray LabelAlgebra::join(const TensorLabels& x, const Dims& dims, Cause cause) {
  Dims sizes;
  Dims fixed;
  for (const std::int64_t d : dims) {
    sizes.push_back(x.shape[d]);
    if (x.is_fixed(d)) fixed.push_back(d);
  }
  LabelArray joint{dims, {}};
  std::vector<const LabelArray*> inside;
  for (const LabelArray& array : x.arrays)
    if (!intersection(array.dims, dims).empty()) inside.push_back(&array);
  if (inside.size() == 1 && inside.front()->dims == dims) return *inside.front();
  joint.labels = store_.fresh(sizes);
  for (const LabelArray* array : inside) {
    WS_CHECK(intersection(array->dims, dims) == array->dims);
    store_.unite(store_.blocks_by(joint, array->dims).labels, array->labels);
  }
  if (!fixed.empty()) store_.distinguish(joint, fixed, {cause, node_});
  return joint;
}

TensorLabels LabelAlgebra::reduce(const TensorLabels& x, const Dims& dims) {
  TensorLabels result = fixed_labels(x.shape);
  result.from_parameters = x.from_parameters;
  result.is_static = x.is_static;
  for (std::int64_t d = 0; d < x.rank(); ++d) result.neutral[d] = x.neutral[d];
  for (const std::int64_t d : dims) {
    result.shape[d] = 1;
    result.neutral[d] = true;
  }
  for (const LabelArray& array : x.arrays) {
    Dims left;
    for (const std::int64_t d : array.dims)
      if (!contains(dims, d)) left.push_back(d);
    if (!left.empty()) result.arrays.push_back(store_.blocks_by(array, left));
  }
  result.alone = x.alone;
  tidy(result);
  return result;
}

TensorLabels LabelAlgebra::reduce_away(const TensorLabels& x, const Dims& dims) {
  Dims left;
  for (std::int64_t d = 0; d < x.rank(); ++d)
    if (!contains(dims, d)) left.push_back(d);
  return take(reduce(x, dims), left);
}

TensorLabels LabelAlgebra::take(const TensorLabels& x, const Dims& dims) const {
  TensorLabels result = fixed_labels(Dims(dims.size(), 1));
  result.from_parameters = x.from_parameters;
  result.is_static = x.is_static;
  result.alone = x.alone;
  Dims now(x.rank(), -1);
  for (std::size_t i = 0; i < dims.size(); ++i) {
    now[dims[i]] = static_cast<std::int64_t>(i);
    result.shape[i] = x.shape[dims[i]];
    result.neutral[i] = x.neutral[dims[i]];
  }
  for (const LabelArray& array : x.arrays) result.arrays.push_back(renumbered(array, now));
  return result;
}

bool LabelAlgebra::distinguish(const TensorLabels& x, const Dims& dims, Cause cause) {
  bool any = false;
  for (const LabelArray& array : x.arrays) {
    const Dims hit = intersection(array.dims, dims);
    if (hit.empty()) continue;
    store_.distinguish(array, hit, {cause, node_});
    any = true;
  }
  return any;
}

TensorLabels LabelAlgebra::fix(const TensorLabels& x, const Dims& dims, Cause cause) {
  distinguish(x, dims, cause);
  TensorLabels result = x;
  std::erase_if(result.arrays, [&](const LabelArray& array) {
    return intersection(array.dims, dims) == array.dims;
  });
  // What is left of a joint array: the blocks that its other coordinates make.
  for (LabelArray& array : result.arrays) {
    Dims left;
    for (const std::int64_t d : array.dims)
      if (!contains(dims, d)) left.push_back(d);
    array = store_.blocks_by(array, left);
  }
  for (const std::int64_t d : dims) result.neutral[d] = x.shape[d] == 1;
  tidy(result);
  return result;
}

std::vector<TensorLabels> LabelAlgebra::rearrange(
    const TensorLabels& before,
    const std::function<std::vector<at::Tensor>(const at::Tensor&)>& move) {
  TensorLabels x = before;
  std::vector<TensorLabels> results;
  bool any_fixed = false;
  for (std::int64_t d = 0; d < x.rank(); ++d) any_fixed |= x.is_fixed(d);
  // The shapes of the results, also where nothing is labelled.
  const at::Tensor blank = at::zeros({}, at::kDouble).expand(x.shape);
  for (const at::Tensor& moved : move(blank)) {
    TensorLabels labels = fixed_labels(moved.sizes());
    labels.from_parameters = x.from_parameters;
    labels.is_static = x.is_static;
    labels.alone = x.alone;
    if (!any_fixed) labels.neutral.assign(labels.shape.size(), true);
    results.push_back(std::move(labels));
  }
  bool may_share = false;  // dimensions: only what came so goes on so
  for (const LabelArray& a : x.arrays)
    for (const LabelArray& b : x.arrays)
      may_share |= &a != &b && !intersection(a.dims, b.dims).empty();
  const std::vector<TensorLabels> empty = results;
  // Of every result's arrays, which of x's they come from.
  std::vector<std::vector<std::size_t>> origins(results.size());
  std::vector<Label> alone;  // labels that leave their neighbours behind
  for (std::size_t a = 0; a < x.arrays.size(); ++a) {
    const LabelArray array = x.arrays[a];
    Dims view(x.rank(), 1);
    for (std::size_t i = 0; i < array.dims.size(); ++i)
      view[array.dims[i]] = x.shape[array.dims[i]];
    const at::Tensor all = array.labels.to(at::kDouble).reshape(view).expand(x.shape);
    const std::vector<at::Tensor> moved = move(all);
    WS_CHECK(moved.size() == results.size());
    std::set<std::size_t> colliding;
    for (std::size_t i = 0; i < moved.size(); ++i) {
      LabelArray kept = essential(moved[i]);
      if (kept.dims.empty()) {
        if (moved[i].numel() > 0 && !are_one(array.labels)) {
          alone.push_back(static_cast<Label>(moved[i].flatten()[0].item<double>()));
          results[i].alone.push_back(alone.back());
        }
        continue;
      }
      for (std::size_t o = 0; o < origins[i].size(); ++o) {
        const LabelArray& other = results[i].arrays[o];
        if (!intersection(other.dims, kept.dims).empty() && !(may_share && agree(other, kept)))
          colliding.insert(origins[i][o]);
      }
      results[i].arrays.push_back(std::move(kept));
      origins[i].push_back(a);
    }
    if (colliding.empty()) continue;
    // Dimensions that become one (flattened tokens and units, a diagonal) carry labels jointly from
    // the start: then every element is followed by itself.
    colliding.insert(a);
    TensorLabels labelled = x;
    labelled.arrays.clear();
    Dims dims;
    for (const std::size_t c : colliding) {
      labelled.arrays.push_back(x.arrays[c]);
      dims.insert(dims.end(), x.arrays[c].dims.begin(), x.arrays[c].dims.end());
    }
    std::sort(dims.begin(), dims.end());
    dims.erase(std::unique(dims.begin(), dims.end()), dims.end());
    const LabelArray joint = join(labelled, dims, Cause::kInput);
    for (auto c = colliding.rbegin(); c != colliding.rend(); ++c)
      x.arrays.erase(x.arrays.begin() + static_cast<std::ptrdiff_t>(*c));
    x.arrays.insert(x.arrays.begin(), joint);
    results = empty;
    origins.assign(results.size(), {});
    alone.clear();
    a = static_cast<std::size_t>(-1);  // from the first again
  }
  // A dimension of size 1 carries no label, so nothing behind it would tell the one that was taken
  // from those that were not.
  for (const Label label : alone)
    if (label != 0)
      store_.distinguish({{0}, at::full({1}, label, at::kLong)}, {0}, {Cause::kAlone, node_});
  for (TensorLabels& result : results) tidy(result);
  return results;
}

bool LabelAlgebra::are_one(const at::Tensor& labels) const {
  const at::Tensor flat = labels.flatten();
  const auto* first = flat.data_ptr<Label>();
  return std::all_of(first, first + flat.numel(),
                     [&](Label label) { return store_.find(label) == store_.find(*first); });
}

TensorLabels LabelAlgebra::concatenate(const std::vector<TensorLabels>& parts, std::int64_t dim) {
  WS_CHECK(!parts.empty());
  // Dimensions that carry labels jointly in some part, or together in two of them.
  const std::int64_t rank = parts.front().rank();
  std::vector<std::int64_t> component(rank);
  std::iota(component.begin(), component.end(), 0);
  for (const TensorLabels& part : parts)
    for (const LabelArray& array : part.arrays) {
      const std::int64_t to = component[array.dims.front()];
      for (const std::int64_t d : array.dims) {
        const std::int64_t from = component[d];
        std::replace(component.begin(), component.end(), from, to);
      }
    }
  TensorLabels result = fixed_labels(parts.front().shape);
  result.shape[dim] = 0;
  result.from_parameters = true;
  result.is_static = true;
  bool any_parameter = false;
  for (const TensorLabels& part : parts) {
    result.shape[dim] += part.shape[dim];
    result.from_parameters &= part.from_parameters || part.is_static;
    any_parameter |= part.from_parameters;
    result.is_static &= part.is_static;
    result.alone.insert(result.alone.end(), part.alone.begin(), part.alone.end());
  }
  result.from_parameters &= any_parameter;
  for (std::int64_t d = 0; d < rank; ++d)
    result.neutral[d] = result.shape[d] == 1 ||
                        (d != dim && std::all_of(parts.begin(), parts.end(), [&](const auto& part) {
                           return part.neutral[d];
                         }));
  for (std::int64_t c = 0; c < rank; ++c) {
    Dims dims;
    for (std::int64_t d = 0; d < rank; ++d)
      if (component[d] == c) dims.push_back(d);
    const auto is_labelled = [&](const TensorLabels& part) {
      return std::any_of(dims.begin(), dims.end(),
                         [&](std::int64_t d) { return part.array_at(d) != nullptr; });
    };
    if (dims.empty() || std::none_of(parts.begin(), parts.end(), is_labelled)) continue;
    std::vector<at::Tensor> pieces;
    for (const TensorLabels& part : parts) {
      const bool is_neutral =
          std::all_of(dims.begin(), dims.end(), [&](std::int64_t d) { return part.neutral[d]; });
      if (!is_labelled(part) && is_neutral && part.is_static) {
        Dims sizes;
        for (const std::int64_t d : dims) sizes.push_back(part.shape[d]);
        pieces.push_back(at::zeros(sizes, at::kLong));
      } else {
        pieces.push_back(join(part, dims, Cause::kInput).labels);
      }
    }
    LabelArray joint{dims, pieces.front()};
    const auto along = std::find(dims.begin(), dims.end(), dim);
    if (along != dims.end()) {
      joint.labels = at::cat(pieces, along - dims.begin()).contiguous();
    } else {
      for (std::size_t i = 1; i < pieces.size(); ++i) {
        store_.unite(joint.labels, pieces[i]);
        joint.labels = at::where(joint.labels == 0, pieces[i], joint.labels);
      }
    }
    result.arrays.push_back(std::move(joint));
  }
  return result;
}

at::Tensor LabelAlgebra::grouped(const TensorLabels& given, std::int64_t dim, std::int64_t groups,
                                 Cause cause) {
  const TensorLabels x = disjoint(given);
  const std::int64_t size = x.shape[dim];
  const LabelArray* array = x.array_at(dim);
  if (array != nullptr && array->dims.size() == 1) return array->labels.reshape({groups, -1});
  if (array != nullptr) {
    // Other coordinates of a joint array are positions here.
    Dims others = array->dims;
    std::erase(others, dim);
    store_.distinguish(*array, others, {cause, node_});
    return store_.blocks_by(*array, {dim}).labels.reshape({groups, -1});
  }
  LabelArray own{{0}, store_.fresh({size})};
  if (size > 1 && !x.neutral[dim]) store_.distinguish(own, {0}, {cause, node_});
  return own.labels.reshape({groups, -1});
}

void LabelAlgebra::unite_blocks(const at::Tensor& a, const at::Tensor& b) {
  const LabelArray left{{0, 1}, a.contiguous()};
  const LabelArray right{{0, 1}, b.contiguous()};
  store_.unite(store_.blocks_by(left, {0}).labels, store_.blocks_by(right, {0}).labels);
}

}  // namespace weightsmith
