#include "weightsmith/core/json_text.h"

#include <spdlog/fmt/fmt.h>

#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

namespace weightsmith {

nlohmann::json parse_json(std::string_view text, ErrorKind kind, std::string_view where,
                          std::string_view remedy, JsonComments comments) {
  using Event = nlohmann::json::parse_event_t;
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto check = [&](int depth, Event event, nlohmann::json& value) {
    if (depth > kMaxJsonDepth)
      throw Error(kind, where, fmt::format("nested more than {} deep", kMaxJsonDepth), remedy);
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key && !keys.back().insert(value.get<std::string>()).second)
      throw Error(kind, where, fmt::format("the key {} is given twice", value.dump()),
                  "remove one of them");
    return true;
  };
  try {
    return nlohmann::json::parse(text, check, /*allow_exceptions=*/true,
                                 comments == JsonComments::kAllowed);
  } catch (const nlohmann::json::exception& e) {
    // "[json.exception.parse_error.101] parse error at line 3, column 5: ..." without its tag, and
    // without most of what was read of a long text.
    constexpr std::size_t kLongest = 200;
    std::string what = e.what();
    if (const std::size_t tag = what.find("] "); tag != std::string::npos) what.erase(0, tag + 2);
    if (what.size() > kLongest) what.replace(kLongest, std::string::npos, "...");
    throw Error(kind, where, "not JSON: " + what, remedy);
  }
}

}  // namespace weightsmith
