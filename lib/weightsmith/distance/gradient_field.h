#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "weightsmith/config/enum_names.h"
#include "weightsmith/distance/path_integral.h"
#include "weightsmith/model/script_model.h"

namespace weightsmith {

/// The scalar F whose gradients make a field. With outputs (B, K): the output of the label's class,
/// of the class that the model predicts at x, of the class that another model (the victim)
/// predicts, or the sum of all. With outputs (B, K) or dense ones (B, K, H, W), a vector counting
/// as one position: the largest value of each channel; at each position the largest channel;
/// everything. `segmentation` adds up, class by class, the positions of that class, which is
/// channel_max. Classes and positions are chosen once, at x, and kept along the path.
enum class FieldTarget {
  kLabel,
  kPrediction,
  kVictimPrediction,
  kAllClasses,
  kFeatureMapMax,
  kChannelMax,
  kSum,
  kSegmentation
};
EnumNames<FieldTarget> enum_names(FieldTarget);

/// The steps of a field of n that are kept: all, from n / 2 on, those before, or 1, 3, 5, ….
enum class StepSubset { kAll, kLastHalf, kFirstHalf, kOdd };
EnumNames<StepSubset> enum_names(StepSubset);
std::vector<std::int64_t> kept_steps(StepSubset subset, std::int64_t steps);

/// ModelGiF (Song, Zhang, Gao, Shen, Li, "ModelGiF: Gradient Fields for Model Functional Distance",
/// ICCV 2023, section 3): for an input x, a baseline x' and points z_t = x' + α_t (x − x') with
/// widths w_t, the field's step t is Σ_{s ≤ t} w_s ∂F/∂z (z_s), or its last term alone (raw), times
/// (x − x').
struct FieldOptions {
  PathRule rule = PathRule::kGaussLegendre;
  std::int64_t steps = 50;
  bool cumulative = true;
  bool multiply_by_inputs = true;
  FieldTarget target = FieldTarget::kPrediction;
  bool channel_mean = false;  ///< average (C, H, W) over C, after the multiplication
  StepSubset subset = StepSubset::kAll;
};

/// Reference inputs, in the space that all models share.
struct FieldInputs {
  at::Tensor inputs;     ///< (S, ...) float32 or float64, on the model's device
  at::Tensor baselines;  ///< alike
  at::Tensor classes;    ///< (S) int64 on the CPU: labels or the victim's predictions, where needed
};

/// A stretch of a field, and the completeness of its integrals.
struct FieldChunk {
  std::int64_t begin = 0;  ///< first sample
  at::Tensor field;        ///< (samples, kept steps, D) in the inputs' type, on the CPU
  at::Tensor integral;     ///< (samples) float64: Σ_t w_t ∂F/∂z · (x − x')
  at::Tensor difference;   ///< (samples) float64: F(x) − F(x'), what the integral should be
};

/// Computes gradient fields of one network, of any differentiable TorchScript. Its parameters take
/// no gradients afterwards.
class GradientField {
 public:
  /// `batch_points`: points of paths (of one sample or several) in one batch; 0: 25, and half as
  /// many whenever memory runs out. Fields do not depend on it beyond rounding.
  GradientField(ScriptModel& model, const FieldOptions& options, std::int64_t batch_points = 0);

  /// Throws what compute would throw for these inputs, and Error{kInput} when the network's output
  /// for a sample depends on the other samples of its batch or on chance (batch norm or dropout in
  /// train mode); looks at four samples at most.
  void check(const FieldInputs& inputs);

  /// Hands the field of samples [begin, S) to `take`, some samples at a time, in order. Memory: one
  /// batch, and the field of one chunk (some batches' points, at least one sample). Polls stop
  /// requests between batches. Throws Error naming the model, kInput: outputs of another rank than
  /// the target needs, a class out of range (naming the sample), outputs that do not depend on the
  /// inputs differentiably; kNumeric: outputs or gradients that are not finite (naming the sample),
  /// memory that does not suffice for a single point.
  void compute(const FieldInputs& inputs, std::int64_t begin,
               const std::function<void(FieldChunk)>& take);
  /// The whole field in memory.
  FieldChunk compute(const FieldInputs& inputs);

  /// The outputs (S, ...) at the inputs, batch by batch, without gradients.
  at::Tensor outputs(const at::Tensor& inputs);

  std::int64_t batch_points() const { return batch_; }
  /// Calls `action(first, count)` over [0, total) in batches, halving them when memory runs out.
  void in_batches(std::int64_t total,
                  const std::function<void(std::int64_t, std::int64_t)>& action);

 private:
  struct Mask;
  /// Throws Error{kInput} where an output has no row a sample.
  void check_rows(const at::Tensor& output, std::int64_t samples) const;
  Mask mask_at(const at::Tensor& output, const at::Tensor& classes, std::int64_t first) const;
  at::Tensor scalars(const at::Tensor& output, const Mask& mask, const at::Tensor& sample) const;
  at::Tensor gradients(const at::Tensor& points, const Mask& mask, const at::Tensor& sample);
  [[noreturn]] void refuse_outputs(std::int64_t sample) const;
  FieldChunk chunk(const FieldInputs& inputs, std::int64_t begin, std::int64_t count);
  /// Refuses classes (S) that are no outputs; `first`: what the first sample is called.
  void check_classes(const at::Tensor& classes, std::int64_t outputs, std::int64_t first) const;
  /// Whether `action`, a batch of so many points, finds memory enough; throws Error{kNumeric} where
  /// fewer cannot be tried.
  bool fits(std::int64_t points, std::int64_t least, const std::function<void()>& action) const;

  ScriptModel& model_;
  FieldOptions options_;
  PathPoints path_;
  std::vector<std::int64_t> kept_;
  std::int64_t batch_;
  bool automatic_;
};

}  // namespace weightsmith
