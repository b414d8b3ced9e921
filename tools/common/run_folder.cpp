#include "common/run_folder.h"

#include <spdlog/spdlog.h>

#include <nlohmann/json.hpp>

#include "weightsmith/config/config_file.h"
#include "weightsmith/core/atomic_file.h"
#include "weightsmith/core/json_text.h"

namespace weightsmith {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

json read_own_json(const fs::path& path) {
  json value =
      parse_json(read_text(path), ErrorKind::kInput, path.string(), "--overwrite to run again");
  if (!value.is_object())
    throw Error(ErrorKind::kInput, path.string(), "damaged: not a JSON object",
                "--overwrite to run again");
  return value;
}

/// Whether `relative` is a regular file below `out`, on a way without links.
bool is_own_file(const fs::path& out, const fs::path& relative) {
  if (relative.empty() || relative.is_absolute() || relative.lexically_normal() != relative)
    return false;
  fs::path at = out;
  for (const fs::path& part : relative) {
    if (part == "..") return false;
    at /= part;
    std::error_code error;
    const fs::file_status status = fs::symlink_status(at, error);
    const bool sound =
        at == out / relative ? fs::is_regular_file(status) : fs::is_directory(status);
    if (error || !sound) return false;
  }
  return true;
}

}  // namespace

std::optional<json> finished_run(const fs::path& out, const RunFolderFlags& flags,
                                 const json& config, const json& defaults) {
  const fs::path results = out / "results.json";
  if (!fs::exists(results)) return std::nullopt;
  if (flags.resume) {
    const json before = with_missing_keys(read_own_json(out / "config.json"), config, defaults);
    if (const auto keys = differing_keys(before, config); !keys.empty()) {
      if (flags.extends && flags.extends(before, config)) return std::nullopt;
      throw Error(ErrorKind::kConfig, out.string(),
                  fmt::format("holds a finished run of another configuration, which differs in {}",
                              fmt::join(keys, ", ")),
                  "choose another --out, or --overwrite");
    }
    json summary = read_own_json(results);
    spdlog::info("{} holds this run already: nothing to do", out.string());
    return summary;
  }
  if (!flags.overwrite)
    throw Error(ErrorKind::kConfig, out.string(), "already holds a finished run",
                "--resume to reuse it, --overwrite to replace it, or choose another --out");
  return std::nullopt;
}

void claim_folder(const fs::path& out, const json& config) {
  make_folder(out);
  // The old run stops being "finished" before the first of its files is replaced.
  const fs::path results = out / "results.json";
  std::error_code error;
  if (fs::exists(results) && !fs::remove(results, error))
    throw Error(ErrorKind::kOutput, results.string(), "cannot be replaced", error.message());
  write_text_atomically(out / "config.json", config.dump(2) + "\n");
}

std::set<std::string> former_outputs(const fs::path& out, const std::string& tool) {
  const fs::path path = out / "run.json";
  std::set<std::string> files;
  if (!fs::exists(path)) return files;
  try {
    const json record = read_own_json(path);
    if (record.value("tool", "") != tool || !record.contains("outputs")) return files;
    for (const auto& name : record.at("outputs").get<std::set<std::string>>())
      if (is_own_file(out, name)) files.insert(name);
  } catch (const Error&) {
  } catch (const json::exception&) {
  }
  return files;
}

void remove_outputs(const fs::path& out, const std::set<std::string>& outputs) {
  for (const std::string& name : outputs) {
    std::error_code error;
    fs::remove(out / name, error);
    if (error)
      throw Error(ErrorKind::kOutput, (out / name).string(), "cannot remove a former result",
                  "choose another --out");
    for (fs::path folder = fs::path(name).parent_path(); !folder.empty();
         folder = folder.parent_path())
      if (!fs::remove(out / folder, error)) break;  // still holds something
  }
}

}  // namespace weightsmith
