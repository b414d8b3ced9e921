#pragma once

#include <cstdint>
#include <vector>

#include "weightsmith/config/enum_names.h"

namespace weightsmith {

/// 1-based ranks, ties getting their average.
std::vector<double> average_ranks(const std::vector<double>& values);

/// Spearman's rank correlation; NaN where one side does not vary, or where a value is NaN.
double spearman(const std::vector<double>& a, const std::vector<double>& b);

/// The probability that an independent model lies farther away than a derived one, ties counting
/// half (the area under the ROC curve of the distance). Neither may be empty.
double auc(const std::vector<double>& derived, const std::vector<double>& independent);

struct Interval {
  double low = 0;
  double high = 1;
};

/// 95 % interval of an AUC of m against n values (Newcombe, "Confidence intervals for an effect
/// size measure based on the Mann–Whitney statistic", Statistics in Medicine 25, 2006, part 2,
/// method 5): honest with few models, and at 0 and 1.
Interval auc_interval(double auc, std::int64_t m, std::int64_t n);

/// One-sided p-value of the Mann–Whitney test: the share of all ways to call as many of these
/// values derived whose derived ones lie at least as near. Exact, with ties, up to 100 values;
/// beyond, the normal approximation with correction for ties.
double mann_whitney_p(const std::vector<double>& derived, const std::vector<double>& independent);

/// The distance below which a suspect is called derived so that an independent model is so with a
/// probability of at most `rate`: the k-th smallest of n independent ones, k = floor(rate (n + 1))
/// (split conformal prediction: Vovk, Gammerman, Shafer, 2005). NaN where n is too small.
double distance_threshold(std::vector<double> independent, double rate);

/// What ModelGiF's figure of task relatedness shows of a square table of similarities: in each
/// column the largest value (a model with itself) is lowered to 1.1 times the second largest where
/// it exceeds that, and the column is standardised (population deviation; 0 where it does not
/// vary).
std::vector<std::vector<double>> column_scores(std::vector<std::vector<double>> similarities);

/// How reference samples are ranked by their distances to surrogates (derived models of one's own)
/// and independent models: farthest from the independents first (the authors'), or largest
/// difference first.
enum class SampleRule { kRandom, kIndependents, kGap };
EnumNames<SampleRule> enum_names(SampleRule);
/// What stands for the models of a side: their mean, the nearest, the farthest.
enum class SampleStatistic { kMean, kMin, kMax };
EnumNames<SampleStatistic> enum_names(SampleStatistic);

/// Sample numbers, best first; ties keep their order. `near`, `far`: a row of distances a sample.
/// Random orders are drawn from `seed`.
std::vector<std::int64_t> sample_order(SampleRule rule, SampleStatistic statistic,
                                       const std::vector<std::vector<double>>& near,
                                       const std::vector<std::vector<double>>& far,
                                       std::uint64_t seed = 0);

}  // namespace weightsmith
