#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace weightsmith {

/// The text of a configuration; "-" reads standard input. Throws Error{kConfig} naming the file.
std::string read_config_text(const std::filesystem::path& path);

/// What that text says: JSON, comments allowed. `path` is what it was read from. Throws
/// Error{kConfig} naming the file and the line.
nlohmann::json parse_config(const std::string& text, const std::filesystem::path& path);

/// Both.
nlohmann::json read_json(const std::filesystem::path& path);

/// Sets one value: `key.path=JSON`, list items by number (`models.0.name="a"`). What is not valid
/// JSON is taken as a string, so that `method=zip` needs no quotes. Returns the key path as errors
/// and ConfigNode write it ("models[0].name"). Throws Error{kConfig}.
std::string apply_override(nlohmann::json& config, const std::string& assignment);

/// Paths are bytes, but JSON is UTF-8: throws Error{kConfig} naming the key path of the first text
/// that no JSON file could hold (from the command line, the environment or the current folder).
void refuse_invalid_utf8(const nlohmann::json& config);

/// Checks a configuration against a draft-07 schema. Throws Error{kConfig} naming the key path,
/// what was found and what is allowed; for a key the schema does not know, the nearest one it does.
void validate_schema(const nlohmann::json& config, const nlohmann::json& schema);

/// The schema of a tool (configs/schema/<tool>.schema.json, compiled in), its references to
/// common.schema.json resolved. Throws Error{kInternal} for an unknown tool.
nlohmann::json tool_schema(const std::string& tool);

/// The default values a schema states, as the configuration that spells them out.
nlohmann::json schema_defaults(const nlohmann::json& schema);

/// `before`, a configuration that an older version wrote, with the keys of `present` that it lacks,
/// at their `defaults`. A section that it lacks as a whole stays out: it may be one that was not
/// asked for.
nlohmann::json with_missing_keys(nlohmann::json before, const nlohmann::json& present,
                                 const nlohmann::json& defaults);

/// The key paths ("optimizer.lr") of all values in which two configurations differ, sorted. A list
/// is one value; a key that one of them lacks is null there.
std::vector<std::string> differing_keys(const nlohmann::json& a, const nlohmann::json& b);

}  // namespace weightsmith
