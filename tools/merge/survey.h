#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "common/run.h"
#include "merge/score_board.h"
#include "weightsmith/graph/unit_groups.h"
#include "weightsmith/match/matching.h"
#include "weightsmith/merge/landscape.h"
#include "weightsmith/merge/merge_config.h"
#include "weightsmith/merge/repair.h"

namespace weightsmith {

/// Networks that the landscape of one variant asks for.
std::int64_t survey_size(const MergeConfig& config);

/// The landscape between the models of one variant (key `landscape`): scores along the lines from
/// the first model to every other, as they came and matched, and on the plane through three. Every
/// finished point is kept in `landscape/points.json`, so that a stopped survey goes on.
class Survey {
 public:
  struct Subject {
    const std::vector<ScriptModel>& models;
    const UnitGroups& groups;
    const std::vector<Matching>& matchings;
    std::string key;  ///< what the scores depend on (eval/fingerprint.h)
    /// What REPAIR restores, one a model; empty: points are not repaired.
    const std::vector<OutputMoments>& moments;
    const std::vector<AffineLayer>& layers;
    /// Called on a network before it is scored, with what its units should have where there are
    /// moments; from several threads.
    std::function<void(ScriptModel&, const OutputMoments&)> prepare;
  };

  Survey(const MergeConfig& config, Run& run, const ScoreBoard& board, const Subject& subject);

  /// Scores all points and writes tables and pictures to `folder`/landscape; returns the barriers.
  nlohmann::json run(const std::filesystem::path& folder);

 private:
  struct Point {
    std::string name;
    std::function<TensorMap()> state;
    std::function<OutputMoments()> moments;
  };

  std::string line_point(std::size_t model, bool matched, std::int64_t step) const;
  std::string plane_point(std::int64_t row, std::int64_t column) const;
  void list_line_points();
  void list_plane_points();
  void score_points(const std::filesystem::path& folder);
  Scores score(ScriptModel& network, const Point& point) const;
  OutputMoments moments_of(const std::vector<Matching>& matchings, const ModelShares& shares) const;
  nlohmann::json write_lines(const std::filesystem::path& folder) const;
  nlohmann::json write_plane(const std::filesystem::path& folder) const;

  const MergeConfig& config_;
  const LandscapeConfig& landscape_;
  Run& run_;
  const Subject& subject_;
  EvaluationOptions options_;
  std::vector<const ScoredSet*> sets_;
  std::vector<TensorMap> corners_;  // of the plane
  std::vector<std::string> corner_names_;
  std::optional<ModelPlane> plane_;
  std::vector<double> x_;
  std::vector<double> y_;
  std::vector<Point> points_;
  std::map<std::string, Scores> scored_;
};

}  // namespace weightsmith
