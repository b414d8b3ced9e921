#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "weightsmith/config/fields.h"
#include "weightsmith/data/data_config.h"
#include "weightsmith/eval/objective.h"
#include "weightsmith/model/script_model.h"

namespace weightsmith {

/// How units are matched: not at all, by permutation, or by greedy pairing (also inside one model).
enum class MergeMethod { kAverage, kAlign, kZip };
EnumNames<MergeMethod> enum_names(MergeMethod);

/// Where units are compared: by their weights, by what they compute, or both.
enum class MergeSpace { kWeight, kActivation, kDual };
EnumNames<MergeSpace> enum_names(MergeSpace);

/// The measure of similarity. `correlation` (Pearson) is the authors'.
enum class SimilarityMeasure { kCorrelation, kCosine };
EnumNames<SimilarityMeasure> enum_names(SimilarityMeasure);

/// What happens to batch-norm statistics after merging.
enum class NormalizationMode { kNone, kReset };
EnumNames<NormalizationMode> enum_names(NormalizationMode);

/// One way to merge.
struct MergeVariant {
  MergeMethod method = MergeMethod::kZip;
  MergeSpace space = MergeSpace::kDual;
  double balance = 0.5;  ///< λ: share of weight space in dual space, in [0, 1]

  /// Whether units are matched at all; the plain average needs no unit groups.
  bool matches_units() const { return method != MergeMethod::kAverage; }
  /// Whether units are compared by what they compute, which takes data.
  bool uses_activations() const { return matches_units() && space != MergeSpace::kWeight; }
  /// "average", "align-weight", "zip-dual-0.5": names the variant's folder and its row in tables.
  std::string label() const;
};
void from_config(const ConfigNode& node, MergeVariant& config);
nlohmann::json to_config(const MergeVariant& config);

/// MuDSC, section 3.3, and ZipIt!, section 4.
struct ZipConfig {
  /// r: share of the stacked units that is merged away, in [0, 1); by default 1 - 1/N, which keeps
  /// the width.
  std::optional<double> reduce;
  double a = 0.5;  ///< factor on the similarities of a merged cluster, > 0
  double b = 1.0;  ///< budget of merges inside one model, as a share of its part; ≥ 0

  double reduce_for(std::int64_t models) const {
    return reduce.value_or(1.0 - 1.0 / static_cast<double>(models));
  }
};
void from_config(const ConfigNode& node, ZipConfig& config);
nlohmann::json to_config(const ZipConfig& config);

struct ActivationConfig {
  std::optional<DataConfig> data;
  std::int64_t batch_size = 128;
};
void from_config(const ConfigNode& node, ActivationConfig& config);
nlohmann::json to_config(const ActivationConfig& config);

/// Of the sweeps over all groups in weight and dual space.
struct IterationConfig {
  std::int64_t max = 100;
  std::int64_t patience = 5;  ///< sweeps without improvement before stopping
};
void from_config(const ConfigNode& node, IterationConfig& config);
nlohmann::json to_config(const IterationConfig& config);

struct NormalizationConfig {
  NormalizationMode mode = NormalizationMode::kReset;
  std::optional<DataConfig> data;  ///< default: the data of `activations`; needed with batch norm
  std::int64_t batch_size = 128;
};
void from_config(const ConfigNode& node, NormalizationConfig& config);
nlohmann::json to_config(const NormalizationConfig& config);

struct EvaluationSet {
  std::string name;
  DataConfig data;
  std::optional<Candidates> candidates;  ///< default: the objective's; data = per-task accuracy
};
void from_config(const ConfigNode& node, EvaluationSet& config);
nlohmann::json to_config(const EvaluationSet& config);

struct EvaluationConfig {
  ObjectiveConfig objective;
  std::vector<EvaluationSet> sets;
  std::int64_t batch_size = 256;
  bool originals = true;  ///< also score the models that are merged, and their ensemble
};
void from_config(const ConfigNode& node, EvaluationConfig& config);
nlohmann::json to_config(const EvaluationConfig& config);

/// Everything mudsc-merge can be told. Field order = schema order = order in
/// docs/tools/mudsc-merge.md.
struct MergeConfig {
  std::vector<ModelRef> models;       ///< the first fixes the order of units
  std::string groups = "auto";        ///< or the path of a group file
  MergeVariant variant;               ///< keys method, space, balance
  std::vector<MergeVariant> compare;  ///< several variants in one run, instead
  SimilarityMeasure similarity = SimilarityMeasure::kCorrelation;
  ZipConfig zip;
  ActivationConfig activations;
  IterationConfig iterations;
  NormalizationConfig normalization;
  EvaluationConfig evaluation;
  std::filesystem::path out;
  std::string device = "auto";
  std::int64_t threads = 0;
  std::int64_t seed = 0;

  /// Rules between fields. Throws Error{kConfig}.
  void validate() const;
  /// `compare`, or the one variant there is.
  std::vector<MergeVariant> variants() const;
};
void from_config(const ConfigNode& node, MergeConfig& config);
nlohmann::json to_config(const MergeConfig& config);

}  // namespace weightsmith
