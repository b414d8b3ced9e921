#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "weightsmith/graph/unit_flow.h"

namespace weightsmith {

/// One run of one operator, seen from its rule. Arguments go by their names in the operator's
/// schema, so that variants (`conv2d`, `_convolution`) share a rule.
class OperatorCall {
 public:
  OperatorCall(UnitFlow& flow, std::size_t number, const std::vector<c10::IValue>& inputs,
               const std::vector<c10::IValue>& outputs);

  bool has(const char* argument) const;  ///< it exists and is not None
  at::Tensor tensor(const char* argument) const;
  std::vector<at::Tensor> tensors(const char* argument) const;
  std::int64_t integer(const char* argument) const;
  std::int64_t integer(const char* argument, std::int64_t fallback) const;
  /// Of an int or a list of ints; empty for None.
  std::vector<std::int64_t> integers(const char* argument) const;
  bool flag(const char* argument, bool fallback) const;
  const c10::IValue& value(const char* argument) const;

  TensorLabels labels(const at::Tensor& tensor) const { return flow_.labels_of(tensor); }
  TensorLabels labels(const char* argument) const { return labels(tensor(argument)); }
  /// Every tensor among the arguments, in order; inside lists too.
  const std::vector<at::Tensor>& all_tensors() const { return all_inputs_; }
  /// The results that are tensors, in order; inside lists too.
  const std::vector<at::Tensor>& results() const { return results_; }
  void set(std::size_t result, TensorLabels labels) { out_[result] = std::move(labels); }
  void set_all(const TensorLabels& labels) { std::fill(out_.begin(), out_.end(), labels); }
  std::vector<TensorLabels>& out() { return out_; }

  /// `dim` from the end when negative.
  static std::int64_t wrap(std::int64_t dim, std::int64_t rank) {
    return dim < 0 ? dim + std::max<std::int64_t>(rank, 1) : dim;
  }
  static std::vector<std::int64_t> wrap(std::vector<std::int64_t> dims, std::int64_t rank);

  /// Runs the operator again with another tensor for one argument.
  std::vector<at::Tensor> rerun(
      const char* argument, const at::Tensor& replacement,
      const std::vector<std::pair<std::string, c10::IValue>>& others = {}) const;

  /// The labels of sum over the letters that `out` lacks of a * b, where a dimension's letter is
  /// any number in [0, letters). Notes who reads what.
  TensorLabels contract(const at::Tensor& a, const std::vector<std::int64_t>& a_letters,
                        const at::Tensor& b, const std::vector<std::int64_t>& b_letters,
                        std::int64_t letters, const std::vector<std::int64_t>& out);
  TensorLabels contract(const TensorLabels& a, const at::Tensor& a_tensor,
                        const std::vector<std::int64_t>& a_letters, const TensorLabels& b,
                        const at::Tensor& b_tensor, const std::vector<std::int64_t>& b_letters,
                        std::int64_t letters, const std::vector<std::int64_t>& out);

  /// Notes that the node sums over labelled dimensions of `data` with `weight`.
  void note_consumer(const TensorLabels& data, const at::Tensor& data_tensor,
                     const at::Tensor& weight);
  void note_consumed(const TensorLabels& weight, const std::vector<std::int64_t>& dims) {
    flow_.consume(weight, dims);
  }
  at::Tensor grouped_axis(const at::Tensor& weight, std::int64_t groups) {
    return flow_.grouped_axis(weight, groups);
  }
  bool is_parameter(const at::Tensor& tensor) const { return flow_.parameter(tensor) != nullptr; }

  LabelAlgebra& algebra() { return flow_.algebra_; }
  LabelStore& store() { return flow_.store_; }
  std::size_t number() const { return number_; }
  std::string name() const;  ///< "conv2d"

 private:
  std::size_t index(const char* argument) const;

  UnitFlow& flow_;
  std::size_t number_;
  const std::vector<c10::IValue>& inputs_;
  std::vector<at::Tensor> all_inputs_;
  std::vector<at::Tensor> results_;
  std::vector<TensorLabels> out_;
};

using OperatorRule = std::function<void(OperatorCall&)>;

/// The rule of an operator by its name without namespace and trailing underscore ("conv2d", "add"),
/// or null. A rule sets the labels of every result (they start with every dimension fixed).
const OperatorRule* operator_rule(const std::string& name);

/// The names of all operators that have a rule, for documentation and tests.
std::vector<std::string> known_operators();

}  // namespace weightsmith
