#include "weightsmith/config/config_file.h"

#include <nlohmann/json.hpp>

#include "support/expect_error.h"
#include "support/temporary_folder.h"
#include "weightsmith/core/atomic_file.h"

namespace weightsmith {
namespace {

using nlohmann::json;
using testing::expect_error;
using testing::TemporaryFolder;

const json kSchema = json::parse(R"({
  "type": "object", "additionalProperties": false, "required": ["name"],
  "properties": {
    "name": {"type": "string"},
    "balance": {"type": "number", "minimum": 0, "maximum": 1, "default": 0.5},
    "mode": {"type": "string", "enum": ["on", "off"], "default": "on"},
    "sets": {"type": "array", "items": {"$ref": "#/definitions/set"}},
    "classes": {"type": "array", "items": {"type": "integer"}, "uniqueItems": true},
    "shape": {"type": "string", "pattern": "^[0-9]+$"},
    "nested": {"type": "object", "additionalProperties": false, "properties": {"k": {"type": "integer", "default": 5}}}
  },
  "definitions": {"set": {"type": "object", "additionalProperties": false, "properties": {"path": {"type": "string"}}}}
})");

TEST_CASE("a configuration may hold comments but no key twice, and errors name the line",
          "[config]") {
  const TemporaryFolder folder;
  write_text_atomically(folder / "good.json", "{\n  // why\n  \"a\": 1\n}");
  CHECK(read_json(folder / "good.json") == json{{"a", 1}});
  write_text_atomically(folder / "twice.json", R"({"a": {"b": 1, "b": 2}})");
  expect_error(ErrorKind::kConfig, {"twice.json", "\"b\"", "twice"},
               [&] { read_json(folder / "twice.json"); });
  write_text_atomically(folder / "bad.json", "{\n  \"a\": ,\n}");
  expect_error(ErrorKind::kConfig, {"bad.json", "line 2"}, [&] { read_json(folder / "bad.json"); });
  expect_error(ErrorKind::kConfig, {"none.json"}, [&] { read_json(folder / "none.json"); });
}

TEST_CASE("the same key in sibling objects is no repetition", "[config]") {
  const TemporaryFolder folder;
  write_text_atomically(folder / "siblings.json",
                        R"({"a": {"k": 1}, "b": {"k": 2}, "c": [{"k": 1}, {"k": 1}]})");
  CHECK_NOTHROW(read_json(folder / "siblings.json"));
}

TEST_CASE("text that no JSON file could hold is named by its key", "[config]") {
  json config = {{"out", "runs/a"}, {"models", {{{"name", "\xc3\xa9"}}}}};
  CHECK_NOTHROW(refuse_invalid_utf8(config));
  config["models"][0]["script"] = "caf\xe9.pt";
  expect_error(ErrorKind::kConfig, {"models[0].script", "caf\xe9.pt", "UTF-8", "rename"},
               [&] { refuse_invalid_utf8(config); });
}

TEST_CASE("a value on the command line is not nested without end", "[config]") {
  json config;
  expect_error(ErrorKind::kConfig, {"--set x", "nested more than 100 deep"}, [&] {
    apply_override(config, "x=" + std::string(60000, '[') + std::string(60000, ']'));
  });
  std::string path = "x";
  for (int i = 0; i < 60000; ++i) path += ".x";
  expect_error(ErrorKind::kConfig, {"--set", "nested more than 100 deep"},
               [&] { apply_override(config, path + "=1"); });
  apply_override(config, "x=" + std::string(60000, '['));  // text, as it is no JSON
  CHECK(config["x"].is_string());
}

TEST_CASE("overrides set values by key path", "[config]") {
  json config = {{"models", {{{"name", "a"}}, {{"name", "b"}}}}};
  CHECK(apply_override(config, "balance=0.7") == "balance");
  CHECK(apply_override(config, "zip.a=1") == "zip.a");
  CHECK(apply_override(config, "models.1.name=\"c\"") == "models[1].name");
  CHECK(apply_override(config, "method=zip") == "method");
  CHECK(config["balance"] == 0.7);
  CHECK(config["zip"]["a"] == 1);
  CHECK(config["models"][1]["name"] == "c");
  CHECK(config["method"] == "zip");
  expect_error(ErrorKind::kConfig, {"KEY.PATH=JSON"}, [&] { apply_override(config, "balance"); });
  expect_error(ErrorKind::kConfig, {"models.7", "2 items"},
               [&] { apply_override(config, "models.7=1"); });
  expect_error(ErrorKind::kConfig, {"balance.x"}, [&] { apply_override(config, "balance.x=1"); });
}

TEST_CASE("the schema's errors name key, value and what is allowed", "[config]") {
  CHECK_NOTHROW(validate_schema({{"name", "x"}, {"balance", 1}}, kSchema));
  expect_error(ErrorKind::kConfig, {"\"name\" is missing"},
               [] { validate_schema(json::object(), kSchema); });
  expect_error(ErrorKind::kConfig, {"balance", "found 2", "at most 1"}, [] {
    validate_schema({{"name", "x"}, {"balance", 2}}, kSchema);
  });
  expect_error(ErrorKind::kConfig, {"mode", "\"of\"", "\"off\""}, [] {
    validate_schema({{"name", "x"}, {"mode", "of"}}, kSchema);
  });
  expect_error(ErrorKind::kConfig, {"blance", "did you mean \"balance\"?"}, [] {
    validate_schema({{"name", "x"}, {"blance", 1}}, kSchema);
  });
  expect_error(ErrorKind::kConfig, {"sets[1].pth", "path"}, [] {
    validate_schema({{"name", "x"}, {"sets", {{{"path", "a"}}, {{"pth", "b"}}}}}, kSchema);
  });
  expect_error(ErrorKind::kConfig, {"sets[0].path", "found 3", "string"}, [] {
    validate_schema({{"name", "x"}, {"sets", {{{"path", 3}}}}}, kSchema);
  });
  expect_error(ErrorKind::kConfig, {"nested.k", "integer"}, [] {
    validate_schema({{"name", "x"}, {"nested", {{"k", "five"}}}}, kSchema);
  });
  expect_error(ErrorKind::kConfig, {"classes", "found [0,0]", "none of them twice"}, [] {
    validate_schema({{"name", "x"}, {"classes", {0, 0}}}, kSchema);
  });
  expect_error(ErrorKind::kConfig, {"shape", "found \"2xq\"", "matches \"^[0-9]+$\""}, [] {
    validate_schema({{"name", "x"}, {"shape", "2xq"}}, kSchema);
  });
}

TEST_CASE("defaults are read off the schema", "[config]") {
  CHECK(schema_defaults(kSchema) == json{{"balance", 0.5}, {"mode", "on"}, {"nested", {{"k", 5}}}});
}

TEST_CASE("an older configuration has the defaults of the keys it did not know", "[config]") {
  const json defaults{{"a", 1}, {"b", {{"c", 2}, {"d", 3}}}, {"e", 4}};
  const json present{{"a", 5}, {"b", {{"c", 2}, {"d", 6}}}};
  CHECK(with_missing_keys({{"b", {{"c", 7}}}}, present, defaults) ==
        json{{"a", 1}, {"b", {{"c", 7}, {"d", 3}}}});
  CHECK(with_missing_keys({{"b", 8}, {"f", 9}}, present, defaults) ==
        json{{"a", 1}, {"b", 8}, {"f", 9}});
  // A section may have been left out because it was not wanted.
  CHECK(with_missing_keys({{"a", 2}}, present, defaults) == json{{"a", 2}});
  CHECK(with_missing_keys({{"a", 2}, {"b", nullptr}}, present, defaults) ==
        json{{"a", 2}, {"b", nullptr}});
  CHECK(with_missing_keys({1, 2}, present, defaults) == json{1, 2});  // damaged
}

TEST_CASE("all keys are named in which configurations differ", "[config]") {
  using Keys = std::vector<std::string>;
  CHECK(differing_keys({{"a", {{"b", 1}, {"c", {1, 2}}}}, {"d", 3}},
                       {{"a", {{"b", 2}, {"c", {1, 3}}}}, {"d", 3}}) == Keys{"a.b", "a.c"});
  CHECK(differing_keys({{"a", {{"b", 1}}}}, {{"a", 1}, {"e", true}}) == Keys{"a", "e"});
  CHECK(differing_keys({{"a", 1}, {"b", nullptr}}, {{"a", 1}}).empty());
}

}  // namespace
}  // namespace weightsmith
