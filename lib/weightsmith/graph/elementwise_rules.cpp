#include <algorithm>
#include <numeric>

#include "weightsmith/graph/operator_rule_table.h"

namespace weightsmith {
namespace {

using Dims = std::vector<std::int64_t>;

TensorLabels meet_all(OperatorCall& call, const std::vector<at::Tensor>& tensors) {
  TensorLabels labels = call.labels(tensors.front());
  for (std::size_t i = 1; i < tensors.size(); ++i)
    labels = call.algebra().meet(labels, call.labels(tensors[i]));
  return labels;
}

void elementwise(OperatorCall& call) { call.set_all(meet_all(call, call.all_tensors())); }

void like_first(OperatorCall& call) { call.set_all(call.labels(call.all_tensors().front())); }

Dims all_dims(std::int64_t rank) {
  Dims dims(rank);
  std::iota(dims.begin(), dims.end(), 0);
  return dims;
}

/// The dimensions a reduction names; all when it names none.
Dims reduced_dims(const OperatorCall& call, std::int64_t rank) {
  const Dims dims = call.integers("dim");
  return dims.empty() ? all_dims(rank) : OperatorCall::wrap(dims, rank);
}

void reduction(OperatorCall& call) {
  const at::Tensor& x = call.all_tensors().front();
  // max(a, b) is elementwise.
  if (call.has("other")) return elementwise(call);
  const TensorLabels labels = call.labels(x);
  const Dims dims = reduced_dims(call, x.dim());
  // A second result are the places of extreme values, which depend on the order.
  if (call.results().size() > 1 && call.results()[1].scalar_type() == at::kLong)
    call.algebra().distinguish(labels, dims, Cause::kOrder);
  const bool keeps = call.flag("keepdim", false);
  call.set_all(keeps ? call.algebra().reduce(labels, dims)
                     : call.algebra().reduce_away(labels, dims));
}

void place_of_extreme(OperatorCall& call) {
  const at::Tensor& x = call.all_tensors().front();
  const TensorLabels labels = call.labels(x);
  const Dims dims = reduced_dims(call, x.dim());
  call.algebra().distinguish(labels, dims, Cause::kOrder);
  call.set_all(call.flag("keepdim", false) ? call.algebra().reduce(labels, dims)
                                           : call.algebra().reduce_away(labels, dims));
}

/// Softmax and its like: every element depends on a symmetric function of all along `dim`.
void normalised_along(OperatorCall& call) {
  const at::Tensor& x = call.all_tensors().front();
  const TensorLabels labels = call.labels(x);
  call.algebra().reduce(labels, reduced_dims(call, x.dim()));
  call.set_all(labels);
}

/// Cumulative sums and the like: neighbours matter.
void ordered_along(OperatorCall& call) {
  const at::Tensor& x = call.all_tensors().front();
  const TensorLabels labels = call.labels(x);
  call.set_all(call.algebra().fix(labels, {OperatorCall::wrap(call.integer("dim", -1), x.dim())},
                                  Cause::kOrder));
}

/// The largest along `dim`, in order: which they are depends on all, where they stand on the order.
void extreme_along(OperatorCall& call) {
  const at::Tensor& x = call.all_tensors().front();
  const std::int64_t dim = OperatorCall::wrap(call.integer("dim", -1), x.dim());
  TensorLabels y = call.algebra().fix(call.labels(x), {dim}, Cause::kOrder);
  if (y.rank() == call.results().front().dim()) {
    y.shape = call.results().front().sizes().vec();
    if (y.rank() > 0) y.neutral[dim] = y.shape[dim] == 1;
    return call.set_all(y);
  }
  call.set_all(call.algebra().reduce_away(y, {dim}));
}

/// Frequencies take every element of the dimensions transformed at its place.
void spectrum(OperatorCall& call) {
  const at::Tensor x = call.tensor("self");
  const bool is_plane = call.name().ends_with("2");
  Dims dims = call.integers("dim");
  if (dims.empty()) dims = is_plane ? Dims{-2, -1} : call.integers("s");
  if (call.integers("dim").empty() && !is_plane) {
    // The last ones that sizes are given for, else all.
    const auto count = dims.empty() ? x.dim() : static_cast<std::int64_t>(dims.size());
    dims.clear();
    for (std::int64_t d = x.dim() - count; d < x.dim(); ++d) dims.push_back(d);
  }
  dims = OperatorCall::wrap(dims, x.dim());
  TensorLabels y = call.algebra().fix(call.labels(x), dims, Cause::kPosition);
  y.shape = call.results().front().sizes().vec();
  for (const std::int64_t d : dims) y.neutral[d] = y.shape[d] == 1;
  call.set(0, y);
}

/// (…) complex → (…, 2): parts that stand side by side.
void parts_of_complex(OperatorCall& call) {
  TensorLabels y = call.labels("self");
  y.shape.push_back(2);
  y.neutral.push_back(false);
  call.set(0, y);
}

/// (…, 2) → (…) complex
void complex_of_parts(OperatorCall& call) {
  const TensorLabels x = call.labels("self");
  const std::int64_t last = x.rank() - 1;
  call.set(0, call.algebra().take(call.algebra().fix(x, {last}, Cause::kPosition), all_dims(last)));
}

void glu(OperatorCall& call) {
  const at::Tensor x = call.tensor("self");
  const std::int64_t dim = OperatorCall::wrap(call.integer("dim", -1), x.dim());
  const auto halves = call.algebra().rearrange(
      call.labels(x), [&](const at::Tensor& t) { return at::chunk(t, 2, dim); });
  call.set(0, call.algebra().meet(halves[0], halves[1]));
}

/// One slope for all, or one a unit of the second dimension.
void prelu(OperatorCall& call) {
  const at::Tensor x = call.tensor("self");
  const at::Tensor slope = call.tensor("weight");
  const TensorLabels labels = call.labels(x);
  if (slope.numel() == 1) return call.set(0, labels);
  const std::int64_t channel = x.dim() > 1 ? 1 : 0;
  call.set(0,
           call.algebra().meet(labels, all_dims(x.dim()), call.labels(slope), {channel}, x.dim()));
}

void cosine_similarity(OperatorCall& call) {
  const TensorLabels met = meet_all(call, {call.tensor("x1"), call.tensor("x2")});
  call.set(
      0, call.algebra().reduce_away(met, {OperatorCall::wrap(call.integer("dim", 1), met.rank())}));
}

/// Rows and columns are told apart (tril, triu).
void triangle(OperatorCall& call) {
  const TensorLabels labels = call.labels(call.all_tensors().front());
  call.set(0, call.algebra().fix(labels, {labels.rank() - 2, labels.rank() - 1}, Cause::kPosition));
}

}  // namespace

void add_elementwise_rules(RuleTable& table) {
  add_rules(
      table,
      {// of one tensor
       "abs", "acos", "acosh", "alpha_dropout", "asin", "asinh", "atan", "atanh", "bitwise_not",
       "ceil", "celu", "clone", "contiguous", "cos", "cosh", "cpu", "cuda", "deg2rad", "detach",
       "digamma", "dropout", "elu", "erf", "erfc", "erfinv", "exp", "exp2", "expm1",
       "feature_alpha_dropout", "feature_dropout", "fix", "floor", "frac", "gelu", "hardshrink",
       "hardsigmoid", "hardswish", "hardtanh", "isfinite", "isinf", "isnan", "leaky_relu", "lgamma",
       "lift_fresh", "log", "log10", "log1p", "log2", "log_sigmoid", "logical_not", "logit", "mish",
       "nan_to_num", "native_dropout", "neg", "negative", "positive", "rad2deg", "reciprocal",
       "relu", "relu6", "round", "rrelu", "rsqrt", "selu", "sigmoid", "sign", "sgn", "silu", "sin",
       "sinc", "sinh", "softplus", "softshrink", "special_erf", "special_expit", "sqrt", "square",
       "tan", "tanh", "tanhshrink", "threshold", "trunc", "zero", "alias", "data", "requires_grad",
       "_to_copy", "fill", "polygamma", "real", "imag", "conj", "_conj", "conj_physical",
       "resolve_conj", "resolve_neg", "angle",
       // of several
       "add", "addcdiv", "addcmul", "atan2", "complex", "polar", "bitwise_and", "bitwise_or",
       "bitwise_xor", "clamp", "clamp_max", "clamp_min", "clip", "copy", "div", "divide", "eq",
       "floor_divide", "fmax", "fmin", "fmod", "ge", "greater", "greater_equal", "gt", "heaviside",
       "hypot", "le", "lerp", "less", "less_equal", "logaddexp", "logaddexp2", "logical_and",
       "logical_or", "logical_xor", "lt", "masked_fill", "maximum", "minimum", "mul", "multiply",
       "ne", "not_equal", "pow", "remainder", "rsub", "sub", "subtract", "true_divide", "where",
       "xlogy", "__and__", "__or__", "__xor__", "__iand__", "__ior__"},
      elementwise);
  add_rules(table, {"to", "type_as"}, like_first);
  add_rules(table,
            {"sum",
             "mean",
             "prod",
             "max",
             "min",
             "amax",
             "amin",
             "var",
             "std",
             "var_mean",
             "std_mean",
             "norm",
             "frobenius_norm",
             "linalg_vector_norm",
             "logsumexp",
             "all",
             "any",
             "nansum",
             "nanmean",
             "median",
             "nanmedian",
             "count_nonzero",
             "aminmax"},
            reduction);
  add_rules(table, {"argmax", "argmin"}, place_of_extreme);
  add_rules(table, {"topk", "kthvalue", "mode"}, extreme_along);
  add_rules(table,
            {"fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_hfft", "fft_ihfft", "fft_fft2",
             "fft_ifft2", "fft_rfft2", "fft_irfft2", "fft_fftn", "fft_ifftn", "fft_rfftn",
             "fft_irfftn", "fft_fftshift", "fft_ifftshift"},
            spectrum);
  table["view_as_real"] = parts_of_complex;
  table["view_as_complex"] = complex_of_parts;
  add_rules(table, {"softmax", "log_softmax", "_softmax", "_log_softmax", "_safe_softmax"},
            normalised_along);
  add_rules(table, {"cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "sort", "argsort"},
            ordered_along);
  add_rules(table, {"tril", "triu"}, triangle);
  table["glu"] = glu;
  table["prelu"] = prelu;
  table["cosine_similarity"] = cosine_similarity;
}

}  // namespace weightsmith
