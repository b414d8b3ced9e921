#include "weightsmith/core/json_text.h"

#include <nlohmann/json.hpp>
#include <string>

#include "support/expect_error.h"

namespace weightsmith {
namespace {

using testing::expect_error;

nlohmann::json parse(const std::string& text, JsonComments comments = JsonComments::kRefused) {
  return parse_json(text, ErrorKind::kInput, "file.json", "look at it", comments);
}

std::string nested(std::size_t depth, const std::string& open, const std::string& close) {
  std::string text;
  for (std::size_t i = 0; i < depth; ++i) text += open;
  text += "1";
  for (std::size_t i = 0; i < depth; ++i) text += close;
  return text;
}

TEST_CASE("JSON from outside is read, and what is wrong with it named", "[core]") {
  CHECK(parse(R"({"a": [1, {"b": null}]})")["a"][1]["b"].is_null());
  expect_error(ErrorKind::kInput, {"file.json: not JSON: parse error at line 2", "look at it"},
               [] { parse("{\n\"a\" 1}"); });
  expect_error(ErrorKind::kInput, {"file.json", "not JSON"}, [] { parse("\"\xff\""); });
  expect_error(ErrorKind::kInput, {"\"a\" is given twice"}, [] { parse(R"({"a": 1, "a": 2})"); });
  CHECK(testing::error_of(ErrorKind::kInput, [] {
          parse("\"" + std::string(1'000'000, 'x'));
        }).size() < 300);
  CHECK(parse("// why\n1", JsonComments::kAllowed) == 1);
  expect_error(ErrorKind::kInput, {"line 1"}, [] { parse("// why\n1"); });
}

TEST_CASE("JSON nested deeper than anything sensible is refused", "[core]") {
  CHECK_NOTHROW(parse(nested(90, "[", "]")));
  for (const std::size_t depth : {200, 300'000}) {
    expect_error(ErrorKind::kInput, {"file.json", "nested more than 100 deep"},
                 [&] { parse(nested(depth, "[", "]")); });
    expect_error(ErrorKind::kInput, {"file.json", "nested more than 100 deep"},
                 [&] { parse(nested(depth, R"({"a":)", "}")); });
  }
}

}  // namespace
}  // namespace weightsmith
