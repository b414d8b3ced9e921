#pragma once

#include <filesystem>

namespace weightsmith {

/// The folder of a data set that is shipped with the project ("digits"): below the environment's
/// WEIGHTSMITH_DATA_DIR where that is set, else `<executable>/../share/weightsmith/data`, else the
/// source tree this was built from. Throws Error{kInput} naming the folders that were tried.
std::filesystem::path shipped_data_folder(const std::string& name);

}  // namespace weightsmith
