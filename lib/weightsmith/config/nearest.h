#pragma once

#include <string>
#include <vector>

namespace weightsmith {

/// The known name that a misspelt one most likely meant: the smallest edit distance (insertions,
/// deletions, substitutions and swaps of neighbours), if it is at most a third of the longer name,
/// rounded up; else "".
std::string nearest_name(const std::string& name, const std::vector<std::string>& known);

}  // namespace weightsmith
