#include "weightsmith/distance/linkage.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "weightsmith/core/error.h"

namespace weightsmith {
namespace {

using Matrix = std::vector<std::vector<double>>;

Matrix euclidean_distances(const Matrix& points) {
  Matrix d(points.size(), std::vector<double>(points.size(), 0));
  for (std::size_t i = 0; i < points.size(); ++i)
    for (std::size_t j = 0; j < points.size(); ++j) {
      double sum = 0;
      for (std::size_t k = 0; k < points[i].size(); ++k)
        sum += (points[i][k] - points[j][k]) * (points[i][k] - points[j][k]);
      d[i][j] = std::sqrt(sum);
    }
  return d;
}

std::int64_t leaf_count(const std::vector<ClusterMerge>& merges) {
  return static_cast<std::int64_t>(merges.size()) + 1;
}

void collect_leaves(const std::vector<ClusterMerge>& merges, std::int64_t root,
                    std::vector<std::int64_t>& leaves) {
  std::vector<std::int64_t> open{root};
  while (!open.empty()) {
    const std::int64_t node = open.back();
    open.pop_back();
    if (node < leaf_count(merges)) {
      leaves.push_back(node);
      continue;
    }
    const ClusterMerge& merge = merges[node - leaf_count(merges)];
    open.push_back(merge.right);
    open.push_back(merge.left);
  }
}

}  // namespace

std::vector<ClusterMerge> ward_linkage(const Matrix& points) {
  const auto n = static_cast<std::int64_t>(points.size());
  Matrix d = euclidean_distances(points);
  std::vector<std::int64_t> id(n), size(n, 1);
  for (std::int64_t i = 0; i < n; ++i) id[i] = i;
  std::vector<ClusterMerge> merges;
  for (std::int64_t step = 0; step + 1 < n; ++step) {
    std::int64_t a = -1, b = -1;
    double least = std::numeric_limits<double>::infinity();
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t j = i + 1; j < n; ++j)
        if (size[i] > 0 && size[j] > 0 && (a < 0 || d[i][j] < least)) {
          least = d[i][j];
          a = i;
          b = j;
        }
    for (std::int64_t k = 0; k < n; ++k) {
      if (size[k] == 0 || k == a || k == b) continue;
      const auto sa = static_cast<double>(size[a]), sb = static_cast<double>(size[b]),
                 sk = static_cast<double>(size[k]);
      d[a][k] = d[k][a] =
          std::sqrt(std::max(0.0, ((sa + sk) * d[a][k] * d[a][k] + (sb + sk) * d[b][k] * d[b][k] -
                                   sk * least * least) /
                                      (sa + sb + sk)));
    }
    merges.push_back({std::min(id[a], id[b]), std::max(id[a], id[b]), least, size[a] + size[b]});
    size[a] += size[b];
    size[b] = 0;
    id[a] = n + step;
  }
  return merges;
}

std::vector<ClusterMerge> optimally_ordered(std::vector<ClusterMerge> merges,
                                            const Matrix& points) {
  const std::int64_t n = leaf_count(merges);
  WS_CHECK(static_cast<std::int64_t>(points.size()) == n);
  const Matrix d = euclidean_distances(points);
  // best[u][w]: the least cost of the smallest cluster that holds both, with u leftmost and w
  // rightmost; inner[u][w]: the leaves that meet in its middle.
  Matrix best(n, std::vector<double>(n, 0));
  std::vector<std::vector<std::pair<std::int64_t, std::int64_t>>> inner(
      n, std::vector<std::pair<std::int64_t, std::int64_t>>(n));
  std::vector<std::vector<std::int64_t>> leaves(2 * n - 1);
  for (std::int64_t v = 0; v < 2 * n - 1; ++v) collect_leaves(merges, v, leaves[v]);
  // The leaves that may stand at the other end of `node` when `end` stands at one.
  const auto opposite = [&](std::int64_t node, std::int64_t end) {
    if (node < n) return std::vector<std::int64_t>{end};
    const ClusterMerge& m = merges[node - n];
    const auto& left = leaves[m.left];
    return leaves[std::find(left.begin(), left.end(), end) != left.end() ? m.right : m.left];
  };
  for (const ClusterMerge& merge : merges) {
    for (const std::int64_t u : leaves[merge.left])
      for (const std::int64_t w : leaves[merge.right]) {
        double least = std::numeric_limits<double>::infinity();
        for (const std::int64_t m : opposite(merge.left, u))
          for (const std::int64_t k : opposite(merge.right, w)) {
            const double cost = best[u][m] + d[m][k] + best[k][w];
            if (cost < least) {
              least = cost;
              inner[u][w] = {m, k};
              inner[w][u] = {k, m};
            }
          }
        best[u][w] = best[w][u] = least;
      }
  }
  if (merges.empty()) return merges;
  // The ends of the whole, then of every cluster, from the top.
  std::vector<std::pair<std::int64_t, std::int64_t>> ends(2 * n - 1);
  double least = std::numeric_limits<double>::infinity();
  for (const std::int64_t u : leaves[merges.back().left])
    for (const std::int64_t w : leaves[merges.back().right])
      if (best[u][w] < least) {
        least = best[u][w];
        ends[2 * n - 2] = {u, w};
      }
  for (std::int64_t v = 2 * n - 2; v >= n; --v) {
    ClusterMerge& merge = merges[v - n];
    const auto [u, w] = ends[v];
    const auto& left = leaves[merge.left];
    if (std::find(left.begin(), left.end(), u) == left.end()) std::swap(merge.left, merge.right);
    const auto [m, k] = inner[u][w];
    ends[merge.left] = {u, m};
    ends[merge.right] = {k, w};
  }
  return merges;
}

std::vector<std::int64_t> leaves_of(const std::vector<ClusterMerge>& merges) {
  std::vector<std::int64_t> leaves;
  collect_leaves(merges, 2 * leaf_count(merges) - 2, leaves);
  return leaves;
}

std::string newick(const std::vector<ClusterMerge>& merges, const std::vector<std::string>& names) {
  const std::int64_t n = leaf_count(merges);
  WS_CHECK(static_cast<std::int64_t>(names.size()) == n);
  std::vector<std::string> text(2 * n - 1);
  std::vector<double> height(2 * n - 1, 0);
  for (std::int64_t v = 0; v < n; ++v) {
    text[v] = "'";
    for (const char c : names[v]) text[v] += c == '\'' ? "''" : std::string(1, c);
    text[v] += "'";
  }
  for (std::int64_t v = n; v < 2 * n - 1; ++v) {
    const ClusterMerge& m = merges[v - n];
    height[v] = m.height;
    text[v] = fmt::format("({}:{},{}:{})", text[m.left], m.height - height[m.left], text[m.right],
                          m.height - height[m.right]);
    text[m.left].clear();
    text[m.right].clear();
  }
  return text[2 * n - 2] + ";\n";
}

}  // namespace weightsmith
