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

/// What a network's outputs mean and how they are scored.
struct ObjectiveConfig {
  enum class Type { kCrossEntropy, kEmbedding };
  Type type = Type::kCrossEntropy;
  std::filesystem::path embeddings;  ///< safetensors with `embeddings` (classes, D)
  std::optional<RandomEmbeddings> random_embeddings;  ///< instead of a file
  double scale = 100.0;                               ///< factor of the cosine similarities
  double label_smoothing = 0.0;                       ///< in [0, 1)
  Candidates candidates = Candidates::kAll;
};

void from_config(const ConfigNode& node, ObjectiveConfig& config);
nlohmann::json to_config(const ObjectiveConfig& config);

/// Turns outputs into class scores and a loss. With `embedding` (CLIP-style heads: Radford et al.,
/// ICML 2021; used for merging by ZipIt!, ICLR 2024, and MuDSC, CVPR 2024) the score of class c is
/// scale · cos(output, e_c): networks trained on disjoint classes share one output space and can be
/// merged and scored on all classes.
class Objective {
 public:
  /// `classes`: the number of classes of the whole label space. Throws Error{kConfig or kInput}
  /// when an embedding file lacks `embeddings`, or has fewer rows than there are classes.
  Objective(const ObjectiveConfig& config, std::int64_t classes);

  /// The same objective with only some classes competing; every label must be among them.
  Objective restricted_to(const std::vector<std::int64_t>& classes) const;

  /// outputs (B, D) → scores (B, classes), float32, -infinity for classes that do not compete.
  /// Throws Error{kInput} when D is not what the objective needs.
  at::Tensor scores(const at::Tensor& outputs) const;

  /// Mean cross-entropy over the batch of `scores(outputs)` against labels (B) int64;
  /// differentiable; a scalar.
  at::Tensor loss(const at::Tensor& outputs, const at::Tensor& labels) const;

  /// The width a network's output must have: the embeddings' for `embedding`, the number of classes
  /// otherwise.
  std::int64_t output_width() const;
  std::int64_t classes() const { return classes_; }
  void to(at::Device device);

 private:
  ObjectiveConfig config_;
  std::int64_t classes_;
  at::Tensor embeddings_;  // (classes, D), unit rows; undefined for cross-entropy
  at::Tensor barred_;      // (classes) bool: do not compete; undefined when all do
};

}  // namespace weightsmith
