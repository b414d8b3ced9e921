#include "weightsmith/graph/operator_rules.h"

#include <torch/csrc/jit/ir/ir.h>
#include <torch/csrc/jit/runtime/operator.h>

#include <algorithm>
#include <numeric>

#include "weightsmith/core/error.h"
#include "weightsmith/graph/operator_rule_table.h"
#include "weightsmith/model/tensors_in.h"

namespace weightsmith {
namespace {

const RuleTable& rule_table() {
  static const RuleTable table = [] {
    RuleTable rules;
    add_elementwise_rules(rules);
    add_movement_rules(rules);
    add_layer_rules(rules);
    add_recurrent_rules(rules);
    return rules;
  }();
  return table;
}

}  // namespace

const OperatorRule* operator_rule(const std::string& name) {
  const auto it = rule_table().find(name);
  return it == rule_table().end() ? nullptr : &it->second;
}

std::vector<std::string> known_operators() {
  std::vector<std::string> names;
  for (const auto& [name, rule] : rule_table()) names.push_back(name);
  return names;
}

OperatorCall::OperatorCall(UnitFlow& flow, std::size_t number,
                           const std::vector<c10::IValue>& inputs,
                           const std::vector<c10::IValue>& outputs)
    : flow_(flow),
      number_(number),
      inputs_(inputs),
      all_inputs_(tensors_in(inputs)),
      results_(tensors_in(outputs)) {
  for (const at::Tensor& result : results_) out_.push_back(fixed_labels(result.sizes()));
}

std::size_t OperatorCall::index(const char* argument) const {
  const auto found = flow_.graph_.nodes()[number_]->schema().argumentIndexWithName(argument);
  return found ? static_cast<std::size_t>(*found) : inputs_.size();
}

bool OperatorCall::has(const char* argument) const {
  const std::size_t i = index(argument);
  if (i >= inputs_.size() || inputs_[i].isNone()) return false;
  return !inputs_[i].isTensor() || inputs_[i].toTensor().defined();
}

const c10::IValue& OperatorCall::value(const char* argument) const {
  const std::size_t i = index(argument);
  WS_CHECK(i < inputs_.size(), argument);
  return inputs_[i];
}

at::Tensor OperatorCall::tensor(const char* argument) const { return value(argument).toTensor(); }

std::vector<at::Tensor> OperatorCall::tensors(const char* argument) const {
  return tensors_in(value(argument));
}

std::int64_t OperatorCall::integer(const char* argument) const { return value(argument).toInt(); }

std::int64_t OperatorCall::integer(const char* argument, std::int64_t fallback) const {
  return has(argument) && value(argument).isInt() ? value(argument).toInt() : fallback;
}

std::vector<std::int64_t> OperatorCall::integers(const char* argument) const {
  if (!has(argument)) return {};
  const c10::IValue& v = value(argument);
  return v.isInt() ? std::vector<std::int64_t>{v.toInt()} : v.toIntVector();
}

bool OperatorCall::flag(const char* argument, bool fallback) const {
  return has(argument) && value(argument).isBool() ? value(argument).toBool() : fallback;
}

std::string OperatorCall::name() const {
  return flow_.graph_.nodes()[number_]->kind().toUnqualString();
}

std::vector<std::int64_t> OperatorCall::wrap(std::vector<std::int64_t> dims, std::int64_t rank) {
  for (std::int64_t& d : dims) d = wrap(d, rank);
  std::sort(dims.begin(), dims.end());
  return dims;
}

std::vector<at::Tensor> OperatorCall::rerun(
    const char* argument, const at::Tensor& replacement,
    const std::vector<std::pair<std::string, c10::IValue>>& others) const {
  torch::jit::Stack stack = inputs_;
  stack.at(index(argument)) = replacement;
  for (const auto& [name, value] : others) stack.at(index(name.c_str())) = value;
  // Labels do not lie in memory as the tensor does, so what is a view of it need not be one of
  // them.
  const bool is_view = name() == "view" || name() == "view_as" || name() == "unflatten";
  if (is_view && results_.front().numel() == replacement.numel())
    return {replacement.reshape(results_.front().sizes())};
  torch::jit::Operation operation = flow_.graph_.nodes()[number_]->getOperation();
  operation(stack);
  return tensors_in(stack);
}

TensorLabels OperatorCall::contract(const at::Tensor& a, const std::vector<std::int64_t>& a_letters,
                                    const at::Tensor& b, const std::vector<std::int64_t>& b_letters,
                                    std::int64_t letters, const std::vector<std::int64_t>& out) {
  return contract(labels(a), a, a_letters, labels(b), b, b_letters, letters, out);
}

TensorLabels OperatorCall::contract(const TensorLabels& a, const at::Tensor& a_tensor,
                                    const std::vector<std::int64_t>& a_letters,
                                    const TensorLabels& b, const at::Tensor& b_tensor,
                                    const std::vector<std::int64_t>& b_letters,
                                    std::int64_t letters, const std::vector<std::int64_t>& out) {
  std::vector<std::int64_t> summed;
  for (std::int64_t letter = 0; letter < letters; ++letter)
    if (std::find(out.begin(), out.end(), letter) == out.end()) summed.push_back(letter);
  const auto own_dims = [&](const std::vector<std::int64_t>& own) {
    std::vector<std::int64_t> dims;
    for (std::size_t d = 0; d < own.size(); ++d)
      if (std::find(summed.begin(), summed.end(), own[d]) != summed.end())
        dims.push_back(static_cast<std::int64_t>(d));
    return dims;
  };
  // Of two parameters the left one is read by what stands before it.
  if (a.from_parameters) flow_.consume(a, own_dims(a_letters));
  if (b.from_parameters && !a.from_parameters) flow_.consume(b, own_dims(b_letters));
  note_consumer(a, a_tensor, b_tensor);
  note_consumer(b, b_tensor, a_tensor);
  const TensorLabels product = algebra().meet(a, a_letters, b, b_letters, letters);
  return algebra().take(algebra().reduce(product, summed), out);
}

void OperatorCall::note_consumer(const TensorLabels& data, const at::Tensor& data_tensor,
                                 const at::Tensor& weight) {
  if (data.from_parameters || data.produced_by == 0) return;
  FlowConsumer consumer;
  consumer.node = number_;
  consumer.event = data.produced_by - 1;
  if (const FlowParameter* p = flow_.parameter(weight)) consumer.parameter = p->names.front();
  for (std::size_t i = 0; i < inputs_.size(); ++i)
    if (inputs_[i].isTensor() && inputs_[i].toTensor().is_same(data_tensor)) consumer.input = i;
  flow_.consumers_.push_back(std::move(consumer));
}

}  // namespace weightsmith
