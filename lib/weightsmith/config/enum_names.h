#pragma once

#include <utility>
#include <vector>

namespace weightsmith {

/// The values of an enumeration and what a configuration calls them. An enumeration `E` that occurs
/// in one declares `EnumNames<E> enum_names(E)`; the argument only selects the overload.
template <class E>
using EnumNames = std::vector<std::pair<E, const char*>>;

}  // namespace weightsmith
