#include "weightsmith/tensor/tensor_map.h"

#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <algorithm>

namespace weightsmith {

std::vector<std::string> state_differences(const TensorMap& actual, const TensorMap& wanted) {
  std::vector<std::string> differences;
  for (const auto& [name, tensor] : wanted) {
    const auto it = actual.find(name);
    if (it == actual.end())
      differences.push_back(fmt::format("{}: missing", name));
    else if (it->second.sizes() != tensor.sizes())
      differences.push_back(fmt::format("{}: shape [{}], [{}] wanted", name,
                                        fmt::join(it->second.sizes(), ", "),
                                        fmt::join(tensor.sizes(), ", ")));
  }
  for (const auto& [name, tensor] : actual)
    if (wanted.count(name) == 0) differences.push_back(fmt::format("{}: surplus", name));
  return differences;
}

std::string join_some(const std::vector<std::string>& items, std::size_t limit) {
  const std::size_t shown = std::min(items.size(), limit);
  std::string text = fmt::format("{}", fmt::join(items.begin(), items.begin() + shown, "; "));
  if (items.size() > shown) text += fmt::format(" and {} more", items.size() - shown);
  return text;
}

}  // namespace weightsmith
