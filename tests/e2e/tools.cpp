#include "tools.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <regex>

#include "support/files.h"
#include "weightsmith/model/script_model.h"
#include "weightsmith/tensor/safetensors.h"

namespace weightsmith::testing {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

ProgramResult run_quietly(const char* tool, const std::vector<std::string>& arguments,
                          ProgramOptions options) {
  options.environment.emplace("OMP_NUM_THREADS", "1");
  options.environment.emplace("OMP_WAIT_POLICY", "passive");
  return run_program(tool, arguments, options);
}

}  // namespace

ProgramResult lookaround_train(const std::vector<std::string>& arguments, ProgramOptions options) {
  return run_quietly(LOOKAROUND_TRAIN, arguments, std::move(options));
}

ProgramResult lookaround_train_redirected(const std::string& redirection,
                                          std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(),
                   {"-c", "exec \"$0\" \"$@\" " + redirection, LOOKAROUND_TRAIN});
  return run_quietly("/bin/sh", arguments, {});
}

std::filesystem::path tools_folder() {
  return std::filesystem::path(LOOKAROUND_TRAIN).parent_path();
}

ProgramResult mudsc_merge(const std::vector<std::string>& arguments, ProgramOptions options) {
  return run_quietly(MUDSC_MERGE, arguments, std::move(options));
}

ProgramResult modelgif_dist(const std::vector<std::string>& arguments, ProgramOptions options) {
  return run_quietly(MODELGIF_DIST, arguments, std::move(options));
}

json summary_of(const ProgramResult& result) {
  INFO(result.err);
  REQUIRE_FALSE(result.timed_out);
  REQUIRE(result.exit_code == 0);
  const json summary = json::parse(result.out, nullptr, /*allow_exceptions=*/false);
  REQUIRE(summary.is_object());
  return summary;
}

void check_failure(const ProgramResult& result, const std::string& tool, int exit_code,
                   const std::vector<std::string>& parts) {
  INFO(result.err);
  CHECK_FALSE(result.timed_out);
  CHECK(result.exit_code == exit_code);
  CHECK(result.out.empty());
  CHECK(std::count(result.err.begin(), result.err.end(), '\n') == 1);
  CHECK(std::regex_match(result.err, std::regex(tool + ": error: .+: .+ \\(.+\\)\n")));
  for (const std::string& part : parts) CHECK_THAT(result.err, Catch::Contains(part));
}

void check_nothing_half_written(const fs::path& folder) {
  for (const std::string& name : files_under(folder)) {
    INFO(name);
    const fs::path path = folder / name;
    CHECK(name.find(".tmp-") == std::string::npos);
    CHECK(path.filename() != "results.json");
    if (path.extension() == ".json")
      CHECK(json::accept(read_bytes(path)));
    else if (path.extension() == ".safetensors")
      CHECK_NOTHROW(read_safetensors(path));
    else if (path.extension() == ".pt")
      CHECK_NOTHROW(load_archive(path));
  }
}

ScriptModel load_archive(const fs::path& path) {
  ModelRef reference;
  reference.script = path;
  return ScriptModel::load(reference, {});
}

std::string write_config(const fs::path& path, const json& config) {
  return write_bytes(path, config.dump(2)).string();
}

std::vector<std::string> files_under(const fs::path& folder) {
  std::vector<std::string> names;
  if (!fs::exists(folder)) return names;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file()) names.push_back(fs::relative(entry.path(), folder).string());
  std::sort(names.begin(), names.end());
  return names;
}

json small_training() {
  return {{"model", {{"builtin", "mlp"}, {"options", {{"hidden", {16, 16}}}}}},
          {"data",
           {{"train", {{"split", "train"}, {"limit", 200}}},
            {"test", {{"split", "test"}, {"limit", 100}}}}},
          {"augmentations", {json::array(), {"random_crop"}, {"rotation"}}},
          {"epochs", 2},
          {"batch_size", 32}};
}

json plain_merge(const fs::path& a, const fs::path& b) {
  return {{"models", {a.string(), b.string()}},
          {"method", "average"},
          {"normalization", {{"mode", "none"}}}};
}

fs::path save_builtin(const fs::path& path, const std::string& name, const json& options,
                      std::uint64_t seed) {
  ModelRef reference;
  reference.builtin = name;
  reference.options = options;
  LoadOptions load;
  load.seed = seed;
  ScriptModel::load(reference, load).save(path);
  return path;
}

fs::path save_mlp(const fs::path& path, std::uint64_t seed) {
  return save_builtin(path, "mlp", {{"hidden", {8, 8}}}, seed);
}

}  // namespace weightsmith::testing
