#pragma once

// Catch2 3, which Debian 13 has, under the names of Catch2 2, which Debian 12 has.

#include <catch2/catch_all.hpp>
#include <string>

namespace Catch {
using Matchers::EndsWith;
using Matchers::Matches;
using Matchers::StartsWith;
inline auto Contains(const std::string& part) { return Matchers::ContainsSubstring(part); }
}  // namespace Catch

using Catch::Approx;
