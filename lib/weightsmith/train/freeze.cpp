#include "weightsmith/train/freeze.h"

#include "weightsmith/train/parameter_patterns.h"

namespace weightsmith {

std::vector<at::Tensor> freeze_parameters(ScriptModel& model,
                                          const std::vector<std::string>& patterns) {
  std::vector<at::Tensor> frozen;
  for (const std::string& pattern : patterns) {
    for (const auto& [name, parameter] : parameters_fitting(model, pattern, "freeze")) {
      if (!parameter.requires_grad()) continue;
      parameter.set_requires_grad(false);
      frozen.push_back(parameter);
    }
  }
  return frozen;
}

}  // namespace weightsmith
