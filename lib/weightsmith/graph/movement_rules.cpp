#include <ATen/Functions.h>

#include <algorithm>
#include <numeric>

#include "weightsmith/graph/operator_rule_table.h"

namespace weightsmith {
namespace {

using Dims = std::vector<std::int64_t>;

/// The operator itself tells where each element goes: it is run again on labels.
void rearrangement(OperatorCall& call, const char* argument = "self",
                   const std::vector<std::pair<std::string, c10::IValue>>& others = {}) {
  call.out() = call.algebra().rearrange(call.labels(argument), [&](const at::Tensor& labels) {
    return call.rerun(argument, labels, others);
  });
}

void movement(OperatorCall& call) { rearrangement(call); }

/// For operators whose tensor argument goes by another name (pixel_shuffle, flatten ...).
void movement_of_input(OperatorCall& call) {
  rearrangement(call, call.has("self") ? "self" : "input");
}

/// Expanded dimensions hold one value many times.
void expansion(OperatorCall& call) {
  const TensorLabels before = call.labels("self");
  rearrangement(call);
  TensorLabels& after = call.out().front();
  const std::int64_t added = after.rank() - before.rank();
  for (std::int64_t d = 0; d < after.rank(); ++d)
    if (d < added || (before.shape[d - added] == 1 && after.shape[d] > 1)) after.neutral[d] = true;
}

/// Padding with any one value: what is put there goes with anything.
void constant_padding(OperatorCall& call) {
  if (call.has("mode") && call.value("mode").isString() &&
      call.value("mode").toStringRef() != "constant")
    return movement(call);
  rearrangement(call, "self", {{"value", 0.0}});
  // Where one value stood many times, the padding now stands apart.
  const at::Tensor self = call.tensor("self");
  TensorLabels& padded = call.out().front();
  for (std::int64_t d = 0; d < padded.rank(); ++d)
    if (padded.shape[d] != self.size(d) && padded.shape[d] > 1) padded.neutral[d] = false;
}

void concatenation(OperatorCall& call) {
  std::vector<TensorLabels> parts;
  std::int64_t rank = call.results().front().dim();
  for (const at::Tensor& tensor : call.tensors("tensors"))
    // cat ignores empty one-dimensional tensors.
    if (tensor.numel() > 0 || tensor.dim() == rank) parts.push_back(call.labels(tensor));
  call.set(0, call.algebra().concatenate(parts, OperatorCall::wrap(call.integer("dim", 0), rank)));
}

TensorLabels unsqueezed(const TensorLabels& labels, std::int64_t dim, LabelAlgebra& algebra) {
  return algebra.rearrange(
      labels, [&](const at::Tensor& t) { return std::vector<at::Tensor>{t.unsqueeze(dim)}; })[0];
}

void stacking(OperatorCall& call) {
  const std::int64_t rank = call.results().front().dim();
  const std::int64_t dim = OperatorCall::wrap(call.integer("dim", 0), rank);
  std::vector<TensorLabels> parts;
  for (const at::Tensor& tensor : call.tensors("tensors"))
    parts.push_back(unsqueezed(call.labels(tensor), dim, call.algebra()));
  call.set(0, call.algebra().concatenate(parts, dim));
}

/// Dimensions of `self` that an index tensor picks from; where the index depends on data, units
/// cannot be followed through it.
void refuse_data_driven(OperatorCall& call, const at::Tensor& index, const Dims& dims) {
  if (!call.labels(index).is_static)
    call.algebra().distinguish(call.labels("self"), dims, Cause::kOrder);
}

void index_select(OperatorCall& call) {
  const std::int64_t dim = OperatorCall::wrap(call.integer("dim"), call.tensor("self").dim());
  refuse_data_driven(call, call.tensor("index"), {dim});
  movement(call);
}

void index(OperatorCall& call) {
  std::int64_t dim = 0;
  for (const c10::IValue& item : call.value("indices").toListRef()) {
    if (!item.isTensor() || !item.toTensor().defined()) {
      ++dim;
      continue;
    }
    const at::Tensor& picks = item.toTensor();
    const bool is_mask = picks.scalar_type() == at::kBool || picks.scalar_type() == at::kByte;
    Dims dims(is_mask ? picks.dim() : 1);
    std::iota(dims.begin(), dims.end(), dim);
    refuse_data_driven(call, picks, dims);
    dim += static_cast<std::int64_t>(dims.size());
  }
  movement(call);
}

/// self[indices] = values: what is written has the labels of what was there.
void index_put(OperatorCall& call) {
  const TensorLabels self = call.labels("self");
  // c10::optional in LibTorch 1.13, std::optional in 2.x.
  using OptionalTensors = decltype(call.value("indices").toOptionalTensorList());
  OptionalTensors indices;
  bool follows = true;
  for (const c10::IValue& item : call.value("indices").toListRef()) {
    const bool is_index = item.isTensor() && item.toTensor().defined();
    if (is_index) follows &= call.labels(item.toTensor()).is_static;
    indices.push_back(is_index ? OptionalTensors::value_type(item.toTensor())
                               : OptionalTensors::value_type());
  }
  Dims all(self.rank());
  std::iota(all.begin(), all.end(), 0);
  if (follows) {
    const TensorLabels written = call.algebra().rearrange(self, [&](const at::Tensor& t) {
      return std::vector<at::Tensor>{at::index(t, indices)};
    })[0];
    call.algebra().meet(written, call.labels("values"));
  } else {
    const TensorLabels values = call.labels("values");
    Dims dims(values.rank());
    std::iota(dims.begin(), dims.end(), 0);
    call.algebra().distinguish(self, all, Cause::kOrder);
    call.algebra().distinguish(values, dims, Cause::kOrder);
  }
  call.set(0, self);
}

/// One element of every line along `dim`, which the index chooses.
void gather(OperatorCall& call) {
  const at::Tensor self = call.tensor("self");
  const std::int64_t dim = OperatorCall::wrap(call.integer("dim"), self.dim());
  const TensorLabels labels = call.algebra().fix(call.labels("self"), {dim}, Cause::kOrder);
  if (self.sizes() != call.results().front().sizes()) {
    TensorLabels shaped = labels;
    shaped.shape = call.results().front().sizes().vec();
    bool other_sizes_agree = true;
    for (std::int64_t d = 0; d < self.dim(); ++d)
      other_sizes_agree &= d == dim || shaped.shape[d] == self.size(d);
    if (!other_sizes_agree) {
      Dims all(labels.rank());
      std::iota(all.begin(), all.end(), 0);
      call.algebra().distinguish(labels, all, Cause::kOrder);
      return;
    }
    shaped.neutral[dim] = shaped.shape[dim] == 1;
    call.set(0, call.algebra().meet(shaped, call.labels("index")));
    return;
  }
  call.set(0, call.algebra().meet(labels, call.labels("index")));
}

/// Elements of `source` are added or written along `dim` where an index says; the other dimensions
/// meet.
void scattering(OperatorCall& call) {
  LabelAlgebra& algebra = call.algebra();
  const TensorLabels self = call.labels("self");
  const std::int64_t dim = OperatorCall::wrap(call.integer("dim"), self.rank());
  TensorLabels y = algebra.fix(self, {dim}, Cause::kOrder);
  for (const char* argument : {"index", "source", "src"}) {
    if (!call.has(argument) || !call.value(argument).isTensor()) continue;
    const TensorLabels given = call.labels(argument);
    if (given.rank() != y.rank()) {  // one index a slice, or one value for all
      Dims all(given.rank());
      std::iota(all.begin(), all.end(), 0);
      algebra.distinguish(given, all, Cause::kOrder);
      continue;
    }
    TensorLabels fixed = algebra.fix(given, {dim}, Cause::kOrder);
    bool fits = true;
    for (std::int64_t d = 0; d < y.rank(); ++d) fits &= d == dim || fixed.shape[d] == y.shape[d];
    if (!fits) {  // only the first elements of the other dimensions are written
      Dims all(y.rank());
      std::iota(all.begin(), all.end(), 0);
      algebra.distinguish(given, all, Cause::kOrder);
      y = algebra.fix(y, all, Cause::kOrder);
      continue;
    }
    fixed.shape[dim] = y.shape[dim];
    fixed.neutral[dim] = y.neutral[dim];
    y = algebra.meet(y, fixed);
  }
  call.set(0, y);
}

void broadcast_tensors(OperatorCall& call) {
  for (std::size_t i = 0; i < call.results().size(); ++i) {
    const Dims shape = call.results()[i].sizes().vec();
    call.set(i,
             call.algebra().rearrange(call.labels(call.all_tensors()[i]), [&](const at::Tensor& t) {
               return std::vector<at::Tensor>{t.expand(shape)};
             })[0]);
  }
}

/// Sliding windows put back: what overlaps is added up, in the order of the windows.
void fold(OperatorCall& call) {
  const TensorLabels labels = call.labels("self");
  Dims all(labels.rank());
  std::iota(all.begin(), all.end(), 0);
  call.algebra().distinguish(labels, all, Cause::kPosition);
}

}  // namespace

void add_movement_rules(RuleTable& table) {
  add_rules(table,
            {"view",
             "reshape",
             "_reshape_alias",
             "_unsafe_view",
             "view_as",
             "reshape_as",
             "ravel",
             "unsqueeze",
             "permute",
             "transpose",
             "t",
             "numpy_T",
             "T",
             "mT",
             "mH",
             "swapaxes",
             "swapdims",
             "movedim",
             "moveaxis",
             "select",
             "slice",
             "narrow",
             "chunk",
             "split",
             "split_with_sizes",
             "tensor_split",
             "unsafe_chunk",
             "unsafe_split",
             "unsafe_split_with_sizes",
             "unbind",
             "repeat",
             "tile",
             "roll",
             "flip",
             "fliplr",
             "flipud",
             "rot90",
             "pixel_shuffle",
             "pixel_unshuffle",
             "channel_shuffle",
             "native_channel_shuffle",
             "unfold",
             "im2col",
             "diagonal",
             "reflection_pad1d",
             "reflection_pad2d",
             "reflection_pad3d",
             "replication_pad1d",
             "replication_pad2d",
             "replication_pad3d",
             "atleast_1d",
             "atleast_2d",
             "atleast_3d",
             "hsplit",
             "vsplit",
             "dsplit"},
            movement);
  add_rules(table, {"flatten", "unflatten", "repeat_interleave", "squeeze"}, movement_of_input);
  add_rules(table, {"expand", "expand_as", "broadcast_to"}, expansion);
  add_rules(table, {"constant_pad_nd", "pad"}, constant_padding);
  add_rules(table, {"cat", "concat", "concatenate"}, concatenation);
  table["stack"] = stacking;
  table["index_select"] = index_select;
  table["index"] = index;
  add_rules(table, {"index_put", "_index_put_impl"}, index_put);
  add_rules(table, {"gather", "take_along_dim"}, gather);
  add_rules(table,
            {"scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy", "index_fill",
             "index_reduce"},
            scattering);
  table["broadcast_tensors"] = broadcast_tensors;
  table["col2im"] = fold;
}

}  // namespace weightsmith
