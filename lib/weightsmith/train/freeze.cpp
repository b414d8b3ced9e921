#include "weightsmith/train/freeze.h"

#include <fnmatch.h>
#include <spdlog/fmt/fmt.h>

#include "weightsmith/core/error.h"

namespace weightsmith {

std::vector<at::Tensor> freeze_parameters(ScriptModel& model,
                                          const std::vector<std::string>& patterns) {
  const TensorMap parameters = model.parameters();
  std::vector<at::Tensor> frozen;
  for (const std::string& pattern : patterns) {
    bool fits = false;
    for (const auto& [name, parameter] : parameters) {
      if (fnmatch(pattern.c_str(), name.c_str(), 0) != 0) continue;
      fits = true;
      if (!parameter.requires_grad()) continue;
      parameter.set_requires_grad(false);
      frozen.push_back(parameter);
    }
    if (fits) continue;
    std::vector<std::string> names;
    for (const auto& [name, parameter] : parameters) names.push_back(name);
    throw Error(ErrorKind::kConfig, "freeze",
                fmt::format("\"{}\" fits no parameter of {}", pattern, model.where()),
                "they are " + join_some(names));
  }
  return frozen;
}

}  // namespace weightsmith
