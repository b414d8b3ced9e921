#pragma once

#include <cstdint>
#include <map>

#include "weightsmith/eval/channel_moments.h"
#include "weightsmith/model/graph_runner.h"

namespace weightsmith {

/// Collects the inputs of every batch norm with running statistics and lets each batch be
/// normalised by its own, as in training.
class BatchNormObserver final : public NodeObserver {
 public:
  explicit BatchNormObserver(const FlatGraph& graph) : graph_(graph) {}

  void before(std::size_t number, std::vector<c10::IValue>& inputs) override;

  std::int64_t layers() const { return static_cast<std::int64_t>(layers_.size()); }
  /// Writes mean and unbiased variance of all inputs so far into the network's buffers. Throws
  /// naming the network and the first layer whose inputs were not finite (Error{kNumeric}) or were
  /// one observation, which has no variance (Error{kInput}); nothing is written then.
  void store() const;

 private:
  struct Layer {
    at::Tensor running_mean;  // of the network
    at::Tensor running_var;
    ChannelMoments inputs;
    std::size_t number = 0;  // of its node
  };

  const FlatGraph& graph_;
  std::map<const c10::TensorImpl*, Layer> layers_;
};

}  // namespace weightsmith
