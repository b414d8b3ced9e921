#include "weightsmith/merge/statistics_cache.h"

#include <spdlog/fmt/fmt.h>

#include <utility>

#include "weightsmith/core/atomic_file.h"
#include "weightsmith/core/error.h"
#include "weightsmith/merge/transform.h"
#include "weightsmith/tensor/safetensors.h"

namespace weightsmith {

StatisticsCache::StatisticsCache(std::filesystem::path folder, std::string key)
    : folder_(std::move(folder)), key_(std::move(key)) {
  WS_CHECK(folder_.empty() || key_.size() >= 16);
}

std::filesystem::path StatisticsCache::file() const {
  return folder_ / fmt::format("activations-{}.safetensors", key_.substr(0, 16));
}

std::optional<std::vector<PackedSimilarity>> StatisticsCache::load(const UnitGroups& groups,
                                                                   Similarity::Scope scope,
                                                                   std::int64_t models,
                                                                   Progress& progress) const {
  if (folder_.empty() || !std::filesystem::exists(file())) return std::nullopt;
  try {
    const SafetensorsFile stored = read_safetensors(file());
    const auto key = stored.metadata.find("key");
    if (key == stored.metadata.end() || key->second != key_)
      throw Error(ErrorKind::kInput, file().string(), "holds the statistics of something else");
    std::vector<PackedSimilarity> similarities;
    for (const UnitGroup& group : groups.groups) {
      const auto values = stored.tensors.find("similarity/" + group.name);
      if (values == stored.tensors.end())
        throw Error(ErrorKind::kInput, file().string(), "lacks group " + group.name);
      similarities.push_back({scope, stack_of(group, models), values->second});
      check_similarity(similarities.back(), file().string());
    }
    return similarities;
  } catch (const Error& e) {
    progress.warn(fmt::format("{}; collecting the statistics again", e.what()));
    return std::nullopt;
  }
}

void StatisticsCache::store(const UnitGroups& groups,
                            const std::vector<PackedSimilarity>& similarities) const {
  if (folder_.empty()) return;
  WS_CHECK(similarities.size() == groups.groups.size());
  make_folder(folder_);
  TensorMap tensors;
  for (std::size_t g = 0; g < similarities.size(); ++g)
    tensors["similarity/" + groups.groups[g].name] = similarities[g].values;
  write_safetensors(file(), tensors, {{"format", "weightsmith similarities 2"}, {"key", key_}});
}

}  // namespace weightsmith
