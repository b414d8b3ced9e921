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

/// What happens to the statistics of activations after merging: nothing, batch norm measures its
/// own anew, or every unit is rescaled as well (merge/repair.h).
enum class NormalizationMode { kNone, kReset, kRepair };
EnumNames<NormalizationMode> enum_names(NormalizationMode);

/// What align brings the units of several models into line with: those of the first model, or,
/// model after model, the mean of all others.
enum class AlignReference { kFirst, kMean };
EnumNames<AlignReference> enum_names(AlignReference);

/// Whether the heads of an attention layer keep one order for queries, keys and values. Independent
/// orders are the authors'; the aligned network is then another function.
enum class AttentionHeads { kTied, kIndependent };
EnumNames<AttentionHeads> enum_names(AttentionHeads);

/// One way to merge.
struct MergeVariant {
  MergeMethod method = MergeMethod::kZip;
  MergeSpace space = MergeSpace::kDual;
  double balance = 0.5;  ///< λ: share of weight space in dual space, in [0, 1]

  /// Whether units are matched at all; the plain average needs no unit groups.
  bool matches_units() const { return method != MergeMethod::kAverage; }
  /// Whether units are compared by what they compute, which takes data.
  bool uses_activations() const { return matches_units() && space != MergeSpace::kWeight; }
  /// "average", "align-weight", "zip-dual-0.5".
  std::string label() const;
};

/// One way to merge, or several that differ in λ alone, of which the best is kept.
struct VariantConfig {
  MergeMethod method = MergeMethod::kZip;
  MergeSpace space = MergeSpace::kDual;
  std::vector<double> balance{0.5};  ///< a number, or a list to choose from

  /// As MergeVariant's; "zip-dual" where λ is chosen. Names the folder and the row in tables.
  std::string label() const;
  /// One a balance; outside dual space, where it has no effect, one.
  std::vector<MergeVariant> candidates() const;
  /// Cross-field rules; throws Error{kConfig} naming a key below `key`.
  void validate(const std::string& key) const;
};
void from_config(const ConfigNode& node, VariantConfig& config);
nlohmann::json to_config(const VariantConfig& config);

struct AlignConfig {
  AlignReference reference = AlignReference::kFirst;
};
void from_config(const ConfigNode& node, AlignConfig& config);
nlohmann::json to_config(const AlignConfig& config);

/// MuDSC, section 3.3, and ZipIt!, section 4.
struct ZipConfig {
  /// r: share of the stacked units that is merged away, in [0, 1); by default 1 - 1/N, which keeps
  /// the width.
  std::optional<double> reduce;
  double a = 0.5;        ///< factor on the similarities of a merged cluster, > 0
  double b = 1.0;        ///< budget of merges inside one model, as a share of its part; ≥ 0
  double b_block = 1.0;  ///< the same for one block (head, group of a group norm) of a model

  double reduce_for(std::int64_t models) const {
    return reduce.value_or(1.0 - 1.0 / static_cast<double>(models));
  }
};
void from_config(const ConfigNode& node, ZipConfig& config);
nlohmann::json to_config(const ZipConfig& config);

struct ActivationConfig {
  std::optional<DataConfig> data;
  std::int64_t batch_size = 128;
  double memory_gb = 2;         ///< GiB that sums of products may take, see StatisticsOptions
  std::filesystem::path cache;  ///< folder that keeps the similarities of earlier runs; empty: none
};
void from_config(const ConfigNode& node, ActivationConfig& config);
nlohmann::json to_config(const ActivationConfig& config);

/// What the sweeps in weight and dual space start from: units of groups not matched yet are taken
/// to correspond as they stand (the authors'), or they count for nothing until they are matched,
/// and matchings spread from where the order is known.
enum class SweepStart { kInOrder, kPropagate };
EnumNames<SweepStart> enum_names(SweepStart);

/// Of the sweeps over all groups in weight and dual space.
struct IterationConfig {
  SweepStart start = SweepStart::kInOrder;
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
  std::optional<bool> task;              ///< counts in the task average; default: candidates = data
  std::optional<std::string> head;  ///< partial merges: the model whose head answers; else all do
  std::optional<ObjectiveConfig> objective;  ///< default: the evaluation's
  std::optional<DataConfig> selection;       ///< held-out data for `select_on`; see selection_data

  /// The data a balance is chosen on when `select_on` names this set: `selection`, else the
  /// training split of `data`. Nothing where the format has no splits.
  std::optional<DataConfig> selection_data() const;
};
void from_config(const ConfigNode& node, EvaluationSet& config);
nlohmann::json to_config(const EvaluationSet& config);

struct EvaluationConfig {
  ObjectiveConfig objective;
  std::vector<EvaluationSet> sets;
  std::int64_t batch_size = 256;
  bool originals = true;  ///< also score the models that are merged, and their ensemble

  /// What outputs mean on a set, its `candidates` put in.
  ObjectiveConfig objective_of(const EvaluationSet& set) const;
};
void from_config(const ConfigNode& node, EvaluationConfig& config);
nlohmann::json to_config(const EvaluationConfig& config);

/// Merging up to a submodule, keeping what comes behind as a head a model (merge/partial.h).
struct PartialConfig {
  std::string until;  ///< the last submodule that is merged ("layer2")
  bool tasks = true;  ///< also save one network a task
};
void from_config(const ConfigNode& node, PartialConfig& config);
nlohmann::json to_config(const PartialConfig& config);

/// Scores between the models: along the line from one to the next, and on a plane through three.
struct LandscapeConfig {
  std::int64_t line = 25;         ///< points on each line, ends included; 0: no lines
  std::int64_t plane = 0;         ///< points a side of the plane; 0: no plane
  double margin = 0.25;           ///< of the plane around the models, as a share of their extent
  bool reset = true;              ///< recompute batch-norm statistics at every point
  bool repair = false;            ///< and repair activations (with normalization.mode repair)
  std::vector<std::string> sets;  ///< evaluation sets to score on; empty: all but regressions

  bool is_on() const { return line != 0 || plane != 0; }
};
void from_config(const ConfigNode& node, LandscapeConfig& config);
nlohmann::json to_config(const LandscapeConfig& config);

/// Everything mudsc-merge can be told. Field order = schema order = order in
/// docs/tools/mudsc-merge.md.
struct MergeConfig {
  std::vector<ModelRef> models;  ///< the first fixes the order of units
  std::vector<double> share;    ///< weights of the models in averages, up to a factor; empty: equal
  std::string groups = "auto";  ///< or the path of a group file
  /// Shapes of forward's arguments ("2x3x224x224"), to find and prove the unit groups with; by
  /// default samples of the data.
  std::vector<std::string> inputs;
  bool verify = true;                    ///< prove the unit groups before merging
  VariantConfig variant;                 ///< keys method, space, balance
  std::string select_on = "similarity";  ///< how a balance is chosen: so, or the name of a set
  std::vector<VariantConfig> compare;    ///< several variants in one run, instead
  std::filesystem::path matching;        ///< of an earlier run, used instead of matching
  SimilarityMeasure similarity = SimilarityMeasure::kCorrelation;
  AttentionHeads attention_heads = AttentionHeads::kTied;
  AlignConfig align;
  ZipConfig zip;
  std::optional<PartialConfig> partial;
  ActivationConfig activations;
  IterationConfig iterations;
  NormalizationConfig normalization;
  EvaluationConfig evaluation;
  std::optional<LandscapeConfig> landscape;
  std::filesystem::path out;
  std::string device = "auto";
  std::int64_t threads = 0;
  std::int64_t seed = 0;

  /// Rules between fields. Throws Error{kConfig}.
  void validate() const;
  /// Throws Error{kConfig} for two models of one name where models are told apart by their names:
  /// where they are scored and on a landscape's lines, and in a partial merge, whose heads are
  /// saved under them. No rule of the configuration by itself: finished runs that broke it are
  /// taken up.
  void require_names_apart() const;
  /// `compare`, or the one variant there is.
  std::vector<VariantConfig> variants() const;
  /// Every candidate of every variant.
  std::vector<MergeVariant> candidates() const;
  /// The models' weights, of sum 1.
  std::vector<double> shares() const;
  /// The evaluation set that `select_on` names; null for "similarity".
  const EvaluationSet* selection_set() const;
  /// Whether a landscape shows a set: one of those that are named, or else any but a regression.
  bool landscape_shows(const EvaluationSet& set) const;
};
void from_config(const ConfigNode& node, MergeConfig& config);
nlohmann::json to_config(const MergeConfig& config);

}  // namespace weightsmith
