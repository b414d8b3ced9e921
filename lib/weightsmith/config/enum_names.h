#pragma once

#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace weightsmith {

/// The values of an enumeration and what a configuration calls them. An enumeration `E` that occurs
/// in one declares `EnumNames<E> enum_names(E)`; the argument only selects the overload.
template <class E>
using EnumNames = std::vector<std::pair<E, const char*>>;

template <class E>
requires std::is_enum_v<E> std::string enum_name(E value) {
  for (const auto& [candidate, name] : enum_names(E{}))
    if (candidate == value) return name;
  return "?";
}

}  // namespace weightsmith
