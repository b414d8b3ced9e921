#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

namespace weightsmith {

/// One element along some axes of a tensor: a hidden unit, or a block of units (an attention head).
/// Labels that meet elementwise in an operator are found to be one and united. 0 is no label: a
/// constant, such as padding, that goes with anything.
using Label = std::int64_t;

/// The labels along some dimensions of a tensor. Several dimensions carry labels *jointly* when one
/// label belongs to a combination of coordinates (heads x units of a head after a reshape).
struct LabelArray {
  std::vector<std::int64_t> dims;  ///< ascending; each of size > 1
  at::Tensor labels;               ///< int64, contiguous, of the sizes of `dims`
};

/// Why a label was told apart from others.
enum class Cause {
  kNone,
  kOutput,    ///< it is an output of the network
  kInput,     ///< it meets an input of the network or its position: pixels, tokens, classes
  kPosition,  ///< the operator treats neighbours along the axis differently (pooling, cumulation)
  kAlone,     ///< the operator takes it out of the others by itself (select, unbind)
  kOrder,     ///< what is computed depends on the order along the axis (argmax, data-driven index)
  kOverlap,   ///< it belongs to two sets of units that cross and that must both stay together
  kOperator,  ///< no rule is known for the operator
};

/// A cause and the node (FlatGraph::nodes) where it arose; of two sets that cross also the node
/// that made the other one.
struct Distinction {
  Cause cause = Cause::kNone;
  std::size_t node = 0;
  std::size_t other = 0;
};

/// A label that stands for a set of labels, and the node that made it.
struct LabelBlock {
  Label label = 0;
  std::vector<Label> members;  ///< ascending
  std::size_t node = 0;
};

/// All labels of a network: which are one (union-find), which sets of them move as a block, and
/// what tells them apart. Each label collects marks, a hash of every place where it stands, so that
/// two labels with equal marks in equal blocks can be exchanged without changing the network.
class LabelStore {
 public:
  LabelStore();

  /// The node that blocks are made by from now on.
  void set_node(std::size_t node) { node_ = node; }

  /// New labels, numbered consecutively, as a tensor of these sizes.
  at::Tensor fresh(at::IntArrayRef sizes);
  /// The number of labels so far; label numbers are 1 ... count().
  Label count() const { return static_cast<Label>(parent_.size()) - 1; }

  Label find(Label label) const;
  void unite(Label a, Label b);
  /// Elementwise; both of one shape.
  void unite(const at::Tensor& a, const at::Tensor& b);

  /// The array over `dims` (a subset of its own) whose elements stand for all labels that share
  /// these coordinates: a *block*, unless it is one label only. Equal sets give equal labels.
  LabelArray blocks_by(const LabelArray& array, const std::vector<std::int64_t>& dims);

  /// Labels that stand at different coordinates of `dims` can no longer be exchanged.
  void distinguish(const LabelArray& array, const std::vector<std::int64_t>& dims, Distinction why);
  /// Records that the array's labels stand together in one place, the same for all.
  void mark(const LabelArray& array);

  /// Of one label by itself; those of a united label are the sums.
  std::uint64_t marks(Label label) const { return marks_[label]; }
  /// The weightiest of the label's distinctions (the last in the order of Cause).
  Distinction distinction(Label label) const { return distinctions_[label]; }
  bool has_cause(Label label, Cause cause) const {
    return (causes_[label] >> static_cast<unsigned>(cause) & 1U) != 0;
  }
  /// In order of creation; members may have been united since.
  const std::vector<LabelBlock>& blocks() const { return blocks_; }

 private:
  Label add();

  mutable std::vector<std::int32_t> parent_;
  std::vector<std::uint64_t> marks_;
  std::vector<Distinction> distinctions_;
  std::vector<std::uint8_t> causes_;  // a bit a Cause
  std::vector<LabelBlock> blocks_;
  std::map<std::vector<Label>, Label> block_of_;
  std::uint64_t events_ = 0;
  std::size_t node_ = 0;
};

}  // namespace weightsmith
