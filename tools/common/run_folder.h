#pragma once

#include <filesystem>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <set>
#include <string>

namespace weightsmith {

/// What a run may do with a folder that already holds one.
struct RunFolderFlags {
  bool resume = false;
  bool overwrite = false;
  /// Whether, with `resume`, a finished run of one configuration can go on as a run of another.
  std::function<bool(const nlohmann::json& finished, const nlohmann::json& config)> extends = {};
};

/// A finished run is never mixed with another: refused, reused (its summary is returned), gone
/// on with where it `extends` or, with `overwrite`, free to be replaced. A key that a former
/// version did not have, but its section, stands at what `defaults` (schema_defaults) states for
/// it. Throws
/// Error{kConfig} for a run of another configuration, and Error{kInput} when what it left cannot be
/// read.
std::optional<nlohmann::json> finished_run(const std::filesystem::path& out,
                                           const RunFolderFlags& flags,
                                           const nlohmann::json& config,
                                           const nlohmann::json& defaults);

/// Makes `out` the folder of a run of `config`: from now on it holds no finished one. Throws
/// Error{kOutput}.
void claim_folder(const std::filesystem::path& out, const nlohmann::json& config);

/// The files, relative to `out`, that run.json says a former run of `tool` wrote and that are still
/// there. Only regular files below `out` that no link leads to; a damaged run.json names none.
std::set<std::string> former_outputs(const std::filesystem::path& out, const std::string& tool);

/// Removes such files, and the folders below `out` that become empty. Throws Error{kOutput}.
void remove_outputs(const std::filesystem::path& out, const std::set<std::string>& outputs);

}  // namespace weightsmith
