#include "weightsmith/match/agreement.h"

#include <spdlog/fmt/fmt.h>

#include <vector>

#include "weightsmith/core/error.h"

namespace weightsmith {

double agreement(const Similarity& similarity, const Matching& matching, std::string_view where) {
  check_similarity(similarity, where);
  const UnitStack& stack = matching.stack;
  if (similarity.stack != stack)
    throw Error(
        ErrorKind::kInput, where,
        fmt::format("a matching of {} units of {} models, similarities of {} of {}", stack.size(),
                    stack.models(), similarity.stack.size(), similarity.stack.models()),
        "both must describe the same units");
  const std::int64_t n = stack.models() > 0 ? stack.units(0) : 0;
  const bool all_pairs = similarity.scope == Similarity::Scope::kAllPairs;
  const float* values = similarity.values.data_ptr<float>();
  std::vector<std::vector<std::int64_t>> units_of(matching.slots);
  for (std::int64_t u = 0; u < stack.size(); ++u) units_of[matching.slot[u]].push_back(u);
  double total = 0;
  double joins = 0;
  for (const auto& units : units_of) {
    double sum = 0;
    std::int64_t pairs = 0;
    for (std::size_t a = 0; a < units.size(); ++a) {
      for (std::size_t b = a + 1; b < units.size(); ++b) {
        const std::int64_t u = units[a];  // the lower one: of model 0 if either is
        const std::int64_t v = units[b];
        if (all_pairs) {
          sum += static_cast<double>(values[u * stack.size() + v]);
        } else if (u < n && v >= n) {
          sum += static_cast<double>(values[((v / n - 1) * n + u) * n + v % n]);
        } else {
          continue;
        }
        ++pairs;
      }
    }
    if (pairs == 0) continue;
    const auto weight = static_cast<double>(units.size() - 1);
    total += weight * sum / static_cast<double>(pairs);
    joins += weight;
  }
  return joins > 0 ? total / joins : 0.0;
}

}  // namespace weightsmith
