#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string_view>

#include "weightsmith/core/error.h"

namespace weightsmith {

/// Whether `//` and `/* */` are allowed.
enum class JsonComments { kRefused, kAllowed };

/// How deep JSON from outside may be nested: more than anything of ours needs, and little enough
/// for code that follows it by recursion.
constexpr int kMaxJsonDepth = 100;

/// Parses JSON that comes from outside. Refused, beside what is not JSON: a key given twice in one
/// object (the parser would keep the last), and nesting deeper than kMaxJsonDepth. Throws
/// Error{kind} naming `where` and the line, with `remedy`.
nlohmann::json parse_json(std::string_view text, ErrorKind kind, std::string_view where,
                          std::string_view remedy, JsonComments comments = JsonComments::kRefused);

}  // namespace weightsmith
