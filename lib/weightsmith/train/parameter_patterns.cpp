#include "weightsmith/train/parameter_patterns.h"

#include <fnmatch.h>
#include <spdlog/fmt/fmt.h>

#include <vector>

#include "weightsmith/core/error.h"

namespace weightsmith {

TensorMap parameters_fitting(const ScriptModel& model, const std::string& pattern,
                             const std::string& key) {
  TensorMap fitting;
  std::vector<std::string> names;
  for (const auto& [name, parameter] : model.parameters()) {
    names.push_back(name);
    if (fnmatch(pattern.c_str(), name.c_str(), 0) == 0) fitting.emplace(name, parameter);
  }
  if (fitting.empty())
    throw Error(ErrorKind::kConfig, key,
                fmt::format("\"{}\" fits no parameter of {}", pattern, model.where()),
                "they are " + join_some(names));
  return fitting;
}

}  // namespace weightsmith
