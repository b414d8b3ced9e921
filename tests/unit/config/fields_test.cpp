#include "weightsmith/config/fields.h"

#include <cstdlib>

#include "support/expect_error.h"
#include "weightsmith/config/nearest.h"

namespace weightsmith {

// A small configuration with every kind of field.
enum class Colour { kRed, kBlue };
EnumNames<Colour> enum_names(Colour) { return {{Colour::kRed, "red"}, {Colour::kBlue, "blue"}}; }

struct Inner {
  double x = 1.5;
  std::filesystem::path file;
};
struct Outer {
  Colour colour = Colour::kRed;
  bool flag = false;
  std::int64_t count = 3;
  std::optional<Inner> inner;
  std::vector<std::string> names;
};

template <class Fields>
void fields(Fields& f, Inner& c) {
  f("x", c.x);
  f("file", c.file);
}
void from_config(const ConfigNode& node, Inner& c) { read_fields(node, c); }
nlohmann::json to_config(const Inner& c) { return write_fields(c); }

template <class Fields>
void fields(Fields& f, Outer& c) {
  f("colour", c.colour);
  f("flag", c.flag);
  f("count", c.count);
  f("inner", c.inner);
  f("names", c.names);
}
void from_config(const ConfigNode& node, Outer& c) { read_fields(node, c); }
nlohmann::json to_config(const Outer& c) { return write_fields(c); }

namespace {

using nlohmann::json;
using testing::expect_error;

const std::filesystem::path kBase = "/base/folder";

Outer read(const json& value, const OverriddenKeys* overridden = nullptr) {
  Outer config;
  from_config(ConfigNode{value, "", kBase, overridden}, config);
  return config;
}

TEST_CASE("a struct survives writing and reading", "[config]") {
  const json written = {{"colour", "blue"},
                        {"flag", true},
                        {"count", 7},
                        {"inner", {{"x", 2.0}, {"file", "/abs/f"}}},
                        {"names", {"a", "b"}}};
  CHECK(to_config(read(written)) == written);
}

TEST_CASE("missing keys keep their defaults and empty optionals are not written", "[config]") {
  const Outer config = read(json::object());
  CHECK(config.count == 3);
  CHECK_FALSE(config.inner);
  CHECK_FALSE(to_config(config).contains("inner"));
}

TEST_CASE("errors name the key path, what was found and what is known", "[config]") {
  expect_error(ErrorKind::kConfig, {"colour", "green", "red, blue"}, [] {
    read({{"colour", "green"}});
  });
  expect_error(ErrorKind::kConfig, {"inner.x", "expected a number", "\"1\""}, [] {
    read({{"inner", {{"x", "1"}}}});
  });
  expect_error(ErrorKind::kConfig, {"names[1]", "expected a string"}, [] {
    read({{"names", {"a", 2}}});
  });
  expect_error(ErrorKind::kConfig, {"inner.fiel", "did you mean \"file\"?"}, [] {
    read({{"inner", {{"fiel", "f"}}}});
  });
  expect_error(ErrorKind::kConfig, {"count", "expected an integer"}, [] {
    read({{"count", 1.5}});
  });
}

TEST_CASE(
    "relative paths start from the file's folder, or from the current one if set on the command "
    "line",
    "[config]") {
  const json value = {{"inner", {{"file", "data/x.bin"}}}};
  CHECK(read(value).inner->file == "/base/folder/data/x.bin");
  const OverriddenKeys overridden{{"inner.file"}, "/current"};
  CHECK(read(value, &overridden).inner->file == "/current/data/x.bin");
}

TEST_CASE("paths expand ~ and variables", "[config]") {
  ::setenv("WEIGHTSMITH_TEST_VARIABLE", "/var/data", 1);
  ::setenv("HOME", "/home/someone", 1);
  CHECK(resolve_path("${WEIGHTSMITH_TEST_VARIABLE}/x", kBase) == "/var/data/x");
  CHECK(resolve_path("~/x", kBase) == "/home/someone/x");
  CHECK(resolve_path("../x", kBase) == "/base/x");
  ::unsetenv("WEIGHTSMITH_TEST_VARIABLE");
  expect_error(ErrorKind::kConfig, {"WEIGHTSMITH_TEST_VARIABLE", "export"},
               [] { resolve_path("${WEIGHTSMITH_TEST_VARIABLE}/x", kBase); });
}

TEST_CASE("the nearest name is the one meant, or none", "[config]") {
  CHECK(nearest_name("blance", {"balance", "batch_size"}) == "balance");
  CHECK(nearest_name("epohcs", {"epochs", "out"}) == "epochs");
  CHECK(nearest_name("zzzzzz", {"epochs", "out"}).empty());
}

}  // namespace
}  // namespace weightsmith
