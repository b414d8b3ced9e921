#include <ATen/Functions.h>

#include <algorithm>

#include "weightsmith/core/error.h"
#include "weightsmith/graph/operator_rule_table.h"

namespace weightsmith {
namespace {

/// The weights of one layer in one direction. Gates stand one after another along the first axis
/// of each, and all share the hidden units.
struct CellWeights {
  at::Tensor input;                       // (gates H, I)
  at::Tensor recurrent;                   // (gates H, H), or (gates H, P) with a projection
  at::Tensor input_bias, recurrent_bias;  // (gates H), may be undefined
  at::Tensor projection;                  // (P, H), may be undefined
};

struct CellState {
  TensorLabels hidden;  // (H) or (P)
  TensorLabels cell;    // (H)
};

std::int64_t gates_of(const std::string& name) {
  if (name.starts_with("lstm")) return 4;
  return name.starts_with("gru") ? 3 : 1;
}

/// The labels of the gates of (…, gates H) are those of the hidden units, gate after gate.
TensorLabels united_gates(LabelAlgebra& algebra, const TensorLabels& all, std::int64_t gates) {
  const auto parts =
      algebra.rearrange(all, [&](const at::Tensor& t) { return at::chunk(t, gates, -1); });
  TensorLabels united = parts.front();
  for (const TensorLabels& part : parts) united = algebra.meet(united, part);
  return united;
}

/// x (…, I): the state after some steps, whose labels are those before.
CellState run_cell(OperatorCall& call, const TensorLabels& x, const at::Tensor& x_tensor,
                   const CellWeights& w, std::int64_t gates) {
  LabelAlgebra& algebra = call.algebra();
  const std::int64_t last = x.rank() - 1;
  std::vector<std::int64_t> letters(x.rank());
  for (std::int64_t d = 0; d < x.rank(); ++d) letters[d] = d;
  // (gates H): what is the same at every step and sample.
  TensorLabels from_input = call.contract(x, x_tensor, letters, call.labels(w.input), w.input,
                                          {x.rank(), last}, x.rank() + 1, {x.rank()});
  if (w.input_bias.defined()) from_input = algebra.meet(from_input, call.labels(w.input_bias));
  CellState state;
  const TensorLabels before = fresh_labels(call.store(), {w.recurrent.size(1)});
  TensorLabels from_state = call.contract(before, at::Tensor(), {0}, call.labels(w.recurrent),
                                          w.recurrent, {1, 0}, 2, {1});
  if (w.recurrent_bias.defined())
    from_state = algebra.meet(from_state, call.labels(w.recurrent_bias));
  state.cell = united_gates(algebra, algebra.meet(from_input, from_state), gates);
  state.hidden = state.cell;
  if (w.projection.defined())
    state.hidden = call.contract(state.cell, at::Tensor(), {0}, call.labels(w.projection),
                                 w.projection, {1, 0}, 2, {1});
  state.hidden = algebra.meet(state.hidden, before);
  return state;
}

/// (n) as the last dimension of a tensor of this shape.
TensorLabels along_last(const TensorLabels& state, at::IntArrayRef shape) {
  TensorLabels result = fixed_labels(shape);
  for (const LabelArray& array : state.arrays)
    result.arrays.push_back({{result.rank() - 1}, array.labels});
  return result;
}

/// States one after another along the first dimension, each with units of its own along the last.
TensorLabels side_by_side(const std::vector<TensorLabels>& states) {
  TensorLabels result = states.front();
  result.shape[0] = static_cast<std::int64_t>(states.size());
  if (states.size() == 1 || result.arrays.empty()) return result;
  result.neutral[0] = false;
  std::vector<at::Tensor> labels;
  for (const TensorLabels& state : states) labels.push_back(state.arrays.front().labels);
  result.arrays = {{{0, result.rank() - 1}, at::stack(labels)}};
  return result;
}

void recurrent(OperatorCall& call) {
  LabelAlgebra& algebra = call.algebra();
  const std::int64_t gates = gates_of(call.name());
  if (!call.has("input")) {  // a packed sequence: sorted by length
    for (const at::Tensor& tensor : call.all_tensors()) {
      const TensorLabels labels = call.labels(tensor);
      for (std::int64_t d = 0; d < labels.rank(); ++d)
        algebra.distinguish(labels, {d}, Cause::kOperator);
    }
    return;
  }
  const std::vector<at::Tensor> weights = call.tensors("params");
  const std::vector<at::Tensor> initial = call.tensors("hx");
  const bool has_biases = call.flag("has_biases", true);
  const std::int64_t directions = call.flag("bidirectional", false) ? 2 : 1;
  const std::int64_t layers = call.integer("num_layers");
  const std::size_t each = weights.size() / static_cast<std::size_t>(layers * directions);
  const bool is_projected = each == (has_biases ? 5U : 3U);
  TensorLabels x = call.labels("input");
  at::Tensor x_tensor = call.tensor("input");
  std::vector<std::vector<TensorLabels>> last(initial.size());  // (1, 1, n) a layer and direction
  const auto select = [&](const at::Tensor& tensor, std::int64_t i) {
    return algebra.rearrange(call.labels(tensor), [&](const at::Tensor& t) {
      return std::vector<at::Tensor>{t.select(0, i)};
    })[0];
  };
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    std::vector<TensorLabels> outputs;
    for (std::int64_t direction = 0; direction < directions; ++direction) {
      const std::int64_t index = layer * directions + direction;
      std::size_t at = static_cast<std::size_t>(index) * each;
      CellWeights w;
      w.input = weights[at++];
      w.recurrent = weights[at++];
      if (has_biases) {
        w.input_bias = weights[at++];
        w.recurrent_bias = weights[at++];
      }
      if (is_projected) w.projection = weights[at];
      const CellState state = run_cell(call, x, x_tensor, w, gates);
      algebra.meet(state.hidden, select(initial[0], index));
      if (initial.size() > 1) algebra.meet(state.cell, select(initial[1], index));
      std::vector<std::int64_t> shape = x.shape;
      shape.back() = state.hidden.shape[0];
      outputs.push_back(along_last(state.hidden, shape));
      for (std::size_t s = 0; s < initial.size(); ++s) {
        std::vector<std::int64_t> one = initial[s].sizes().vec();
        one[0] = 1;
        last[s].push_back(along_last(s == 0 ? state.hidden : state.cell, one));
      }
    }
    x = algebra.concatenate(outputs, x.rank() - 1);
    x_tensor = at::Tensor();
  }
  call.set(0, x);
  for (std::size_t s = 0; s < last.size() && s + 1 < call.results().size(); ++s)
    call.set(s + 1, side_by_side(last[s]));
}

/// One step: (B, I) and the state (B, H).
void recurrent_cell(OperatorCall& call) {
  CellWeights w;
  w.input = call.tensor("w_ih");
  w.recurrent = call.tensor("w_hh");
  if (call.has("b_ih")) w.input_bias = call.tensor("b_ih");
  if (call.has("b_hh")) w.recurrent_bias = call.tensor("b_hh");
  const at::Tensor x = call.tensor("input");
  const CellState state = run_cell(call, call.labels(x), x, w, gates_of(call.name()));
  const std::vector<at::Tensor> initial = call.tensors("hx");
  for (const at::Tensor& tensor : initial) call.algebra().meet(state.cell, call.labels(tensor));
  for (std::size_t i = 0; i < call.results().size(); ++i)
    call.set(i, along_last(state.cell, call.results()[i].sizes()));
}

}  // namespace

void add_recurrent_rules(RuleTable& table) {
  add_rules(table, {"lstm", "gru", "rnn_tanh", "rnn_relu"}, recurrent);
  add_rules(table, {"lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"}, recurrent_cell);
}

}  // namespace weightsmith
