#include "weightsmith/config/fields.h"

#include <cmath>
#include <cstdlib>

#include "weightsmith/config/nearest.h"

namespace weightsmith {

std::filesystem::path resolve_path(const std::string& text, const std::filesystem::path& base) {
  std::string expanded;
  for (std::size_t i = 0; i < text.size();) {
    if (text.compare(i, 2, "${") == 0) {
      const std::size_t end = text.find('}', i);
      if (end == std::string::npos)
        throw Error(ErrorKind::kConfig, text, "\"${\" without \"}\" in a path",
                    "a variable is written ${NAME}");
      const std::string name = text.substr(i + 2, end - i - 2);
      const char* value = std::getenv(name.c_str());
      if (value == nullptr)
        throw Error(ErrorKind::kConfig, text,
                    fmt::format("the environment has no variable {}", name),
                    fmt::format("export {}=...", name));
      expanded += value;
      i = end + 1;
    } else {
      expanded += text[i++];
    }
  }
  if (expanded == "~" || expanded.starts_with("~/")) {
    const char* home = std::getenv("HOME");
    if (home == nullptr)
      throw Error(ErrorKind::kConfig, text, "\"~\" in a path, but HOME is not set",
                  "export HOME=...");
    expanded = home + expanded.substr(1);
  }
  const std::filesystem::path path(expanded);
  return path.is_absolute() || path.empty() ? path : (base / path).lexically_normal();
}

namespace detail {

void read_value(const ConfigNode& node, bool& value) {
  if (!node.value.is_boolean())
    node.fail(fmt::format("expected true or false, found {}", node.value.dump()));
  value = node.value.get<bool>();
}

void read_value(const ConfigNode& node, std::int64_t& value) {
  if (!node.value.is_number_integer())
    node.fail(fmt::format("expected an integer, found {}", node.value.dump()));
  value = node.value.get<std::int64_t>();
}

void read_value(const ConfigNode& node, double& value) {
  if (!node.value.is_number())
    node.fail(fmt::format("expected a number, found {}", node.value.dump()));
  value = node.value.get<double>();
}

void read_value(const ConfigNode& node, std::string& value) {
  if (!node.value.is_string())
    node.fail(fmt::format("expected a string, found {}", node.value.dump()));
  value = node.value.get<std::string>();
}

void read_value(const ConfigNode& node, std::filesystem::path& value) {
  std::string text;
  read_value(node, text);
  value = resolve_path(text, node.base);
}

void fail_unknown_key(const ConfigNode& node, const std::string& key,
                      const std::vector<std::string>& known) {
  const std::string nearest = nearest_name(key, known);
  node.child(key, node.value.at(key))
      .fail("unknown key",
            nearest.empty() ? "see --print-schema" : fmt::format("did you mean \"{}\"?", nearest));
}

}  // namespace detail
}  // namespace weightsmith
