#include "weightsmith/train/parameter_groups.h"

#include <spdlog/fmt/fmt.h>

#include <unordered_map>

#include "weightsmith/train/parameter_patterns.h"

namespace weightsmith {

std::vector<ParameterSettings> parameter_settings(const std::vector<ParameterGroup>& groups,
                                                  const ScriptModel& model,
                                                  const ParameterArena& arena) {
  if (groups.empty()) return {};
  // By the tensor, which may have several names.
  std::unordered_map<const void*, ParameterSettings> settings;
  for (std::size_t g = 0; g < groups.size(); ++g) {
    const std::string key = fmt::format("optimizer.groups[{}].parameters", g);
    for (const std::string& pattern : groups[g].parameters)
      for (const auto& [name, parameter] : parameters_fitting(model, pattern, key))
        settings.try_emplace(parameter.unsafeGetTensorImpl(),
                             ParameterSettings{groups[g].lr_factor, groups[g].weight_decay});
  }
  std::vector<ParameterSettings> in_order;
  for (const at::Tensor& parameter : arena.parameters())
    in_order.push_back(settings[parameter.unsafeGetTensorImpl()]);
  return in_order;
}

}  // namespace weightsmith
