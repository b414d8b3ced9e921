#include "weightsmith/train/checkpoint.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <vector>

#include "weightsmith/config/config_file.h"
#include "weightsmith/core/error.h"
#include "weightsmith/core/json_text.h"
#include "weightsmith/core/progress.h"
#include "weightsmith/tensor/safetensors.h"

namespace weightsmith {
namespace fs = std::filesystem;
namespace {

constexpr const char* kPrefix = "checkpoint-";
constexpr const char* kSuffix = ".safetensors";
constexpr const char* kMetadataKey = "weightsmith";
constexpr int kVersion = 2;
const std::string kOptimizerPrefix = "optimizer.";
const std::string kBufferPrefix = "buffer.";
const std::string kBestPrefix = "best.";

}  // namespace

fs::path write_checkpoint(const fs::path& folder, const Checkpoint& c, std::int64_t keep) {
  TensorMap tensors;
  for (const auto& [name, tensor] : c.optimizer) tensors.emplace(kOptimizerPrefix + name, tensor);
  for (const auto& [name, tensor] : c.buffers) tensors.emplace(kBufferPrefix + name, tensor);
  for (const auto& [name, tensor] : c.best_weights) tensors.emplace(kBestPrefix + name, tensor);
  const nlohmann::json state = {
      {"version", kVersion},      {"epoch", c.position.epoch},  {"batch", c.position.batch},
      {"steps", c.steps},         {"loss_sum", c.loss_sum},     {"loss_count", c.loss_count},
      {"elapsed_s", c.elapsed_s}, {"history", c.history},       {"config", c.config},
      {"data", c.data},           {"loss_scale", c.loss_scale}, {"best", c.best}};
  const fs::path path =
      folder / fmt::format("{}{:06}-{:08}{}", kPrefix, c.position.epoch, c.position.batch, kSuffix);
  write_safetensors(path, tensors, {{kMetadataKey, state.dump()}});

  std::int64_t kept = 0;
  std::error_code ignored;
  for (const fs::path& file : checkpoints_in(folder))
    if (file > path || ++kept > keep) fs::remove(file, ignored);
  return path;
}

std::vector<fs::path> checkpoints_in(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code unreadable;
  for (const auto& entry : fs::directory_iterator(folder, unreadable)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(kPrefix) && name.ends_with(kSuffix)) files.push_back(entry.path());
  }
  // Positions are padded with zeros, so names sort as they do.
  std::sort(files.rbegin(), files.rend());
  return files;
}

Checkpoint read_checkpoint(const fs::path& path) {
  const char* remedy = "remove it to resume from the one before";
  const SafetensorsFile file = read_safetensors(path);
  const auto it = file.metadata.find(kMetadataKey);
  if (it == file.metadata.end())
    throw Error(ErrorKind::kInput, path.string(), "not a checkpoint of lookaround-train", remedy);
  Checkpoint c;
  try {
    const nlohmann::json state = parse_json(it->second, ErrorKind::kInput, path.string(), remedy);
    if (const int version = state.at("version").get<int>(); version != kVersion)
      throw Error(ErrorKind::kInput, path.string(),
                  fmt::format("checkpoint of version {}, expected {}", version, kVersion),
                  "resume with the version of weightsmith that wrote it");
    state.at("epoch").get_to(c.position.epoch);
    state.at("batch").get_to(c.position.batch);
    state.at("steps").get_to(c.steps);
    state.at("loss_sum").get_to(c.loss_sum);
    state.at("loss_count").get_to(c.loss_count);
    state.at("elapsed_s").get_to(c.elapsed_s);
    c.history = state.at("history");
    c.config = state.at("config");
    c.data = state.value("data", nlohmann::json());
    c.loss_scale = state.value("loss_scale", nlohmann::json());
    c.best = state.value("best", nlohmann::json());
  } catch (const nlohmann::json::exception& e) {
    throw Error(ErrorKind::kInput, path.string(), fmt::format("damaged checkpoint: {}", e.what()),
                remedy);
  }
  for (const auto& [name, tensor] : file.tensors) {
    if (name.starts_with(kOptimizerPrefix))
      c.optimizer.emplace(name.substr(kOptimizerPrefix.size()), tensor);
    else if (name.starts_with(kBufferPrefix))
      c.buffers.emplace(name.substr(kBufferPrefix.size()), tensor);
    else if (name.starts_with(kBestPrefix))
      c.best_weights.emplace(name.substr(kBestPrefix.size()), tensor);
  }
  return c;
}

std::optional<std::pair<fs::path, Checkpoint>> newest_sound_checkpoint(const fs::path& folder,
                                                                       Progress& progress) {
  std::optional<Error> first;
  for (const fs::path& path : checkpoints_in(folder)) {
    try {
      auto saved = std::make_pair(path, read_checkpoint(path));
      if (first)
        progress.warn(fmt::format("{}; going on from {}", first->what(), path.filename().string()));
      return saved;
    } catch (const Error& e) {
      if (!first) first = e;
    }
  }
  if (first) throw *first;
  return std::nullopt;
}

void remove_checkpoints(const fs::path& folder) {
  for (const fs::path& file : checkpoints_in(folder)) {
    std::error_code error;
    fs::remove(file, error);
    if (error)
      throw Error(ErrorKind::kOutput, file.string(), "cannot remove the old checkpoint",
                  "choose another --out");
  }
}

void check_same_data(const nlohmann::json& saved, const nlohmann::json& present,
                     const fs::path& checkpoint) {
  if (saved.is_null()) return;
  const auto differing = differing_keys({{"data", saved}}, {{"data", present}});
  if (differing.empty()) return;
  throw Error(
      ErrorKind::kInput, differing.front(),
      fmt::format("is not what the run to be resumed read ({}): other samples or labels, or "
                  "images of other names or sizes: {}",
                  checkpoint.string(), fmt::join(differing, ", ")),
      "restore the data, or start anew with --overwrite");
}

void check_same_config(const nlohmann::json& saved, const nlohmann::json& present,
                       const fs::path& checkpoint) {
  const auto differing = differing_keys(saved, present);
  if (differing.empty()) return;
  throw Error(ErrorKind::kConfig, differing.front(),
              fmt::format("differs from the run to be resumed ({}): {}", checkpoint.string(),
                          fmt::join(differing, ", ")),
              "resume with the same configuration, or start anew with --overwrite");
}

}  // namespace weightsmith
