#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <vector>

#include "weightsmith/config/enum_names.h"

namespace weightsmith {

struct ConfigNode;

/// Fixed random unit vectors, one a class: the stand-in for CLIP's text embeddings where there are
/// none.
struct RandomEmbeddings {
  std::int64_t dimensions = 512;
  std::int64_t seed = 0;
  /// Share of one direction common to all classes, in [0, 1): text embeddings of class names all
  /// point roughly the same way. 0 gives independent directions.
  double common = 0.0;
};

/// Which classes compete for a sample: all of the label space, or only those that the data holds. A
/// CLIP-style head is trained on the classes of its own task alone, and per-task accuracy is scored
/// so.
enum class Candidates { kAll, kData };
EnumNames<Candidates> enum_names(Candidates);

/// What a regression predicts of its own input, so that any images serve: the image itself
/// (reconstruction), or its edges.
enum class RegressionTarget { kImage, kEdges };
EnumNames<RegressionTarget> enum_names(RegressionTarget);

/// What a network's outputs mean and how they are scored.
struct ObjectiveConfig {
  enum class Type { kCrossEntropy, kEmbedding, kRegression };
  Type type = Type::kCrossEntropy;
  std::filesystem::path embeddings;  ///< safetensors with `embeddings` (classes, D)
  std::optional<RandomEmbeddings> random_embeddings;  ///< instead of a file
  double scale = 100.0;                               ///< factor of the cosine similarities
  double label_smoothing = 0.0;                       ///< in [0, 1)
  Candidates candidates = Candidates::kAll;
  RegressionTarget target = RegressionTarget::kImage;  ///< of `regression`

  bool is_regression() const { return type == Type::kRegression; }
};

void from_config(const ConfigNode& node, ObjectiveConfig& config);
nlohmann::json to_config(const ObjectiveConfig& config);

/// Turns outputs into class scores and a loss. With `embedding` (CLIP-style heads: Radford et al.,
/// ICML 2021; used for merging by ZipIt!, ICLR 2024, and MuDSC, CVPR 2024) the score of class c is
/// scale · cos(output, e_c): networks trained on disjoint classes share one output space and can be
/// merged and scored on all classes.
///
/// With `regression` outputs are compared with a target made of the network's own input, as it is
/// after the data set's mean and std; there are no class scores.
class Objective {
 public:
  /// `classes`: the number of classes of the whole label space. Throws Error{kConfig or kInput}
  /// when an embedding file lacks `embeddings`, or has fewer rows than there are classes.
  Objective(const ObjectiveConfig& config, std::int64_t classes);

  /// The same objective with only some classes competing; every label must be among them.
  Objective restricted_to(const std::vector<std::int64_t>& classes) const;

  /// outputs (B, D) → scores (B, classes), float32, -infinity for classes that do not compete.
  /// Throws Error{kInput} when D is not what the objective needs. Not for regressions.
  at::Tensor scores(const at::Tensor& outputs) const;

  /// What a regression should answer to inputs (B, C, H, W): the same tensor, or (B, 1, H, W) edges
  /// (image_edges). Throws Error{kInput} for edges of inputs of another number of dimensions.
  at::Tensor targets(const at::Tensor& inputs) const;

  /// outputs - targets(inputs) of a regression as (B, D), float32; differentiable. Outputs may have
  /// any shape with D elements a sample. Throws Error{kInput} when they have another number.
  at::Tensor residuals(const at::Tensor& outputs, const at::Tensor& inputs) const;

  /// The mean over the batch, a differentiable scalar: of the cross-entropy of `scores(outputs)`
  /// against labels (B) int64, or of the squared residuals, which take `inputs` and no labels.
  at::Tensor loss(const at::Tensor& outputs, const at::Tensor& labels,
                  const at::Tensor& inputs = {}) const;

  /// Throws as scores and residuals do.
  void check_outputs(const at::Tensor& outputs, const at::Tensor& inputs) const;

  bool is_regression() const { return config_.is_regression(); }

  /// The width a classifier's output must have: the embeddings' for `embedding`, the number of
  /// classes otherwise.
  std::int64_t output_width() const;
  std::int64_t classes() const { return classes_; }
  void to(at::Device device);

 private:
  ObjectiveConfig config_;
  std::int64_t classes_;
  at::Tensor embeddings_;  // (classes, D), unit rows; undefined for cross-entropy
  at::Tensor barred_;      // (classes) bool: do not compete; undefined when all do
  at::Tensor competing_;   // int64: the others, kept because finding them waits for a GPU
  at::Tensor position_;    // (classes) int64: the place of each of them in competing_
};

/// The edges of images (B, C, H, W) as (B, 1, H, W): the length of the gradient of the channels'
/// mean, from Sobel's two 3 × 3 filters with their border values repeated outwards, divided by 4,
/// so that an upright or level step from 0 to 1 has edges of 1.
at::Tensor image_edges(const at::Tensor& images);

}  // namespace weightsmith
