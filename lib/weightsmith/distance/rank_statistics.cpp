#include "weightsmith/distance/rank_statistics.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "weightsmith/core/error.h"
#include "weightsmith/core/rng.h"

namespace weightsmith {

std::vector<std::vector<double>> column_scores(std::vector<std::vector<double>> similarities) {
  const std::size_t n = similarities.size();
  for (std::size_t c = 0; c < n; ++c) {
    std::size_t largest = 0;
    for (std::size_t r = 0; r < n; ++r)
      if (similarities[r][c] > similarities[largest][c]) largest = r;
    double second = -std::numeric_limits<double>::infinity();
    for (std::size_t r = 0; r < n; ++r)
      if (r != largest) second = std::max(second, similarities[r][c]);
    if (n > 1) similarities[largest][c] = std::min(1.1 * second, similarities[largest][c]);
    double mean = 0, square = 0;
    for (std::size_t r = 0; r < n; ++r) mean += similarities[r][c] / static_cast<double>(n);
    for (std::size_t r = 0; r < n; ++r)
      square += (similarities[r][c] - mean) * (similarities[r][c] - mean) / static_cast<double>(n);
    const double deviation = std::sqrt(square);
    for (std::size_t r = 0; r < n; ++r)
      similarities[r][c] = deviation > 0 ? (similarities[r][c] - mean) / deviation : 0.0;
  }
  return similarities;
}

EnumNames<SampleRule> enum_names(SampleRule) {
  return {{SampleRule::kRandom, "random"},
          {SampleRule::kIndependents, "independents"},
          {SampleRule::kGap, "gap"}};
}

EnumNames<SampleStatistic> enum_names(SampleStatistic) {
  return {{SampleStatistic::kMean, "mean"},
          {SampleStatistic::kMin, "min"},
          {SampleStatistic::kMax, "max"}};
}

std::vector<double> average_ranks(const std::vector<double>& values) {
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return values[a] < values[b]; });
  std::vector<double> ranks(values.size());
  for (std::size_t begin = 0; begin < order.size();) {
    std::size_t end = begin + 1;
    while (end < order.size() && values[order[end]] == values[order[begin]]) ++end;
    for (std::size_t i = begin; i < end; ++i)
      ranks[order[i]] = static_cast<double>(begin + 1 + end) / 2;
    begin = end;
  }
  return ranks;
}

double spearman(const std::vector<double>& a, const std::vector<double>& b) {
  WS_CHECK(a.size() == b.size());
  // NaN has no rank.
  for (const auto* values : {&a, &b})
    for (const double value : *values)
      if (std::isnan(value)) return value;
  const std::vector<double> x = average_ranks(a), y = average_ranks(b);
  const double mean = (static_cast<double>(a.size()) + 1) / 2;
  double xy = 0, xx = 0, yy = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    xy += (x[i] - mean) * (y[i] - mean);
    xx += (x[i] - mean) * (x[i] - mean);
    yy += (y[i] - mean) * (y[i] - mean);
  }
  return xx > 0 && yy > 0 ? xy / std::sqrt(xx * yy) : std::numeric_limits<double>::quiet_NaN();
}

double auc(const std::vector<double>& derived, const std::vector<double>& independent) {
  WS_CHECK(!derived.empty() && !independent.empty());
  double wins = 0;
  for (const double d : derived)
    for (const double i : independent) wins += i > d ? 1.0 : i == d ? 0.5 : 0.0;
  return wins / (static_cast<double>(derived.size()) * static_cast<double>(independent.size()));
}

Interval auc_interval(double auc, std::int64_t m, std::int64_t n) {
  constexpr double kZ = 1.959963984540054;  // 97.5 % quantile of the normal distribution
  const double half = static_cast<double>(m + n) / 2 - 1;
  const auto distance = [&](double t) {
    const double variance = t * (1 - t) * (1 + half * ((1 - t) / (2 - t) + t / (1 + t))) /
                            (static_cast<double>(m) * static_cast<double>(n));
    return std::abs(t - auc) - kZ * std::sqrt(variance);
  };
  // The limit between `inside`, where the distance is small, and `outside`.
  const auto limit = [&](double inside, double outside) {
    if (distance(outside) <= 0) return outside;
    for (int round = 0; round < 100; ++round) {
      const double middle = (inside + outside) / 2;
      (distance(middle) <= 0 ? inside : outside) = middle;
    }
    return inside;
  };
  return {auc > 0 ? limit(auc, 0) : 0.0, auc < 1 ? limit(auc, 1) : 1.0};
}

double mann_whitney_p(const std::vector<double>& derived, const std::vector<double>& independent) {
  std::vector<double> all = derived;
  all.insert(all.end(), independent.begin(), independent.end());
  const std::vector<double> ranks = average_ranks(all);
  const std::size_t m = derived.size(), n = independent.size(), size = all.size();
  const double sum = std::accumulate(ranks.begin(), ranks.begin() + static_cast<long>(m), 0.0);
  if (size <= 100) {
    // Ways to choose m of the values by their sum of doubled ranks, which are whole numbers.
    const auto most = static_cast<std::size_t>(std::llround(2 * sum));
    std::vector<std::vector<double>> ways(m + 1, std::vector<double>(most + 1, 0));
    ways[0][0] = 1;
    double total = 1;
    for (std::size_t i = 0; i < size; ++i) {
      const auto rank = static_cast<std::size_t>(std::llround(2 * ranks[i]));
      for (std::size_t k = std::min(i + 1, m); k > 0; --k)
        for (std::size_t s = most; s + 1 > rank; --s) ways[k][s] += ways[k - 1][s - rank];
    }
    for (std::size_t k = 1; k <= m; ++k)
      total *= static_cast<double>(size - m + k) / static_cast<double>(k);
    return std::min(1.0, std::accumulate(ways[m].begin(), ways[m].end(), 0.0) / total);
  }
  const auto M = static_cast<double>(m), N = static_cast<double>(n), S = M + N;
  std::vector<double> sorted = all;
  std::sort(sorted.begin(), sorted.end());
  double ties = 0;
  for (std::size_t i = 0; i < size;) {
    const std::size_t begin = i;
    while (i < size && sorted[i] == sorted[begin]) ++i;
    const auto t = static_cast<double>(i - begin);
    ties += t * t * t - t;
  }
  const double variance = M * N / 12 * ((S + 1) - ties / (S * (S - 1)));
  if (variance <= 0) return 1;
  const double z = (sum - M * (S + 1) / 2 + 0.5) / std::sqrt(variance);
  return 0.5 * std::erfc(-z / std::sqrt(2.0));
}

double distance_threshold(std::vector<double> independent, double rate) {
  std::sort(independent.begin(), independent.end());
  const auto k = static_cast<std::size_t>(rate * (static_cast<double>(independent.size()) + 1));
  return k == 0 || independent.empty() ? std::numeric_limits<double>::quiet_NaN()
                                       : independent[std::min(k, independent.size()) - 1];
}

std::vector<std::int64_t> sample_order(SampleRule rule, SampleStatistic statistic,
                                       const std::vector<std::vector<double>>& near,
                                       const std::vector<std::vector<double>>& far,
                                       std::uint64_t seed) {
  const std::size_t samples = far.size();
  if (rule == SampleRule::kRandom) {
    Rng rng(seed);
    return random_permutation(static_cast<std::int64_t>(samples), rng);
  }
  const auto value = [&](const std::vector<double>& row) {
    if (statistic == SampleStatistic::kMin) return *std::min_element(row.begin(), row.end());
    if (statistic == SampleStatistic::kMax) return *std::max_element(row.begin(), row.end());
    return std::accumulate(row.begin(), row.end(), 0.0) / static_cast<double>(row.size());
  };
  std::vector<double> score;
  for (std::size_t s = 0; s < samples; ++s)
    score.push_back(value(far[s]) - (rule == SampleRule::kGap ? value(near[s]) : 0.0));
  std::vector<std::int64_t> order(samples);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return score[a] > score[b]; });
  return order;
}

}  // namespace weightsmith
