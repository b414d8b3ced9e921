#include "weightsmith/config/config_file.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>

#include "weightsmith/config/embedded_schemas.h"
#include "weightsmith/config/nearest.h"
#include "weightsmith/core/error.h"
#include "weightsmith/core/json_text.h"

namespace weightsmith {
namespace {

using nlohmann::json;

std::string join_key(const std::string& path, const std::string& key) {
  return path.empty() ? key : path + "." + key;
}

/// Follows `$ref`s inside one schema document ("#/definitions/data").
const json& resolve(const json& schema, const json& root) {
  const json* at = &schema;
  while (at->is_object() && at->contains("$ref"))
    at = &root.at(json::json_pointer(at->at("$ref").get<std::string>().substr(1)));
  return *at;
}

/// Reports the first key that the schema does not know. valijson finds it as well, but cannot say
/// which key was meant.
void refuse_unknown_keys(const json& value, const json& schema, const json& root,
                         const std::string& path) {
  const json& rules = resolve(schema, root);
  if (!rules.is_object()) return;
  if (value.is_array() && rules.contains("items")) {
    for (std::size_t i = 0; i < value.size(); ++i)
      refuse_unknown_keys(value[i], rules["items"], root, fmt::format("{}[{}]", path, i));
  }
  if (!value.is_object() || !rules.contains("properties")) return;
  const json& properties = rules["properties"];
  const bool closed =
      rules.contains("additionalProperties") && rules["additionalProperties"] == false;
  std::vector<std::string> known;
  for (const auto& [key, rule] : properties.items()) known.push_back(key);
  for (const auto& [key, child] : value.items()) {
    if (properties.contains(key)) {
      refuse_unknown_keys(child, properties[key], root, join_key(path, key));
    } else if (closed) {
      const std::string nearest = nearest_name(key, known);
      throw Error(ErrorKind::kConfig, join_key(path, key), "unknown key",
                  nearest.empty() ? fmt::format("known here: {}", fmt::join(known, ", "))
                                  : fmt::format("did you mean \"{}\"?", nearest));
    }
  }
}

void collect_defaults(const json& schema, const json& root, json& out) {
  const json& rules = resolve(schema, root);
  if (!rules.is_object() || !rules.contains("properties")) return;
  for (const auto& [key, rule] : rules["properties"].items()) {
    if (rule.contains("default")) {
      out[key] = rule["default"];
      continue;
    }
    json nested = json::object();
    collect_defaults(rule, root, nested);
    if (!nested.empty()) out[key] = std::move(nested);
  }
}

void add_differing_keys(const json& a, const json& b, const std::string& key,
                        std::set<std::string>& keys) {
  if (a == b) return;
  if (!a.is_object() || !b.is_object()) {
    keys.insert(key);
    return;
  }
  for (const json* side : {&a, &b})
    for (const auto& [name, value] : side->items())
      add_differing_keys(a.value(name, json()), b.value(name, json()),
                         key.empty() ? name : key + "." + name, keys);
}

}  // namespace

std::string read_config_text(const std::filesystem::path& path) {
  if (path == "-") return std::string(std::istreambuf_iterator<char>(std::cin), {});
  std::ifstream in(path, std::ios::binary);
  if (!in || std::filesystem::is_directory(path))
    throw Error(ErrorKind::kConfig, path.string(), "cannot read the configuration",
                "check the path");
  return std::string(std::istreambuf_iterator<char>(in), {});
}

json parse_config(const std::string& text, const std::filesystem::path& path) {
  return parse_json(text, ErrorKind::kConfig, path == "-" ? "standard input" : path.string(),
                    "the configuration must be JSON", JsonComments::kAllowed);
}

json read_json(const std::filesystem::path& path) {
  return parse_config(read_config_text(path), path);
}

std::string apply_override(json& config, const std::string& assignment) {
  const std::size_t equals = assignment.find('=');
  if (equals == std::string::npos || equals == 0)
    throw Error(ErrorKind::kConfig, "--set " + assignment, "expected KEY.PATH=JSON",
                "for example --set epochs=10");
  const std::string path = assignment.substr(0, equals);
  const std::string text = assignment.substr(equals + 1);
  if (std::count(path.begin(), path.end(), '.') >= kMaxJsonDepth)
    throw Error(ErrorKind::kConfig, "--set",
                fmt::format("a key nested more than {} deep", kMaxJsonDepth), "give its key path");
  json value = text;
  if (json::accept(text))
    value = parse_json(text, ErrorKind::kConfig, "--set " + path, "give a smaller value");

  json* at = &config;
  std::string key_path;
  for (std::size_t begin = 0; begin <= path.size();) {
    const std::size_t end = std::min(path.find('.', begin), path.size());
    const std::string key = path.substr(begin, end - begin);
    if (at->is_array()) {
      const bool numeric = !key.empty() &&
                           key.find_first_not_of("0123456789") == std::string::npos &&
                           key.size() < 9;
      if (!numeric || std::stoul(key) >= at->size())
        throw Error(ErrorKind::kConfig, path,
                    fmt::format("\"{}\" is no index of a list of {} items", key, at->size()),
                    "items are counted from 0; set the whole list to add one");
      at = &(*at)[std::stoul(key)];
      key_path += fmt::format("[{}]", key);
    } else {
      if (key.empty() || !(at->is_object() || at->is_null()))
        throw Error(ErrorKind::kConfig, path,
                    fmt::format("\"{}\" leads nowhere: there is no object to hold it", key),
                    "set the enclosing object instead");
      at = &(*at)[key];
      key_path = join_key(key_path, key);
    }
    begin = end + 1;
  }
  *at = std::move(value);
  return key_path;
}

void refuse_invalid_utf8(const json& config) {
  const auto check = [](const std::string& text, const std::string& key) {
    try {
      json(text).dump();
    } catch (const json::type_error&) {
      throw Error(ErrorKind::kConfig, key,
                  fmt::format("\"{}\" is not UTF-8, so no JSON file can hold it", text),
                  "rename the file or folder, or reach it by a link of another name");
    }
  };
  const auto visit = [&check](auto&& self, const json& value, const std::string& path) -> void {
    if (value.is_string()) check(value.get_ref<const std::string&>(), path);
    if (value.is_array())
      for (std::size_t i = 0; i < value.size(); ++i)
        self(self, value[i], fmt::format("{}[{}]", path, i));
    if (!value.is_object()) return;
    for (const auto& [key, child] : value.items()) {
      check(key, "config");
      self(self, child, join_key(path, key));
    }
  };
  visit(visit, config, "");
}

void validate_schema(const json& config, const json& schema) {
  refuse_unknown_keys(config, schema, schema, "");
  validate_with_valijson(config, schema);
}

json tool_schema(const std::string& tool) {
  const auto parse = [](const std::string& name) {
    const char* text = embedded_schema(name);
    WS_CHECK(text != nullptr, name);
    return json::parse(text);
  };
  json schema = parse(tool);
  const json common = parse("common");
  for (const auto& [name, definition] : common.at("definitions").items())
    if (!schema["definitions"].contains(name)) schema["definitions"][name] = definition;
  // References between files become references inside the one document that --print-schema shows.
  const std::string prefix = "common.schema.json";
  const auto rewrite = [&prefix](auto&& self, json& node) -> void {
    if (node.is_object() && node.contains("$ref")) {
      auto& target = node["$ref"].get_ref<std::string&>();
      if (target.starts_with(prefix)) target.erase(0, prefix.size());
    }
    if (node.is_structured())
      for (json& child : node) self(self, child);
  };
  rewrite(rewrite, schema);
  return schema;
}

json schema_defaults(const json& schema) {
  json defaults = json::object();
  collect_defaults(schema, schema, defaults);
  return defaults;
}

json with_missing_keys(json before, const json& present, const json& defaults) {
  if (!before.is_object()) return before;
  for (const auto& [name, value] : defaults.items()) {
    if (!present.contains(name)) continue;
    if (!value.is_object()) {
      if (!before.contains(name)) before[name] = value;
    } else if (before.contains(name) && present[name].is_object()) {
      before[name] = with_missing_keys(before[name], present[name], value);
    }
  }
  return before;
}

std::vector<std::string> differing_keys(const json& a, const json& b) {
  std::set<std::string> keys;
  add_differing_keys(a, b, "", keys);
  return {keys.begin(), keys.end()};
}

}  // namespace weightsmith
