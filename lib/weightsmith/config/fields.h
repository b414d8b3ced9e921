#pragma once

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "weightsmith/config/enum_names.h"
#include "weightsmith/core/error.h"

/// Reading and writing configuration structs from one list of their fields. Include this in a .cpp
/// only.
///
/// A struct `C` with its own configuration declares, beside itself in the header,
///     void from_config(const ConfigNode& node, C& config);
///     nlohmann::json to_config(const C& config);
/// and defines both in its .cpp over one template that names every field once, in the order of the
/// documentation:
///     template <class Fields>
///     void fields(Fields& f, C& c) { f("balance", c.balance); f("zip", c.zip); }
///     void from_config(const ConfigNode& node, C& c) { read_fields(node, c); }
///     nlohmann::json to_config(const C& c) { return write_fields(c); }
/// An enumeration `E` declares `EnumNames<E> enum_names(E)`.
namespace weightsmith {

/// Values set on the command line: their relative paths start from the current folder.
struct OverriddenKeys {
  std::vector<std::string> keys;  ///< key paths as in ConfigNode::key
  std::filesystem::path folder;

  bool cover(const std::string& key) const {
    return std::find(keys.begin(), keys.end(), key) != keys.end();
  }
};

/// A value of a configuration, the key path that leads to it ("models[0].name", for errors) and the
/// folder relative paths start from.
struct ConfigNode {
  const nlohmann::json& value;
  std::string key;
  const std::filesystem::path& base;
  const OverriddenKeys* overridden = nullptr;

  ConfigNode child(const std::string& name, const nlohmann::json& child_value) const {
    return at(key.empty() ? name : key + "." + name, child_value);
  }
  ConfigNode item(std::size_t index) const {
    return at(fmt::format("{}[{}]", key, index), value[index]);
  }
  [[noreturn]] void fail(std::string_view what, std::string_view remedy = {}) const {
    throw Error(ErrorKind::kConfig, key.empty() ? "config" : key, what, remedy);
  }

 private:
  ConfigNode at(std::string path, const nlohmann::json& child_value) const {
    const bool from_command_line = overridden != nullptr && overridden->cover(path);
    return {child_value, std::move(path), from_command_line ? overridden->folder : base,
            overridden};
  }
};

/// Expands `~` and `${VAR}`, then makes the path absolute from `base`. An unset variable is an
/// Error{kConfig}.
std::filesystem::path resolve_path(const std::string& text, const std::filesystem::path& base);

namespace detail {

void read_value(const ConfigNode& node, bool& value);
void read_value(const ConfigNode& node, std::int64_t& value);
void read_value(const ConfigNode& node, double& value);
void read_value(const ConfigNode& node, std::string& value);
void read_value(const ConfigNode& node, std::filesystem::path& value);
inline void read_value(const ConfigNode& node, nlohmann::json& value) { value = node.value; }

template <class E>
requires std::is_enum_v<E>
void read_value(const ConfigNode& node, E& value) {
  std::string text;
  read_value(node, text);
  std::string known;
  for (const auto& [candidate, name] : enum_names(E{})) {
    if (text == name) {
      value = candidate;
      return;
    }
    known += (known.empty() ? "" : ", ") + std::string(name);
  }
  node.fail(fmt::format("unknown value \"{}\"", text), "known values: " + known);
}

template <class T>
requires requires(const ConfigNode& n, T& t) { from_config(n, t); }
void read_value(const ConfigNode& node, T& value) { from_config(node, value); }

template <class T>
void read_value(const ConfigNode& node, std::optional<T>& value) {
  if (node.value.is_null()) {
    value.reset();
    return;
  }
  read_value(node, value.emplace());
}

template <class T>
void read_value(const ConfigNode& node, std::vector<T>& value) {
  if (!node.value.is_array()) node.fail("expected a list");
  value.clear();
  for (std::size_t i = 0; i < node.value.size(); ++i) {
    T item{};
    read_value(node.item(i), item);
    value.push_back(std::move(item));
  }
}

inline nlohmann::json write_value(bool value) { return value; }
inline nlohmann::json write_value(std::int64_t value) { return value; }
inline nlohmann::json write_value(double value) { return value; }
inline nlohmann::json write_value(const std::string& value) { return value; }
inline nlohmann::json write_value(const std::filesystem::path& value) { return value.string(); }
inline nlohmann::json write_value(const nlohmann::json& value) { return value; }

template <class E>
requires std::is_enum_v<E> nlohmann::json write_value(E value) { return enum_name(value); }

template <class T>
requires requires(const T& t) { to_config(t); }
nlohmann::json write_value(const T& value) { return to_config(value); }

template <class T>
nlohmann::json write_value(const std::optional<T>& value) {
  return value ? write_value(*value) : nlohmann::json();
}

template <class T>
nlohmann::json write_value(const std::vector<T>& value) {
  auto list = nlohmann::json::array();
  for (const T& item : value) list.push_back(write_value(item));
  return list;
}

/// Throws Error{kConfig} naming `key` and the nearest of `known`.
[[noreturn]] void fail_unknown_key(const ConfigNode& node, const std::string& key,
                                   const std::vector<std::string>& known);

}  // namespace detail

/// For a list of fields: a path that is left out where it is empty.
struct OptionalPath {
  std::filesystem::path& path;
};
inline void from_config(const ConfigNode& node, OptionalPath& path) {
  detail::read_value(node, path.path);
}
inline nlohmann::json to_config(const OptionalPath& path) {
  return path.path.empty() ? nlohmann::json() : detail::write_value(path.path);
}

/// Reads the keys that are present; the others keep the struct's defaults.
class FieldReader {
 public:
  explicit FieldReader(const ConfigNode& node) : node_(node) {
    if (!node.value.is_object()) node.fail("expected an object");
  }
  FieldReader(const FieldReader&) = delete;
  FieldReader& operator=(const FieldReader&) = delete;

  template <class T>
  void operator()(const char* key, T& value) {
    known_.emplace_back(key);
    if (const auto it = node_.value.find(key); it != node_.value.end())
      detail::read_value(node_.child(key, *it), value);
  }

  /// Call after the last field.
  void refuse_unknown_keys() const {
    for (const auto& [key, value] : node_.value.items())
      if (std::find(known_.begin(), known_.end(), key) == known_.end())
        detail::fail_unknown_key(node_, key, known_);
  }

 private:
  ConfigNode node_;
  std::vector<std::string> known_;
};

/// Writes every field; optional fields that are empty are left out.
class FieldWriter {
 public:
  template <class T>
  void operator()(const char* key, const T& value) {
    nlohmann::json written = detail::write_value(value);
    if (!written.is_null()) json_[key] = std::move(written);
  }
  nlohmann::json take() { return std::move(json_); }

 private:
  nlohmann::json json_ = nlohmann::json::object();
};

template <class C>
void read_fields(const ConfigNode& node, C& config) {
  FieldReader reader(node);
  fields(reader, config);
  reader.refuse_unknown_keys();
}

/// One list of fields serves both directions; the writer only reads, hence the cast.
template <class C>
nlohmann::json write_fields(const C& config) {
  FieldWriter writer;
  fields(writer, const_cast<C&>(config));
  return writer.take();
}

}  // namespace weightsmith
