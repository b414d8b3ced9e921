#include <ATen/Functions.h>

#include <algorithm>
#include <cctype>
#include <numeric>

#include "weightsmith/core/error.h"
#include "weightsmith/graph/operator_rule_table.h"

namespace weightsmith {
namespace {

using Dims = std::vector<std::int64_t>;

Dims range(std::int64_t begin, std::int64_t end) {
  Dims dims(std::max<std::int64_t>(end - begin, 0));
  std::iota(dims.begin(), dims.end(), begin);
  return dims;
}

/// Meets a vector with one dimension of `labels`; a missing one changes nothing.
TensorLabels meet_vector(OperatorCall& call, const TensorLabels& labels, const char* argument,
                         std::int64_t dim) {
  if (!call.has(argument)) return labels;
  const TensorLabels vector = call.labels(argument);
  return call.algebra().meet(labels, range(0, labels.rank()), vector,
                             vector.rank() == 0 ? Dims{} : Dims{dim}, labels.rank());
}

// --- Products ------------------------------------------------------------------------------------

/// Batched matrix product with broadcasting, as torch.matmul defines it.
TensorLabels matrix_product(OperatorCall& call, const at::Tensor& a, const at::Tensor& b) {
  const std::int64_t batch = std::max<std::int64_t>({a.dim() - 2, b.dim() - 2, 0});
  const std::int64_t row = batch, sum = batch + 1, column = batch + 2;
  const auto letters = [&](const at::Tensor& t, std::int64_t first, std::int64_t second) {
    if (t.dim() == 1) return Dims{sum};
    Dims own = range(batch - (t.dim() - 2), batch);
    own.push_back(first);
    own.push_back(second);
    return own;
  };
  Dims out = range(0, batch);
  if (a.dim() > 1) out.push_back(row);
  if (b.dim() > 1) out.push_back(column);
  return call.contract(a, letters(a, row, sum), b, letters(b, sum, column), batch + 3, out);
}

void linear(OperatorCall& call) {
  const at::Tensor x = call.tensor("input");
  const at::Tensor w = call.tensor("weight");
  const std::int64_t last = x.dim() - 1;
  Dims x_letters = range(0, x.dim());
  Dims out = range(0, last);
  if (w.dim() == 2) out.push_back(x.dim());
  TensorLabels y = call.contract(x, x_letters, w, w.dim() == 2 ? Dims{x.dim(), last} : Dims{last},
                                 x.dim() + 1, out);
  call.set(0, meet_vector(call, y, "bias", y.rank() - 1));
}

void product(OperatorCall& call) {
  const auto& tensors = call.all_tensors();
  call.set(0, matrix_product(call, tensors.at(0), tensors.at(1)));
}

/// addmm, baddbmm, addmv: self + a b.
void added_product(OperatorCall& call) {
  const auto& tensors = call.all_tensors();
  const TensorLabels y = matrix_product(call, tensors.at(1), tensors.at(2));
  call.set(0, call.algebra().meet(call.labels(tensors.at(0)), y));
}

/// x1 (…, P, M), x2 (…, R, M) → (…, P, R): distances are sums over M.
void cdist(OperatorCall& call) {
  const at::Tensor a = call.tensor("x1");
  const at::Tensor b = call.tensor("x2");
  const std::int64_t batch = std::max(a.dim(), b.dim()) - 2;
  const auto letters = [&](const at::Tensor& t, std::int64_t row) {
    Dims own = range(batch - (t.dim() - 2), batch);
    own.insert(own.end(), {row, batch + 2});
    return own;
  };
  Dims out = range(0, batch);
  out.insert(out.end(), {batch, batch + 1});
  call.set(0, call.contract(a, letters(a, batch), b, letters(b, batch + 1), batch + 3, out));
}

/// x1, x2 (…, M) → (…), or (…, 1)
void pairwise_distance(OperatorCall& call) {
  const TensorLabels met = call.algebra().meet(call.labels("x1"), call.labels("x2"));
  const Dims last{met.rank() - 1};
  call.set(0, call.flag("keepdim", false) ? call.algebra().reduce(met, last)
                                          : call.algebra().reduce_away(met, last));
}

void addbmm(OperatorCall& call) {
  const auto& tensors = call.all_tensors();
  const TensorLabels y =
      call.contract(tensors.at(1), {0, 1, 2}, tensors.at(2), {0, 2, 3}, 4, {1, 3});
  call.set(0, call.algebra().meet(call.labels(tensors.at(0)), y));
}

void outer(OperatorCall& call) {
  const auto& tensors = call.all_tensors();
  call.set(0, call.contract(tensors.at(0), {0}, tensors.at(1), {1}, 2, {0, 1}));
}

/// The letters of an einsum equation, "..." spelled out, and the output's.
void einsum(OperatorCall& call) {
  std::string equation = call.value("equation").toStringRef();
  std::erase_if(equation, [](unsigned char c) { return std::isspace(c) != 0; });
  const std::vector<at::Tensor> operands = call.tensors("tensors");
  std::map<char, std::int64_t> number;
  std::int64_t letters = 0;
  const auto letter = [&](char c) {
    const auto [it, is_new] = number.emplace(c, letters);
    if (is_new) ++letters;
    return it->second;
  };
  const std::size_t arrow = equation.find("->");
  const std::string left = equation.substr(0, arrow);
  std::int64_t dots = 0;  // dimensions behind the longest "..."
  std::vector<std::string> terms(1);
  for (const char c : left) c == ',' ? void(terms.emplace_back()) : terms.back().push_back(c);
  if (terms.size() != operands.size()) return call.set_all(fixed_labels(call.results()[0].sizes()));
  for (std::size_t i = 0; i < terms.size(); ++i)
    if (terms[i].find("...") != std::string::npos)
      dots = std::max(dots, operands[i].dim() - static_cast<std::int64_t>(terms[i].size() - 3));
  const std::int64_t first_dot = 1000;  // numbered last
  const auto spelled = [&](const std::string& term, std::int64_t rank) {
    Dims own;
    for (std::size_t i = 0; i < term.size(); ++i) {
      if (term[i] != '.') {
        own.push_back(letter(term[i]));
        continue;
      }
      const std::int64_t here = rank - static_cast<std::int64_t>(term.size() - 3);
      for (std::int64_t d = dots - here; d < dots; ++d) own.push_back(first_dot + d);
      i += 2;
    }
    return own;
  };
  std::vector<Dims> own;
  for (std::size_t i = 0; i < terms.size(); ++i)
    own.push_back(spelled(terms[i], operands[i].dim()));
  Dims out;
  if (arrow != std::string::npos) {
    const std::string right = equation.substr(arrow + 2);
    out = spelled(right, dots + static_cast<std::int64_t>(right.size()) - 3);
  } else {
    for (std::int64_t d = 0; d < dots; ++d) out.push_back(first_dot + d);
    for (const auto& [c, n] : number)  // in order of the alphabet: letters that occur once
      if (std::count(left.begin(), left.end(), c) == 1) out.push_back(n);
  }
  const auto renumber = [&](Dims& dims) {
    for (std::int64_t& d : dims)
      if (d >= first_dot) d = letters + (d - first_dot);
  };
  for (Dims& dims : own) renumber(dims);
  renumber(out);
  const std::int64_t total = letters + dots;
  // A letter twice in one operand takes its diagonal.
  std::vector<TensorLabels> labels;
  for (std::size_t i = 0; i < operands.size(); ++i) {
    labels.push_back(call.labels(operands[i]));
    Dims seen;
    for (std::size_t d = 0; d < own[i].size(); ++d) {
      if (std::find(seen.begin(), seen.end(), own[i][d]) != seen.end()) {
        call.algebra().distinguish(labels[i], range(0, labels[i].rank()), Cause::kPosition);
        return;
      }
      seen.push_back(own[i][d]);
    }
  }
  // From left to right; letters that later operands or the result need are kept.
  TensorLabels result = labels[0];
  Dims result_letters = own[0];
  at::Tensor result_tensor = operands[0];
  for (std::size_t i = 1; i < operands.size(); ++i) {
    Dims kept;
    for (std::int64_t l = 0; l < total; ++l) {
      const auto in = [&](const Dims& dims) {
        return std::find(dims.begin(), dims.end(), l) != dims.end();
      };
      bool needed = in(out);
      for (std::size_t j = i + 1; j < operands.size(); ++j) needed |= in(own[j]);
      if (needed && (in(result_letters) || in(own[i]))) kept.push_back(l);
    }
    result = call.contract(result, result_tensor, result_letters, labels[i], operands[i], own[i],
                           total, kept);
    result_letters = kept;
    result_tensor = at::Tensor();
  }
  Dims summed;
  Dims order;
  for (std::size_t d = 0; d < result_letters.size(); ++d)
    if (std::find(out.begin(), out.end(), result_letters[d]) == out.end())
      summed.push_back(static_cast<std::int64_t>(d));
  for (const std::int64_t l : out)
    order.push_back(std::find(result_letters.begin(), result_letters.end(), l) -
                    result_letters.begin());
  call.set(0, call.algebra().take(call.algebra().reduce(result, summed), order));
}

/// x1 (…, i), x2 (…, j), weight (o, i, j) → (…, o)
void bilinear(OperatorCall& call) {
  const at::Tensor a = call.tensor("input1");
  const at::Tensor b = call.tensor("input2");
  const at::Tensor w = call.tensor("weight");
  const std::int64_t n = a.dim() - 1;
  Dims a_letters = range(0, n);
  a_letters.push_back(n);
  Dims partial = range(0, n);
  partial.insert(partial.end(), {n + 2, n + 1});
  const TensorLabels half = call.contract(a, a_letters, w, {n + 2, n, n + 1}, n + 3, partial);
  Dims b_letters = range(0, n);
  b_letters.push_back(n + 1);
  Dims out = range(0, n);
  out.push_back(n + 2);
  const TensorLabels y =
      call.contract(half, at::Tensor(), partial, call.labels(b), b, b_letters, n + 3, out);
  call.note_consumed(call.labels(w), {1, 2});
  call.set(0, meet_vector(call, y, "bias", n));
}

void tensordot(OperatorCall& call) {
  const at::Tensor a = call.tensor("self");
  const at::Tensor b = call.tensor("other");
  const Dims a_sum = call.integers("dims_self");
  const Dims b_sum = call.integers("dims_other");
  Dims a_letters = range(0, a.dim());
  Dims b_letters = range(a.dim(), a.dim() + b.dim());
  Dims out = a_letters;
  for (std::size_t i = 0; i < a_sum.size(); ++i) {
    const std::int64_t x = OperatorCall::wrap(a_sum[i], a.dim());
    b_letters[OperatorCall::wrap(b_sum[i], b.dim())] = x;
    std::erase(out, x);
  }
  for (const std::int64_t l : b_letters)
    if (l >= a.dim()) out.push_back(l);
  call.set(0, call.contract(a, a_letters, b, b_letters, a.dim() + b.dim(), out));
}

/// query (…, L, E), key (…, S, E), value (…, S, V), and a mask (…, L, S).
void scaled_dot_product_attention(OperatorCall& call) {
  const at::Tensor q = call.tensor("query");
  const at::Tensor k = call.tensor("key");
  const at::Tensor v = call.tensor("value");
  const std::int64_t batch = q.dim() - 2;
  const auto letters = [&](std::int64_t rows, std::int64_t columns) {
    Dims own = range(0, batch);
    own.insert(own.end(), {batch + rows, batch + columns});
    return own;
  };
  TensorLabels scores = call.contract(q, letters(0, 2), k, letters(1, 2), batch + 3, letters(0, 1));
  if (call.has("attn_mask")) scores = call.algebra().meet(scores, call.labels("attn_mask"));
  if (call.flag("is_causal", false))
    call.algebra().distinguish(scores, {batch, batch + 1}, Cause::kPosition);
  call.algebra().reduce(scores, {batch + 1});
  const TensorLabels y = call.contract(scores, at::Tensor(), letters(0, 1), call.labels(v), v,
                                       letters(1, 2), batch + 3, letters(0, 2));
  call.set(0, y);
  if (call.results().size() > 1 && call.results()[1].sizes().vec() == scores.shape)
    call.set(1, scores);
}

// --- Convolution ---------------------------------------------------------------------------------

/// A kernel of one element with nothing around it treats every position alike.
bool is_pointwise(const OperatorCall& call, const at::Tensor& w) {
  const auto all = [](const Dims& values, std::int64_t wanted) {
    return std::all_of(values.begin(), values.end(), [&](auto v) { return v == wanted; });
  };
  if (!all(w.sizes().slice(2).vec(), 1)) return false;
  if (call.has("padding") && call.value("padding").isString())
    return all(call.integers("stride"), 1);
  return all(call.integers("stride"), 1) && all(call.integers("padding"), 0) &&
         (!call.has("output_padding") || all(call.integers("output_padding"), 0));
}

/// input (B, C, …) or (C, …); weight (O, C / G, …), or (C, O / G, …) when transposed. Each of the
/// G groups of outputs reads one group of inputs: the groups are blocks of both.
void convolution(OperatorCall& call) {
  LabelAlgebra& algebra = call.algebra();
  const at::Tensor x = call.tensor("input");
  const at::Tensor w = call.tensor("weight");
  const bool transposed =
      call.flag("transposed", false) || call.name().find("transpose") != std::string::npos;
  const std::int64_t groups = call.integer("groups", 1);
  const std::int64_t spatial = w.dim() - 2;
  const std::int64_t channel = x.dim() - spatial - 1;
  const Dims space = range(channel + 1, x.dim());
  const TensorLabels weight = call.labels(w);
  TensorLabels input = call.labels(x);
  const TensorLabels matrix =
      algebra.take(algebra.fix(weight, range(2, w.dim()), Cause::kInput), {0, 1});
  if (!is_pointwise(call, w)) input = algebra.fix(input, space, Cause::kPosition);

  if (groups == 1) {
    const std::int64_t out_channel = x.dim();
    Dims out = range(0, x.dim());
    out[channel] = out_channel;
    TensorLabels y = call.contract(
        input, x, range(0, x.dim()), matrix, w,
        transposed ? Dims{channel, out_channel} : Dims{out_channel, channel}, x.dim() + 1, out);
    y.shape = call.results()[0].sizes().vec();
    return call.set(0, meet_vector(call, y, "bias", channel));
  }
  input = algebra.fix(input, space, Cause::kPosition);
  const at::Tensor read = algebra.grouped(input, channel, groups, Cause::kInput);  // (G, C / G)
  const bool is_parameter = call.is_parameter(w);
  const auto inner_axis = [&]() -> at::Tensor {  // of the weight's second axis, group by group
    if (is_parameter) {
      algebra.distinguish(matrix, {1}, Cause::kInput);  // not the same in every group
      return call.grouped_axis(w, groups);
    }
    if (const LabelArray* array = matrix.array_at(1)) return array->labels.expand({groups, -1});
    return algebra.grouped(matrix, 1, 1, Cause::kInput).expand({groups, w.size(1)});
  };
  const at::Tensor first = algebra.grouped(matrix, 0, groups, Cause::kInput);
  const bool mixes = transposed || w.size(1) > 1;  // else each output reads one input
  const at::Tensor makes = transposed ? inner_axis() : first;
  if (mixes) {
    const at::Tensor reads = transposed ? first : inner_axis();
    algebra.store().unite(read, reads.contiguous());
    TensorLabels consumed = fixed_labels({groups, reads.size(1)});
    consumed.arrays.push_back({{0, 1}, reads.contiguous()});
    call.note_consumed(consumed, {1});
  }
  algebra.unite_blocks(read, makes);
  call.note_consumer(input, x, w);
  TensorLabels y = fixed_labels(call.results()[0].sizes());
  if (makes.numel() > 1) y.arrays.push_back({{channel}, makes.reshape({-1}).contiguous()});
  call.set(0, meet_vector(call, y, "bias", channel));
}

// --- Normalisation -------------------------------------------------------------------------------

void batch_norm(OperatorCall& call) {
  TensorLabels y = call.labels("input");
  // Statistics of the data themselves are sums over all but the channels (and the samples).
  const bool of_data = !call.has("running_mean") || call.flag("training", false) ||
                       call.flag("use_input_stats", false);
  Dims summed = range(call.name() == "instance_norm" ? 2 : 0, y.rank());
  std::erase(summed, 1);
  if (of_data) call.algebra().reduce(y, summed);
  for (const char* name : {"weight", "bias", "running_mean", "running_var"})
    y = meet_vector(call, y, name, 1);
  call.set(0, y);
}

void layer_norm(OperatorCall& call) {
  TensorLabels y = call.labels("input");
  const auto count = static_cast<std::int64_t>(call.integers("normalized_shape").size());
  call.algebra().reduce(y, range(y.rank() - count, y.rank()));
  for (const char* name : {"weight", "bias"})
    if (call.has(name)) y = call.algebra().meet(y, call.labels(name));
  call.set(0, y);
}

void group_norm(OperatorCall& call) {
  TensorLabels y = call.labels("input");
  const std::int64_t groups =
      call.has("num_groups") ? call.integer("num_groups") : call.integer("group");
  const at::Tensor rows = call.algebra().grouped(y, 1, groups, Cause::kInput);
  // The statistics of a group mix its units and, where these carry labels, its positions.
  call.algebra().distinguish(y, range(2, y.rank()), Cause::kPosition);
  call.algebra().store().blocks_by({{0, 1}, rows.contiguous()}, {0});
  for (const char* name : {"weight", "bias"}) y = meet_vector(call, y, name, 1);
  call.set(0, y);
}

/// v * g / norm of v over all dimensions but `dim`
void weight_norm(OperatorCall& call) {
  const TensorLabels v = call.labels("v");
  call.set_all(call.algebra().meet(v, call.labels("g")));
}

void norm_except_dim(OperatorCall& call) {
  const TensorLabels v = call.labels("v");
  Dims others = range(0, v.rank());
  std::erase(others, OperatorCall::wrap(call.integer("dim", 0), v.rank()));
  call.set(0, call.algebra().reduce(v, others));
}

// --- Positions -----------------------------------------------------------------------------------

/// Pooling and resizing: the last `count` dimensions are positions, the rest pass.
OperatorRule over_space(std::int64_t count) {
  return [count](OperatorCall& call) {
    // Resizing to a size or by a factor calls its argument `input`.
    const at::Tensor x = call.tensor(call.has("self") ? "self" : "input");
    const Dims space = range(x.dim() - count, x.dim());
    const auto& result = call.results().front();
    const bool to_one = std::all_of(space.begin(), space.end(),
                                    [&](std::int64_t d) { return result.size(d) == 1; });
    const bool adaptive = call.name().starts_with("adaptive");
    // Adaptive pooling to one position is symmetric in all of them.
    TensorLabels y = adaptive && to_one
                         ? call.algebra().reduce(call.labels(x), space)
                         : call.algebra().fix(call.labels(x), space, Cause::kPosition);
    for (std::size_t i = 0; i < call.results().size(); ++i) {
      y.shape = call.results()[i].sizes().vec();
      for (const std::int64_t d : space) y.neutral[d] = y.shape[d] == 1;
      call.set(i, y);
    }
  };
}

/// (B, C, …), put where `indices` says of the same channel.
void max_unpool(OperatorCall& call) {
  const TensorLabels met = call.algebra().meet(call.labels("self"), call.labels("indices"));
  const std::int64_t space = call.name().ends_with("3d") ? 3 : 2;
  TensorLabels y = call.algebra().fix(met, range(met.rank() - space, met.rank()), Cause::kPosition);
  y.shape = call.results()[0].sizes().vec();
  for (std::int64_t d = y.rank() - space; d < y.rank(); ++d) y.neutral[d] = y.shape[d] == 1;
  call.set(0, y);
}

/// input (B, C, …) sampled at positions that `grid` gives.
void grid_sampler(OperatorCall& call) {
  const TensorLabels grid = call.labels("grid");
  call.algebra().distinguish(grid, range(0, grid.rank()), Cause::kPosition);
  const TensorLabels x = call.labels("input");
  TensorLabels y = call.algebra().fix(x, range(2, x.rank()), Cause::kPosition);
  y.shape = call.results()[0].sizes().vec();
  for (std::int64_t d = 2; d < y.rank(); ++d) y.neutral[d] = y.shape[d] == 1;
  call.set(0, y);
}

/// Matrices of transformations: what each element is for depends on its place.
void affine_grid(OperatorCall& call) {
  const TensorLabels theta = call.labels("theta");
  call.algebra().distinguish(theta, range(0, theta.rank()), Cause::kPosition);
}

void embedding(OperatorCall& call) {
  const TensorLabels weight = call.algebra().fix(call.labels("weight"), {0}, Cause::kInput);
  TensorLabels y = fixed_labels(call.results()[0].sizes());
  for (const LabelArray& array : weight.arrays) y.arrays.push_back({{y.rank() - 1}, array.labels});
  call.set(0, y);
}

}  // namespace

void add_layer_rules(RuleTable& table) {
  table["linear"] = linear;
  add_rules(table, {"matmul", "mm", "bmm", "mv", "dot", "linalg_matmul"}, product);
  add_rules(table, {"addmm", "baddbmm", "addmv"}, added_product);
  table["addbmm"] = addbmm;
  add_rules(table, {"cdist", "_cdist_forward"}, cdist);
  table["pairwise_distance"] = pairwise_distance;
  add_rules(table, {"outer", "ger"}, outer);
  table["einsum"] = einsum;
  table["bilinear"] = bilinear;
  table["tensordot"] = tensordot;
  add_rules(table, {"scaled_dot_product_attention", "_scaled_dot_product_attention"},
            scaled_dot_product_attention);
  add_rules(table,
            {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
             "conv_transpose3d", "_convolution", "convolution", "_convolution_mode"},
            convolution);
  add_rules(table, {"batch_norm", "instance_norm", "_batch_norm_impl_index", "native_batch_norm"},
            batch_norm);
  add_rules(table, {"layer_norm", "native_layer_norm", "rms_norm"}, layer_norm);
  add_rules(table, {"group_norm", "native_group_norm"}, group_norm);
  table["_weight_norm"] = weight_norm;
  table["norm_except_dim"] = norm_except_dim;
  for (std::int64_t n = 1; n <= 3; ++n) {
    const std::string suffix = std::to_string(n) + "d";
    for (const char* name : {"max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool",
                             "upsample_nearest", "_upsample_nearest_exact"})
      table[name + suffix] = over_space(n);
    table["max_pool" + suffix + "_with_indices"] = over_space(n);
  }
  add_rules(table, {"max_unpool2d", "max_unpool3d"}, max_unpool);
  table["upsample_linear1d"] = over_space(1);
  table["upsample_trilinear3d"] = over_space(3);
  add_rules(table,
            {"upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa",
             "_upsample_bicubic2d_aa"},
            over_space(2));
  add_rules(table, {"grid_sampler", "grid_sampler_2d", "grid_sampler_3d"}, grid_sampler);
  table["affine_grid_generator"] = affine_grid;
  table["embedding"] = embedding;
}

}  // namespace weightsmith
