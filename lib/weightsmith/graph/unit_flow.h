#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "weightsmith/graph/labels.h"
#include "weightsmith/graph/tensor_labels.h"
#include "weightsmith/model/graph_runner.h"

namespace weightsmith {

class OperatorCall;

/// A parameter or buffer, under every name it has.
struct FlowParameter {
  std::vector<std::string> names;
  at::Tensor tensor;
};

/// The labels of one axis of a parameter: `first`, first + 1, ... The second axis of a grouped
/// convolution's weight has one stretch of labels for each of its `groups` (size = groups times the
/// axis), since what stands there depends on the group of the output.
struct ParameterAxis {
  std::size_t parameter = 0;
  std::int64_t axis = 0;
  Label first = 0;
  std::int64_t size = 0;
  std::int64_t groups = 1;
  bool is_consumed = false;  ///< data are summed over it: it reads units
};

/// Whether a buffer's name says that training writes to it: statistics, frozen norms, the vectors
/// of spectral norm.
bool is_trained_buffer(const std::string& name);

/// A place where labelled activations can be seen: output `output` of a node.
struct FlowEvent {
  std::size_t node = 0;
  std::size_t output = 0;
  std::int64_t rank = 0;
  std::vector<LabelArray> arrays;
};

/// A sum over labelled dimensions of activations (FlowEvent) by an operator that reads them.
struct FlowConsumer {
  std::size_t node = 0;
  std::size_t input = 0;  ///< of the node
  std::size_t event = 0;  ///< what is read: index into events()
  std::string parameter;  ///< the parameter it is multiplied with, if it is one by itself
};

/// Follows labels through one run of a network: the observer of a GraphRunner. Each operator's rule
/// is in operator_rules.
class UnitFlow : public NodeObserver {
 public:
  /// `moving`: buffers that move with the units though nothing else says that they are trained.
  explicit UnitFlow(const FlatGraph& graph, const std::set<std::string>& moving = {});

  /// To be called with the arguments of forward before it runs: nothing of theirs may move.
  void start(const std::vector<c10::IValue>& inputs);
  void after(std::size_t number, const std::vector<c10::IValue>& inputs,
             const std::vector<c10::IValue>& outputs) override;
  /// To be called with what forward returned.
  void finish(const c10::IValue& outputs);

  const LabelStore& store() const { return store_; }
  LabelStore& store() { return store_; }
  const std::vector<FlowParameter>& parameters() const { return parameters_; }
  /// In order of their labels, which is that of their first use.
  const std::vector<ParameterAxis>& axes() const { return axes_; }
  const std::vector<FlowEvent>& events() const { return events_; }
  const std::vector<FlowConsumer>& consumers() const { return consumers_; }
  /// Operators without a rule that met labelled tensors, with the number of times.
  const std::map<std::size_t, std::size_t>& unknown_nodes() const { return unknown_; }
  bool is_activation(Label label) const {
    return label < static_cast<Label>(in_activation_.size()) && in_activation_[label];
  }

 private:
  friend class OperatorCall;

  /// A tensor stays known while it lives; its address may be used again later.
  struct Known {
    c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl> tensor;
    TensorLabels labels;
  };

  static Known known(const at::Tensor& tensor, TensorLabels labels);
  TensorLabels labels_of(const at::Tensor& tensor);
  void remember(const at::Tensor& tensor, TensorLabels labels);
  /// What turns out to be a norm's statistics is no constant, whatever its name.
  void adopt(const at::Tensor& buffer);
  void add_parameter(const std::string& name, const at::Tensor& tensor);
  TensorLabels static_labels(const at::Tensor& tensor) const;
  void set_labels(const at::Tensor& tensor, TensorLabels labels, std::size_t node,
                  std::size_t output);
  /// The parameter that a tensor is, by itself.
  const FlowParameter* parameter(const at::Tensor& tensor) const;
  /// LabelAlgebra::distinguish, along every dimension.
  bool distinguish_all(const TensorLabels& labels, Cause cause);
  /// Whether a value that is no tensor was computed from what tensors hold, constants apart. Of
  /// those that the network was not run on it may be another one.
  bool is_chosen(const torch::jit::Value* value) const;
  /// Notes which outputs are chosen; true when something that this node computes with is.
  bool follow_numbers(const torch::jit::Node* node, const std::vector<c10::IValue>& inputs,
                      const std::vector<c10::IValue>& outputs);
  /// An integer that is chosen takes units out of their order: none of those it meets may move.
  void hold_what_is_indexed(const torch::jit::Node* node, const std::vector<c10::IValue>& inputs);
  at::Tensor grouped_axis(const at::Tensor& weight, std::int64_t groups);
  void consume(const TensorLabels& operand, const std::vector<std::int64_t>& dims);
  void forget_dead();

  LabelStore store_;
  LabelAlgebra algebra_{store_};
  const FlatGraph& graph_;
  std::vector<FlowParameter> parameters_;
  std::unordered_map<const c10::TensorImpl*, std::size_t> parameter_of_;
  std::unordered_map<const c10::TensorImpl*, std::string> constants_;  // buffers
  std::unordered_map<const c10::TensorImpl*, Known> known_;
  std::size_t next_cleaning_ = 4096;
  std::vector<ParameterAxis> axes_;
  std::map<std::pair<std::size_t, std::int64_t>, Label> grouped_axes_;  // (parameter, groups)
  std::vector<FlowEvent> events_;
  std::vector<FlowConsumer> consumers_;
  std::vector<bool> in_activation_;
  std::map<std::size_t, std::size_t> unknown_;
  std::set<const torch::jit::Value*> chosen_;
  bool writes_in_place_ = false;  // parts of tensors: what a constant is filled with has labels
};

}  // namespace weightsmith
