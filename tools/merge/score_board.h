#pragma once

#include <filesystem>
#include <functional>
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
#include "weightsmith/model/script_model.h"
#include "weightsmith/report/table.h"

namespace weightsmith {

/// A data set that networks are scored on.
struct ScoredSet {
  std::string name;
  std::string key;                  ///< of its data in the configuration
  bool task = false;                ///< counts in the task average
  std::optional<std::string> head;  ///< the network that answers for it, where there are several
  Dataset data;
  std::optional<Objective> objective;
};

/// A batch that is enough to see whether a data set fits a network.
at::Tensor first_samples(const Dataset& data, at::Device device);

/// Hands that batch to `run`. An Error{kInput} out of it is thrown anew with the data set in front:
/// `key` of the configuration, what it was read from, and the shape of its samples.
void try_samples(const std::string& key, const Dataset& data, at::Device device,
                 const std::function<void(const at::Tensor& samples)>& run);

/// One a set, in their order; without samples where none of the networks answers for the set.
using Scores = std::vector<Evaluation>;

/// Networks that are scored as one: by the mean of their class probabilities, or of their outputs.
struct ScoredNetworks {
  ScoredNetworks(std::vector<ScriptModel*> all) : models(std::move(all)) {}  // NOLINT

  std::vector<ScriptModel*> models;
  std::vector<double> shares = {};  ///< of sum 1; empty: equal
  ScriptModel* together = nullptr;  ///< one network that returns the outputs of all
};

/// The evaluation sets and what was scored on them.
class ScoreBoard {
 public:
  ScoreBoard(const MergeConfig& config, Run& run) : config_(config), run_(run) {}

  /// Reads the sets, and the held-out data that a balance is chosen on.
  void load();
  /// Runs networks on the first samples of every set, so that samples that they do not take, and
  /// outputs that do not fit the objective, show before the work begins. Throws as try_samples,
  /// and Error{kConfig} for a head that no network is called by.
  void try_out(const std::vector<ScriptModel*>& models) const;
  const std::vector<ScoredSet>& sets() const { return sets_; }
  /// The data of `select_on`, if it names a set.
  const std::optional<ScoredSet>& selection() const { return selection_; }
  /// How many classes the sets have together.
  std::int64_t classes() const { return classes_; }
  EvaluationOptions options() const;

  /// Scores networks on every set. Where a set names a head, the network of that name answers
  /// alone.
  Scores score(const ScoredNetworks& networks);
  /// The same on the data of `select_on`.
  Evaluation score_selection(const ScoredNetworks& networks);
  /// Adds a row and returns it as JSON: an object a set, and `task_average` where there are tasks.
  nlohmann::json add(const std::string& name, const Scores& scores);

  /// Writes table.md, table.csv and scores.csv and shows the table; nothing without sets.
  void write(const std::filesystem::path& folder);

 private:
  Evaluation score_set(const ScoredSet& set, const ScoredNetworks& networks);
  std::optional<Evaluation> task_average(const Scores& scores) const;
  bool has_task_average() const;
  /// Accuracies, and mean squared errors in parentheses.
  Table score_table() const;
  /// Everything there is, for people and for programs.
  std::string detail_tables() const;
  Table exact_table() const;
  /// Calls `visit(network, set, evaluation)`, task averages behind the sets.
  void each_score(const std::function<void(const std::string&, const std::string&,
                                           const Evaluation&)>& visit) const;

  const MergeConfig& config_;
  Run& run_;
  std::vector<ScoredSet> sets_;
  std::optional<ScoredSet> selection_;
  std::int64_t classes_ = 0;
  std::vector<std::pair<std::string, Scores>> rows_;
};

}  // namespace weightsmith
