#pragma once

#include <cstdint>
#include <vector>

#include "weightsmith/train/training_method.h"

namespace weightsmith {

struct SwadOptions {
  std::int64_t n_s = 3;             ///< optimum patience N_s, in validations
  std::int64_t n_e = 6;             ///< overfit patience N_e, in validations
  double r = 1.2;                   ///< tolerance rate, at least 1
  std::int64_t validate_every = 1;  ///< steps between two validations, V
};

/// SWAD: Cha, Chun, Lee, Cho, Park, Lee, Park, "SWAD: Domain Generalization by Seeking Flat
/// Minima", NeurIPS 2021, algorithm 1: the mean of the weights of *every* step between a start and
/// an end that the validation loss tells. With losses E_1, E_2, …, one every V steps, and segment i
/// the V steps that lead to E_i:
/// - the start is segment t_s = i − N_s + 1 for the first i where E_{t_s} is the least of the last
///   N_s losses; the bound is then l = (r / N_s) Σ of them;
/// - the end is segment t_e = i − N_e for the first i with all of the last N_e losses above l; else
///   the last segment;
/// - the result is the mean of all weights from the first of segment t_s to the last of t_e, and
/// the
///   weights of the latest step while no start was found.
///
/// Differences: V > 1 is the paper's "validation every few iterations" (section 4.1). The steps
/// after the end, where the algorithm breaks off, change nothing but are made, so that methods are
/// compared at equal compute; steps after the last validation belong to no segment. The segments
/// that may yet turn out to lie before the start or after the end are held apart: max(N_s, N_e) + 2
/// copies of the parameters (one more once a result was shown), one pass over memory a step.
class Swad final : public TrainingMethod {
 public:
  /// The arena has one head.
  Swad(ParameterArena& arena, const BaseOptions& options, const SwadOptions& swad);

  void show_result() override;
  bool result_is_average() const override { return started(); }
  bool wants_validation() const override;
  void observe_validation(double loss) override;

  bool started() const;  ///< t_s is known
  bool ended() const;    ///< t_e is known

 private:
  void after_step(std::int64_t) override;
  /// Puts the oldest waiting segment into the average, or drops it.
  void take_oldest(bool into_average);

  std::int64_t slots() const { return segments_.size(0); }

  SwadOptions options_;
  at::Tensor segments_;  // (max(N_s, N_e) + 1, width) means of segments: a ring
  at::Tensor average_;   // (width)
  at::Tensor losses_;    // (max(N_s, N_e)) double: E_i at i mod size
  at::Tensor bound_;     // (1) double: l
  /// int64: observed validations, first waiting segment, waiting segments, averaged segments,
  /// started, ended.
  at::Tensor counts_;
  std::int64_t* count_;  // of counts_
  at::Tensor shown_;     // (width) scratch
};

}  // namespace weightsmith
