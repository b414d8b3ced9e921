#include <spdlog/fmt/fmt.h>

#include <nlohmann/json.hpp>
#include <valijson/adapters/nlohmann_json_adapter.hpp>
#include <valijson/schema.hpp>
#include <valijson/schema_parser.hpp>
#include <valijson/validation_results.hpp>
#include <valijson/validator.hpp>

#include "weightsmith/config/embedded_schemas.h"
#include "weightsmith/core/error.h"

namespace weightsmith {
namespace {

using nlohmann::json;

/// valijson names a place as "<root>", "[models]", "[0]": as a key path, `models[0]`.
std::string key_path(const std::vector<std::string>& context) {
  std::string path;
  for (const std::string& step : context) {
    if (step == "<root>") continue;
    const std::string name = step.substr(1, step.size() - 2);
    const bool index = !name.empty() && name.find_first_not_of("0123456789") == std::string::npos;
    path += index ? fmt::format("[{}]", name) : (path.empty() ? "" : ".") + name;
  }
  return path;
}

/// The value and the rule a context leads to, so that the message can show both.
std::pair<const json*, const json*> locate(const json& config, const json& schema,
                                           const std::vector<std::string>& context) {
  const json* value = &config;
  const json* rule = &schema;
  const auto follow = [&schema](const json* r) {
    while (r != nullptr && r->contains("$ref"))
      r = &schema.at(json::json_pointer(r->at("$ref").get<std::string>().substr(1)));
    return r;
  };
  for (const std::string& step : context) {
    if (step == "<root>") continue;
    const std::string name = step.substr(1, step.size() - 2);
    rule = follow(rule);
    if (value->is_array()) {
      value = &value->at(std::stoul(name));
      rule = rule != nullptr && rule->contains("items") ? &rule->at("items") : nullptr;
    } else {
      value = &value->at(name);
      rule =
          rule != nullptr && rule->contains("properties") && rule->at("properties").contains(name)
              ? &rule->at("properties").at(name)
              : nullptr;
    }
  }
  return {value, follow(rule)};
}

/// What a rule allows, in words.
std::string allowed(const json& rule) {
  std::vector<std::string> parts;
  if (rule.contains("enum")) {
    std::vector<std::string> values;
    for (const json& v : rule["enum"]) values.push_back(v.dump());
    parts.push_back("one of " + fmt::format("{}", fmt::join(values, ", ")));
  } else if (rule.contains("type")) {
    const json& type = rule["type"];
    std::vector<std::string> types;
    if (type.is_string()) types.push_back(type.get<std::string>());
    if (type.is_array())
      for (const json& t : type) types.push_back(t.get<std::string>());
    parts.push_back(fmt::format("{}", fmt::join(types, " or ")));
  }
  if (rule.contains("minimum")) parts.push_back("at least " + rule["minimum"].dump());
  if (rule.contains("exclusiveMinimum"))
    parts.push_back("above " + rule["exclusiveMinimum"].dump());
  if (rule.contains("maximum")) parts.push_back("at most " + rule["maximum"].dump());
  if (rule.contains("exclusiveMaximum"))
    parts.push_back("below " + rule["exclusiveMaximum"].dump());
  if (rule.contains("minItems"))
    parts.push_back(fmt::format("{} items or more", rule["minItems"].dump()));
  if (rule.value("uniqueItems", false)) parts.emplace_back("none of them twice");
  if (rule.contains("minLength")) parts.emplace_back("not empty");
  if (rule.contains("pattern")) parts.push_back("that matches " + rule["pattern"].dump());
  return fmt::format("{}", fmt::join(parts, ", "));
}

}  // namespace

void validate_with_valijson(const json& config, const json& schema) {
  valijson::Schema compiled;
  valijson::SchemaParser parser(valijson::SchemaParser::kDraft7);
  parser.populateSchema(valijson::adapters::NlohmannJsonAdapter(schema), compiled);
  valijson::Validator validator(valijson::Validator::kStrongTypes);
  valijson::ValidationResults results;
  if (validator.validate(compiled, valijson::adapters::NlohmannJsonAdapter(config), &results))
    return;

  valijson::ValidationResults::Error error;
  WS_CHECK(results.popError(error));  // the first is the innermost
  const auto [value, rule] = locate(config, schema, error.context);
  const std::string path = key_path(error.context);
  std::string what = error.description;
  if (what.starts_with("Missing required property '")) {
    const std::size_t begin = what.find('\'') + 1;
    const std::string name = what.substr(begin, what.find('\'', begin) - begin);
    throw Error(ErrorKind::kConfig, path.empty() ? "config" : path,
                fmt::format("the key \"{}\" is missing", name), "see --print-schema");
  }
  std::string found = value->dump();
  if (found.size() > 60) found = found.substr(0, 57) + "...";
  const std::string wanted = rule != nullptr ? allowed(*rule) : "";
  throw Error(ErrorKind::kConfig, path.empty() ? "config" : path,
              wanted.empty() ? what : fmt::format("found {}", found),
              wanted.empty() ? "see --print-schema" : fmt::format("wanted {}", wanted));
}

}  // namespace weightsmith
