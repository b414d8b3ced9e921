#include "weightsmith/graph/unit_flow.h"

#include <ATen/Functions.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <algorithm>
#include <numeric>

#include "weightsmith/core/error.h"
#include "weightsmith/graph/operator_rules.h"
#include "weightsmith/model/tensors_in.h"

namespace weightsmith {
namespace {

/// Constants larger than this are not looked through for dimensions along which they are constant.
constexpr std::int64_t kMostElements = 1 << 22;

std::string base_name(const torch::jit::Node* node) {
  std::string name = node->kind().toUnqualString();
  if (name.size() > 1 && name.ends_with('_') && !name.ends_with("__")) name.pop_back();
  return name;
}

/// Operators that take only sizes and types from their tensor arguments.
bool is_factory(const std::string& name) {
  return name.starts_with("new_") || name.ends_with("_like");
}

/// Operators of lists and attributes hand on tensors that are known already.
bool hands_on(const std::vector<at::Tensor>& outputs, const std::vector<at::Tensor>& inputs) {
  return std::all_of(outputs.begin(), outputs.end(), [&](const at::Tensor& out) {
    return std::any_of(inputs.begin(), inputs.end(),
                       [&](const at::Tensor& in) { return in.is_same(out); });
  });
}

/// Operators that make numbers of what a tensor holds. Others (size, dim) look at its shape.
bool reads_values(const torch::jit::Node* node) {
  static const std::set<std::string> readers{"Int",
                                             "Float",
                                             "Bool",
                                             "Complex",
                                             "item",
                                             "_local_scalar_dense",
                                             "IntImplicit",
                                             "FloatImplicit",
                                             "tolist",
                                             "is_nonzero",
                                             "equal",
                                             "allclose",
                                             "ComplexImplicit",
                                             "ScalarImplicit"};
  return readers.contains(node->kind().toUnqualString());
}

bool is_integer_type(const c10::TypePtr& type) {
  if (const auto list = type->cast<c10::ListType>()) return is_integer_type(list->getElementType());
  if (const auto optional = type->cast<c10::OptionalType>())
    return is_integer_type(optional->getElementType());
  return type->kind() == c10::TypeKind::IntType;
}

bool same_view(const at::Tensor& a, const at::Tensor& b) {
  return a.is_same(b) || (a.defined() && b.defined() && a.has_storage() && b.has_storage() &&
                          a.is_alias_of(b) && a.storage_offset() == b.storage_offset() &&
                          a.sizes() == b.sizes() && a.strides() == b.strides());
}

}  // namespace

bool is_trained_buffer(const std::string& name) {
  static const std::set<std::string> known{"weight",   "bias",     "running_mean", "running_var",
                                           "weight_u", "weight_v", "_u",           "_v"};
  return known.contains(name.substr(name.rfind('.') + 1));
}

UnitFlow::UnitFlow(const FlatGraph& graph, const std::set<std::string>& moving) : graph_(graph) {
  for (const auto& item : graph.module().named_parameters()) add_parameter(item.name, item.value);
  for (const auto& item : graph.module().named_buffers()) {
    if (!item.value.defined()) continue;
    if (is_trained_buffer(item.name) || moving.contains(item.name))
      add_parameter(item.name, item.value);
    else
      constants_[item.value.unsafeGetTensorImpl()] = item.name;
  }
  for (const torch::jit::Node* node : graph.nodes()) {
    const std::string name = base_name(node);
    writes_in_place_ |= name == "copy" || name == "index_put";
  }
}

void UnitFlow::add_parameter(const std::string& name, const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_floating_point()) return;
  const auto it = std::find_if(parameters_.begin(), parameters_.end(), [&](const auto& p) {
    return tensor.numel() > 0 && same_view(p.tensor, tensor);
  });
  const auto index = static_cast<std::size_t>(it - parameters_.begin());
  if (it == parameters_.end()) parameters_.push_back({{}, tensor});
  parameters_[index].names.push_back(name);
  parameter_of_[tensor.unsafeGetTensorImpl()] = index;
}

void UnitFlow::adopt(const at::Tensor& buffer) {
  const auto it = constants_.find(buffer.unsafeGetTensorImpl());
  if (it == constants_.end()) return;
  known_.erase(it->first);
  add_parameter(it->second, buffer);
  constants_.erase(it);
}

const FlowParameter* UnitFlow::parameter(const at::Tensor& tensor) const {
  const auto it = parameter_of_.find(tensor.unsafeGetTensorImpl());
  return it == parameter_of_.end() ? nullptr : &parameters_[it->second];
}

TensorLabels UnitFlow::static_labels(const at::Tensor& tensor) const {
  TensorLabels labels = fixed_labels(tensor.sizes());
  labels.is_static = true;
  if (tensor.numel() > kMostElements || tensor.is_sparse() || tensor.is_quantized()) return labels;
  const at::Tensor value = tensor.detach();
  for (std::int64_t d = 0; d < labels.rank(); ++d)
    labels.neutral[d] =
        labels.shape[d] <= 1 ||
        (value == value.narrow(d, 0, 1)).logical_or(value != value).all().item<bool>();
  return labels;
}

TensorLabels UnitFlow::labels_of(const at::Tensor& tensor) {
  const auto it = known_.find(tensor.unsafeGetTensorImpl());
  if (it != known_.end() && !it->second.tensor.expired()) return it->second.labels;
  const auto own = parameter_of_.find(tensor.unsafeGetTensorImpl());
  if (own == parameter_of_.end()) return static_labels(tensor);

  TensorLabels labels = fresh_labels(store_, tensor.sizes());
  labels.from_parameters = true;
  for (const LabelArray& array : labels.arrays) {
    ParameterAxis axis;
    axis.parameter = own->second;
    axis.axis = array.dims.front();
    axis.first = *array.labels.data_ptr<Label>();
    axis.size = array.labels.numel();
    axes_.push_back(axis);
    store_.mark(array);
  }
  // Tensors that share memory share labels.
  for (const auto& [impl, index] : parameter_of_)
    if (index == own->second)
      known_.insert_or_assign(impl, known(parameters_[index].tensor, labels));
  return labels;
}

void UnitFlow::set_labels(const at::Tensor& tensor, TensorLabels labels, std::size_t node,
                          std::size_t output) {
  WS_CHECK(labels.shape == tensor.sizes().vec(), graph_.describe(node));
  for (std::size_t d = 0; d < labels.shape.size(); ++d)
    if (labels.shape[d] == 1) labels.neutral[d] = true;
  for (const LabelArray& array : labels.arrays) store_.mark(array);
  if (!labels.arrays.empty() && !labels.from_parameters) {
    in_activation_.resize(static_cast<std::size_t>(store_.count()) + 1, false);
    for (const LabelArray& array : labels.arrays) {
      const auto* data = array.labels.data_ptr<Label>();
      for (std::int64_t i = 0; i < array.labels.numel(); ++i) in_activation_[data[i]] = true;
    }
    events_.push_back({node, output, labels.rank(), labels.arrays});
    labels.produced_by = events_.size();
  }
  remember(tensor, std::move(labels));
}

void UnitFlow::remember(const at::Tensor& tensor, TensorLabels labels) {
  known_.insert_or_assign(tensor.unsafeGetTensorImpl(), known(tensor, std::move(labels)));
  if (known_.size() > next_cleaning_) forget_dead();
}

UnitFlow::Known UnitFlow::known(const at::Tensor& tensor, TensorLabels labels) {
  return {
      c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>(tensor.getIntrusivePtr()),
      std::move(labels)};
}

void UnitFlow::start(const std::vector<c10::IValue>& inputs) {
  for (const at::Tensor& tensor : tensors_in(inputs))
    remember(tensor, fixed_labels(tensor.sizes()));
}

void UnitFlow::forget_dead() {
  std::erase_if(known_, [](const auto& entry) { return entry.second.tensor.expired(); });
  next_cleaning_ = 2 * known_.size() + 4096;
}

at::Tensor UnitFlow::grouped_axis(const at::Tensor& weight, std::int64_t groups) {
  const std::size_t index = parameter_of_.at(weight.unsafeGetTensorImpl());
  const std::int64_t size = groups * weight.size(1);
  const auto [it, is_new] = grouped_axes_.emplace(std::pair{index, groups}, 0);
  if (is_new) {
    LabelArray array{{0}, store_.fresh({size})};
    store_.mark(array);
    it->second = *array.labels.data_ptr<Label>();
    axes_.push_back({index, 1, it->second, size, groups, false});
  }
  return at::arange(it->second, it->second + size, at::kLong).reshape({groups, weight.size(1)});
}

void UnitFlow::consume(const TensorLabels& operand, const std::vector<std::int64_t>& dims) {
  for (const LabelArray& array : operand.arrays) {
    if (std::none_of(dims.begin(), dims.end(), [&](std::int64_t d) {
          return std::find(array.dims.begin(), array.dims.end(), d) != array.dims.end();
        }))
      continue;
    const auto* data = array.labels.data_ptr<Label>();
    for (std::int64_t i = 0; i < array.labels.numel(); ++i) {
      // axes_ is ordered by `first`.
      const auto after = std::upper_bound(
          axes_.begin(), axes_.end(), data[i],
          [](Label label, const ParameterAxis& axis) { return label < axis.first; });
      if (after == axes_.begin()) continue;
      ParameterAxis& axis = *std::prev(after);
      if (data[i] < axis.first + axis.size) axis.is_consumed = true;
    }
  }
}

bool UnitFlow::distinguish_all(const TensorLabels& labels, Cause cause) {
  std::vector<std::int64_t> all(labels.rank());
  std::iota(all.begin(), all.end(), 0);
  return algebra_.distinguish(labels, all, cause);
}

bool UnitFlow::is_chosen(const torch::jit::Value* value) const {
  if (chosen_.contains(value)) return true;
  const torch::jit::Node* block_start = value->node();
  if (block_start->kind() != c10::prim::Param) return false;
  const torch::jit::Node* loop = block_start->owningBlock()->owningNode();
  if (loop == nullptr || loop->kind() != c10::prim::Loop) return false;
  // A loop's counter is as chosen as the number of its rounds; what it carries, as what it starts
  // from or comes back with.
  const std::size_t place = value->offset();
  const torch::jit::Block* body = block_start->owningBlock();
  if (place == 0) return is_chosen(loop->inputs()[0]) || chosen_.contains(body->outputs()[0]);
  return is_chosen(loop->inputs()[place + 1]) || chosen_.contains(body->outputs()[place]);
}

bool UnitFlow::follow_numbers(const torch::jit::Node* node, const std::vector<c10::IValue>& inputs,
                              const std::vector<c10::IValue>& outputs) {
  const auto any_chosen = [&](const auto& values) {
    return std::any_of(values.begin(), values.end(),
                       [&](const torch::jit::Value* v) { return is_chosen(v); });
  };
  bool chosen = any_chosen(node->inputs());
  for (const torch::jit::Block* block : node->blocks()) chosen |= any_chosen(block->outputs());
  if (reads_values(node)) {
    for (const at::Tensor& tensor : tensors_in(inputs)) {
      const TensorLabels labels = labels_of(tensor);
      if (labels.is_static) continue;
      chosen = true;
      distinguish_all(labels, Cause::kOrder);
    }
  }
  if (chosen)
    for (std::size_t i = 0; i < outputs.size(); ++i)
      if (tensors_in(outputs[i]).empty()) chosen_.insert(node->outputs()[i]);
  return chosen;
}

void UnitFlow::hold_what_is_indexed(const torch::jit::Node* node,
                                    const std::vector<c10::IValue>& inputs) {
  const auto* schema = node->maybeSchema();
  if (schema == nullptr) return;
  bool is_indexed = false;
  for (std::size_t i = 0; i < node->inputs().size() && i < schema->arguments().size(); ++i)
    is_indexed |= is_integer_type(schema->arguments()[i].type()) && is_chosen(node->inputs()[i]);
  if (!is_indexed) return;
  for (const at::Tensor& tensor : tensors_in(inputs)) {
    const TensorLabels labels = labels_of(tensor);
    if (!labels.is_static) distinguish_all(labels, Cause::kOrder);
  }
}

void UnitFlow::after(std::size_t number, const std::vector<c10::IValue>& inputs,
                     const std::vector<c10::IValue>& outputs) {
  const torch::jit::Node* node = graph_.nodes()[number];
  algebra_.set_node(number);
  const bool is_chosen = follow_numbers(node, inputs, outputs);
  const std::vector<at::Tensor> results = tensors_in(outputs);
  // Lists, tuples and attributes hand on what is known; operators of other libraries compute.
  if (node->kind() == c10::prim::NumToTensor && is_chosen)
    set_labels(results.front(), fixed_labels({}), number, 0);
  if (node->kind().is_prim() || results.empty()) return;
  const std::vector<at::Tensor> given = tensors_in(inputs);
  if (is_chosen) hold_what_is_indexed(node, inputs);
  const std::string name = base_name(node);
  const bool in_place = std::string(node->kind().toUnqualString()) != name;
  if (!in_place && hands_on(results, given)) return;

  if (name.find("batch_norm") != std::string::npos || name == "instance_norm")
    for (const char* statistics : {"running_mean", "running_var"})
      if (const auto at = node->schema().argumentIndexWithName(statistics))
        if (inputs[*at].isTensor() && inputs[*at].toTensor().defined())
          adopt(inputs[*at].toTensor());
  std::vector<TensorLabels> known;
  for (const at::Tensor& tensor : given) known.push_back(labels_of(tensor));
  if (is_chosen && given.empty()) {
    for (std::size_t i = 0; i < results.size(); ++i)
      set_labels(results[i], fixed_labels(results[i].sizes()), number, i);
    return;
  }
  const bool all_static =
      !is_chosen && std::all_of(known.begin(), known.end(),
                                [](const TensorLabels& labels) { return labels.is_static; });
  if (all_static || is_factory(name)) {
    for (std::size_t i = 0; i < results.size(); ++i) {
      TensorLabels labels = static_labels(results[i]);
      const auto& neutral = labels.neutral;
      const bool blank = std::all_of(neutral.begin(), neutral.end(), [](bool n) { return n; });
      // What will be filled in part by part takes over the labels of what is put there.
      if (writes_in_place_ && blank) labels = fresh_labels(store_, results[i].sizes());
      set_labels(results[i], std::move(labels), number, i);
    }
    return;
  }
  OperatorCall call(*this, number, inputs, outputs);
  if (const OperatorRule* rule = operator_rule(name)) {
    (*rule)(call);
  } else {
    bool met = false;
    for (const TensorLabels& labels : known) met |= distinguish_all(labels, Cause::kOperator);
    if (met) ++unknown_[number];
  }
  const bool from_parameters = std::all_of(
      known.begin(), known.end(),
      [](const TensorLabels& labels) { return labels.is_static || labels.from_parameters; });
  for (std::size_t i = 0; i < results.size(); ++i) {
    call.out()[i].from_parameters = from_parameters;
    call.out()[i].is_static = false;
    set_labels(results[i], std::move(call.out()[i]), number, i);
  }
}

void UnitFlow::finish(const c10::IValue& outputs) {
  for (const at::Tensor& tensor : tensors_in(outputs)) {
    const TensorLabels labels = labels_of(tensor);
    distinguish_all(labels, Cause::kOutput);
    for (const Label label : labels.alone)
      if (label != 0)
        store_.distinguish({{0}, at::full({1}, label, at::kLong)}, {0}, {Cause::kOutput, 0});
  }
}

}  // namespace weightsmith
