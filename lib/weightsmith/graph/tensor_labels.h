#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "weightsmith/graph/labels.h"

namespace weightsmith {

/// What is known of a tensor's dimensions. A dimension is *labelled* (part of one array), *neutral*
/// (nothing varies along it: size 1, or expanded) or *fixed*: its elements stand where they stand
/// (batch, tokens, pixels, inputs, classes).
struct TensorLabels {
  std::vector<std::int64_t> shape;
  /// Two arrays may share dimensions (k^T v of an attention head has units of k and units of v,
  /// both by head) when they hold the same blocks along these; none has all dimensions of another.
  std::vector<LabelArray> arrays;
  std::vector<bool> neutral;     ///< a dimension; true for size 1
  bool from_parameters = false;  ///< computed from parameters alone
  bool is_static = false;        ///< depends on neither inputs nor parameters
  std::size_t produced_by = 0;   ///< index + 1 of the event that produced it (UnitFlow), or 0
  /// Labels that stand here without a dimension, since each was taken out of its own by itself.
  std::vector<Label> alone;

  std::int64_t rank() const { return static_cast<std::int64_t>(shape.size()); }
  /// The first array that holds a dimension, or null.
  const LabelArray* array_at(std::int64_t dim) const;
  bool is_fixed(std::int64_t dim) const { return array_at(dim) == nullptr && !neutral[dim]; }
};

/// A tensor of which nothing is known: every dimension of size > 1 is fixed.
TensorLabels fixed_labels(at::IntArrayRef shape);
/// Every dimension of size > 1 gets labels of its own, unknown to any other.
TensorLabels fresh_labels(LabelStore& store, at::IntArrayRef shape);

/// How tensors' labels combine. Every operator's rule is made of these.
class LabelAlgebra {
 public:
  explicit LabelAlgebra(LabelStore& store) : store_(store) {}

  /// The node that distinctions are blamed on from now on.
  void set_node(std::size_t node) {
    node_ = node;
    store_.set_node(node);
  }

  /// Elementwise operators, with broadcasting (shapes aligned at the right): labels that meet are
  /// one; a labelled dimension that meets a fixed one is distinguished by its position; labels of
  /// fewer dimensions than they meet are blocks of those.
  TensorLabels meet(const TensorLabels& a, const TensorLabels& b);
  /// The same with dimensions given: dimension i of `a` is dimension a_dims[i] of the result.
  TensorLabels meet(const TensorLabels& a, const std::vector<std::int64_t>& a_dims,
                    const TensorLabels& b, const std::vector<std::int64_t>& b_dims,
                    std::int64_t rank);

  /// A symmetric reduction (sum, maximum, norm, softmax's denominator) along `dims`, which stay
  /// with size 1. What shares the other coordinates must move together: it becomes a block.
  TensorLabels reduce(const TensorLabels& x, const std::vector<std::int64_t>& dims);
  /// reduce, then the dimensions go.
  TensorLabels reduce_away(const TensorLabels& x, const std::vector<std::int64_t>& dims);
  /// The dimensions `dims` of x, in that order; the others must not be labelled.
  TensorLabels take(const TensorLabels& x, const std::vector<std::int64_t>& dims) const;

  /// Labels are told apart by their coordinates along `dims`; false when none is labelled.
  bool distinguish(const TensorLabels& x, const std::vector<std::int64_t>& dims, Cause cause);
  /// distinguish, then the dimensions are fixed.
  TensorLabels fix(const TensorLabels& x, const std::vector<std::int64_t>& dims, Cause cause);

  /// An operator that only moves elements about: `move` does with a tensor of x's shape what the
  /// operator did with x, padding with zeros. One result a tensor that `move` returns. An element
  /// of a labelled dimension that is taken alone is told apart from the others.
  std::vector<TensorLabels> rearrange(
      const TensorLabels& x, const std::function<std::vector<at::Tensor>(const at::Tensor&)>& move);

  TensorLabels concatenate(const std::vector<TensorLabels>& parts, std::int64_t dim);

  /// Dimension `dim` of `x` as labels (groups, size / groups): those of the dimension alone, else
  /// fresh ones that are distinguished.
  at::Tensor grouped(const TensorLabels& x, std::int64_t dim, std::int64_t groups, Cause cause);
  /// The elements of each row stand in one block, the same for both where `a` and `b` have as many
  /// rows.
  void unite_blocks(const at::Tensor& a, const at::Tensor& b);

  LabelStore& store() { return store_; }

 private:
  TensorLabels place(const TensorLabels& x, const std::vector<std::int64_t>& dims,
                     std::int64_t rank) const;
  TensorLabels meet_aligned(TensorLabels a, TensorLabels b);
  /// Elements without a label get one where what they meet is not the same for all.
  void fill_blanks(TensorLabels& x, const TensorLabels& other);
  /// One array over `dims` that stands for all of x's arrays inside them; fixed dimensions among
  /// them distinguish.
  LabelArray join(const TensorLabels& x, const std::vector<std::int64_t>& dims, Cause cause);
  /// Leaves out arrays that are parts of others, and joins those that share dimensions but do not
  /// agree along them.
  void tidy(TensorLabels& x);
  /// Whether two arrays that share dimensions hold the same blocks along these.
  bool agree(const LabelArray& a, const LabelArray& b);
  /// With every dimension in one array at most.
  TensorLabels disjoint(const TensorLabels& x);
  bool are_one(const at::Tensor& labels) const;

  LabelStore& store_;
  std::size_t node_ = 0;
};

}  // namespace weightsmith
