#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "common/run.h"
#include "merge/score_board.h"
#include "weightsmith/data/dataset.h"
#include "weightsmith/merge/merge_config.h"
#include "weightsmith/merge/mudsc.h"
#include "weightsmith/merge/networks.h"
#include "weightsmith/merge/partial.h"
#include "weightsmith/merge/repair.h"
#include "weightsmith/merge/statistics.h"
#include "weightsmith/merge/sweep.h"
#include "weightsmith/model/script_model.h"

namespace weightsmith {

/// The steps of one run of mudsc-merge, in the order main calls them, and what they hand to each
/// other.
class MergeRun {
 public:
  MergeRun(const MergeConfig& config, Run& run) : config_(config), run_(run), board_(config, run) {}

  void load_models();
  void load_data();
  /// Sends a few samples of every set through the models and the objectives, so that what does not
  /// fit shows, under the set's name, before anything is computed or written.
  void try_data();
  /// Finds the unit groups and proves them on the first model.
  void derive_unit_groups();
  /// The same for the taps of the unit groups.
  void try_taps();
  nlohmann::json plan() const;

  /// Scores the models as they came, and their ensemble.
  void score_originals();
  /// One pass of the originals over data, from the cache where it was made before: similarities of
  /// activations, with batch-norm statistics made anew on the data of the merged model, so that all
  /// are compared on equal terms; and what REPAIR has to restore.
  void collect_statistics();

  /// Matches units. Where there are several balances, every one, of which the best is returned.
  MatchResult match(const VariantConfig& variant);
  ScriptModel apply(const MatchResult& matched);
  void renormalise(ScriptModel& merged, const MatchResult& matched);
  /// Partial merges: the merged trunk with every model's head, and their statistics made anew.
  void attach_heads(ScriptModel& merged, const MatchResult& matched);
  void score(const VariantConfig& variant, const MatchResult& matched, ScriptModel& merged);
  void save(const VariantConfig& variant, const MatchResult& matched, const ScriptModel& merged);
  /// Scores the networks between the models, before and after matching.
  void survey(const VariantConfig& variant, const MatchResult& matched);

  /// Shows the table of scores and returns what goes to standard output.
  nlohmann::json summary();

 private:
  /// Arguments of forward: what `inputs` describes, else samples of the data there is.
  std::vector<c10::IValue> example_inputs() const;
  /// Buffers that are no constants of the architecture.
  std::set<std::string> moving_buffers() const;
  bool needs_activations() const;
  /// Integers and booleans cannot be blended. Throws Error{kInput} where models differ in them.
  void check_integer_buffers();
  void cut_into_parts();
  /// The models as they came.
  std::vector<ScriptModel*> originals();
  /// Of a partial merge the networks of its tasks, which share its tensors.
  std::vector<ScriptModel> tasks_of(const ScriptModel& merged) const;
  /// What answers for a merged network: itself, or the networks of its tasks.
  ScoredNetworks scored_networks(ScriptModel& merged, std::vector<ScriptModel>& tasks) const;
  /// Whether batch-norm statistics are recomputed: asked for, and there are some.
  bool needs_reset() const;
  /// Data types that the tensors of a merged network have when it is saved.
  DataTypes saved_types() const;
  /// What the method that needs most needs; it holds what the others do.
  Similarity::Scope statistics_scope() const;
  StatisticsOptions statistics_options() const;
  /// Whether the models may have layers of unequal widths: zip needs no equal ones.
  bool widths_may_differ() const;
  /// Finds the models' widths and refuses what they, or those of the merged network, forbid; reads
  /// the matching that is given.
  void check_widths(const std::vector<c10::IValue>& inputs);
  void reset(ScriptModel& model);
  const Dataset& normalization_data() const;

  MatchResult match_candidate(const MergeVariant& candidate);
  MatchResult sweep(const VariantConfig& variant);
  SweepPoint sweep_point(const MergeVariant& candidate);
  /// What a sweep's points depend on beside their variant.
  std::string sweep_key();
  void write_sweep(const VariantConfig& variant, const std::vector<SweepPoint>& points,
                   std::size_t best);
  std::filesystem::path folder_of(const VariantConfig& variant) const;
  std::string name_of(const VariantConfig& variant) const;
  nlohmann::json& entry_of(const VariantConfig& variant);

  const MergeConfig& config_;
  Run& run_;
  ScoreBoard board_;
  std::vector<ScriptModel> models_;  // what is merged: of a partial merge, the trunks
  std::vector<ScriptModel> whole_;   // of a partial merge, the models as they came, and what is
  std::vector<ScriptModel> heads_;   // kept of them
  std::vector<BoundaryUnits> boundary_;
  bool has_batch_norm_ = false;
  std::vector<DataTypes> types_;  // of each model's tensors, where they are not float32
  UnitGroups groups_;
  std::optional<MatchingFile> given_;  // the key `matching`
  std::optional<Dataset> activation_data_;
  std::optional<Dataset> normalization_data_;
  std::vector<PackedSimilarity> activation_;
  std::string statistics_key_;
  std::vector<AffineLayer> layers_;     // of REPAIR
  std::vector<OutputMoments> moments_;  // of the originals, one a model
  nlohmann::json originals_ = nlohmann::json::array();
  nlohmann::json variants_ = nlohmann::json::array();
};

}  // namespace weightsmith
