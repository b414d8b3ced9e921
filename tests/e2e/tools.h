#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/subprocess.h"
#include "weightsmith/model/script_model.h"

/// Running the tools as a user does, and what must hold of every run.
namespace weightsmith::testing {

/// The tools' own processes keep to one thread that does not spin, unless `options` says otherwise.
ProgramResult lookaround_train(const std::vector<std::string>& arguments,
                               ProgramOptions options = {});
/// In a shell, with a redirection like ">&-".
ProgramResult lookaround_train_redirected(const std::string& redirection,
                                          std::vector<std::string> arguments);
ProgramResult mudsc_merge(const std::vector<std::string>& arguments, ProgramOptions options = {});
ProgramResult modelgif_dist(const std::vector<std::string>& arguments, ProgramOptions options = {});

/// Where the executables are.
std::filesystem::path tools_folder();

/// Checks that a run ended with 0 and printed one JSON object; returns it.
nlohmann::json summary_of(const ProgramResult& result);

/// Checks a run with --quiet that failed as documented: the exit code, nothing on standard output,
/// one line `TOOL: error: WHERE: WHAT (REMEDY)` on standard error that holds all of `parts`.
void check_failure(const ProgramResult& result, const std::string& tool, int exit_code,
                   const std::vector<std::string>& parts);

/// Checks that a folder holds no temporary file, no results.json and nothing half-written: every
/// file in it of a format of ours reads.
void check_nothing_half_written(const std::filesystem::path& folder);

/// Writes a configuration; returns its path as an argument.
std::string write_config(const std::filesystem::path& path, const nlohmann::json& config);

/// Names of the files under a folder, relative to it and sorted.
std::vector<std::string> files_under(const std::filesystem::path& folder);

/// Two epochs of a small perceptron with three heads on 200 of the digits.
nlohmann::json small_training();
/// The average of two models, unscored, without data.
nlohmann::json plain_merge(const std::filesystem::path& a, const std::filesystem::path& b);

ScriptModel load_archive(const std::filesystem::path& path);
/// Saves a builtin with weights of its own, as a TorchScript archive.
std::filesystem::path save_builtin(const std::filesystem::path& path, const std::string& name,
                                   const nlohmann::json& options, std::uint64_t seed);
/// A perceptron 64-8-8-10.
std::filesystem::path save_mlp(const std::filesystem::path& path, std::uint64_t seed);

}  // namespace weightsmith::testing
