#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "weightsmith/tensor/tensor_map.h"

namespace weightsmith {

/// Values of an arena that a thread should at least get in one pass over it.
inline constexpr std::int64_t kArenaGrain = 1 << 15;

/// Several sets of values ("heads") for one network's parameters, side by side in one flat tensor.
/// The network's own parameters are views into the head that is shown, so that changing heads
/// copies nothing, and averaging is one pass over memory.
class ParameterArena {
 public:
  /// One parameter's place in a head.
  struct Segment {
    std::int64_t offset;  ///< of its first value; a multiple of 16 (a cache line of floats)
    std::int64_t numel;
    std::vector<std::int64_t> shape;
  };

  /// Takes over the parameters that ask for gradients: every head starts as a copy of their values,
  /// and head 0 is shown. A tensor that stands under two names is kept once. Throws Error{kInput}
  /// naming `where` when there is none, or one that is not float32, or they lie on several devices.
  ParameterArena(const TensorMap& parameters, std::int64_t heads, const std::string& where);
  /// Gives the parameters memory of their own, with the values they show.
  ~ParameterArena();
  ParameterArena(const ParameterArena&) = delete;
  ParameterArena& operator=(const ParameterArena&) = delete;

  std::int64_t heads() const { return values_.size(0); }
  /// Values a head, padding included.
  std::int64_t width() const { return values_.size(1); }
  const std::vector<Segment>& segments() const { return segments_; }
  /// The network's parameters, one a segment.
  const std::vector<at::Tensor>& parameters() const { return parameters_; }

  /// (heads, width) float32; writing to it changes the heads.
  at::Tensor& values() { return values_; }
  at::Tensor head(std::int64_t index) { return values_[index]; }

  /// Makes the parameters views of a head. O(number of parameters).
  void show(std::int64_t head);
  /// Makes the parameters show the mean of the heads, computed into memory of its own; the heads
  /// stay as they are. O(heads · width).
  void show_mean();
  /// Makes the parameters views of `flat` (width), laid out as a head is. O(number of parameters).
  void show_values(const at::Tensor& flat);
  /// Replaces every head by the mean of the heads, (1/d)·θ₀ + (1/d)·θ₁ + … O(heads · width).
  void average();

 private:
  /// The parameters as they lie in `flat` (width).
  std::vector<at::Tensor> views_of(const at::Tensor& flat) const;
  void set_parameters(const std::vector<at::Tensor>& views);
  void mean_into(float* const* targets, std::int64_t count) const;

  std::vector<Segment> segments_;
  std::vector<at::Tensor> parameters_;
  at::Tensor values_;                           // (heads, width)
  std::vector<std::vector<at::Tensor>> views_;  // of every head: making them takes longer
  at::Tensor mean_;                             // (width); defined once it was asked for
};

}  // namespace weightsmith
