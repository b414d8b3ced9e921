#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace weightsmith {

/// The text of configs/schema/<name>.schema.json, compiled in; nullptr when there is none.
const char* embedded_schema(const std::string& name);

/// Checks `config` against a draft-07 schema with valijson. Throws Error{kConfig} naming the key
/// path.
void validate_with_valijson(const nlohmann::json& config, const nlohmann::json& schema);

}  // namespace weightsmith
