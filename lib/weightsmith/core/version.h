#pragma once

#include <string>

namespace weightsmith {

std::string version();           ///< of the project, "0.1.0"
std::string git_revision();      ///< what was built, "unknown" outside a checkout
std::string libtorch_version();  ///< compiled against, "1.13.1"

}  // namespace weightsmith
