#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/run.h"
#include "weightsmith/data/dataset.h"
#include "weightsmith/eval/evaluation.h"
#include "weightsmith/eval/objective.h"
#include "weightsmith/merge/merge_config.h"
#include "weightsmith/merge/mudsc.h"
#include "weightsmith/merge/networks.h"
#include "weightsmith/merge/normalization.h"
#include "weightsmith/merge/statistics.h"
#include "weightsmith/model/script_model.h"

namespace weightsmith {

/// The steps of one run of mudsc-merge, in the order main calls them, and what they hand to each
/// other.
class MergeRun {
 public:
  MergeRun(const MergeConfig& config, Run& run) : config_(config), run_(run) {}

  void load_models();
  void derive_unit_groups();
  void load_data();
  /// Sends a few samples of every set through models, taps and objectives, so that what does not
  /// fit shows before anything is computed or written.
  void try_out();
  nlohmann::json plan() const;

  /// Scores the models as they came, and their ensemble.
  void score_originals();
  /// Recomputes batch-norm statistics of the originals on the data of the merged model, so that
  /// their activations are compared on equal terms.
  void reset_originals();
  void collect_activations();

  MatchResult match(const MergeVariant& variant);
  ScriptModel apply(const MatchResult& matched);
  void renormalise(ScriptModel& merged);
  void score(const MergeVariant& variant, const MatchResult& matched, ScriptModel& merged);
  void save(const MergeVariant& variant, const MatchResult& matched, const ScriptModel& merged);

  /// Shows the table of scores and returns what goes to standard output.
  nlohmann::json summary();

 private:
  struct EvaluationData {
    std::string name;
    Dataset data;
    EvaluationOptions options;
    std::optional<Objective> objective;
  };
  using Scores = std::vector<Evaluation>;  // one a set

  bool needs_activations() const;
  /// Whether batch-norm statistics are recomputed: asked for, and there are some.
  bool needs_reset() const;
  /// All pairs as soon as one variant zips; they hold what align needs.
  Similarity::Scope similarity_scope() const;
  /// A merged layer of another width would need another network.
  void check_zip_keeps_widths() const;
  const Dataset& normalization_data() const;
  Scores scores_of(const std::vector<ScriptModel*>& models);
  nlohmann::json scores_json(const Scores& scores) const;

  const MergeConfig& config_;
  Run& run_;
  std::vector<ScriptModel> models_;
  bool has_batch_norm_ = false;
  UnitGroups groups_;
  std::optional<Dataset> activation_data_;
  std::optional<Dataset> normalization_data_;
  std::vector<EvaluationData> sets_;
  std::vector<Similarity> activation_;
  std::vector<std::pair<std::string, Scores>> table_;
  nlohmann::json originals_ = nlohmann::json::array();
  nlohmann::json variants_ = nlohmann::json::array();
};

}  // namespace weightsmith
