// What the tools print when asked about themselves, and how a configuration comes to be.
#include <catch2/catch.hpp>
#include <cctype>
#include <cstdlib>
#include <sstream>

#include "support/files.h"
#include "support/temporary_folder.h"
#include "tools.h"
#include "weightsmith/core/blas_kernels.h"

using namespace weightsmith;
using namespace weightsmith::testing;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

/// Words in lower case: versions of CLI11 differ in how they lay them out, and write a default as
/// "FLOAT=0.5" or "FLOAT [0.5]".
std::string words_of(const std::string& text) {
  std::istringstream in(text);
  std::string words;
  for (std::string word; in >> word; words += word + "\n") {
    if (word.starts_with('[') && word.ends_with(']')) word = word.substr(1, word.size() - 2);
    for (char& c : word)
      c = c == '=' ? '\n' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  return words;
}

/// Compares with the text that was approved; WEIGHTSMITH_APPROVE=1 approves what is printed now.
void check_approved(const std::string& name, const std::string& text) {
  const fs::path path = fs::path(WEIGHTSMITH_SOURCE_DIR) / "tests" / "e2e" / "approved" / name;
  if (std::getenv("WEIGHTSMITH_APPROVE") != nullptr) write_bytes(path, text);
  INFO("if this is what it should be, run again with WEIGHTSMITH_APPROVE=1: " << name);
  CHECK(words_of(text) == words_of(read_bytes(path)));
}

std::string printed(const ProgramResult& result) {
  CHECK(result.exit_code == 0);
  CHECK(result.err.empty());
  return result.out;
}

}  // namespace

TEST_CASE("--help and --version") {
  check_approved("lookaround-train.help.txt", printed(lookaround_train({"--help"})));
  check_approved("mudsc-merge.help.txt", printed(mudsc_merge({"--help"})));
  check_approved("mudsc-merge.match.help.txt", printed(mudsc_merge({"match", "--help"})));
  check_approved("mudsc-merge.explain.help.txt", printed(mudsc_merge({"explain", "--help"})));
  check_approved("modelgif-dist.help.txt", printed(modelgif_dist({"--help"})));
  check_approved("modelgif-dist.field.help.txt", printed(modelgif_dist({"field", "--help"})));
  check_approved("modelgif-dist.distance.help.txt", printed(modelgif_dist({"distance", "--help"})));
  CHECK_THAT(printed(lookaround_train({"--version"})),
             Catch::Matches("lookaround-train \\(weightsmith\\) [0-9]+\\.[0-9]+\\.[0-9]+\n"
                            "git [^\n]+, LibTorch [0-9.]+[^\n]*\n"));
  CHECK_THAT(printed(mudsc_merge({"--version"})), Catch::StartsWith("mudsc-merge (weightsmith) "));
}

TEST_CASE("no tool computes with OpenBLAS's oldest kernels on a processor that can do better") {
  const VectorUnits has = vector_units();
  if (!has.avx2 || std::getenv("OPENBLAS_CORETYPE") != nullptr || blas_kernels().empty()) {
    WARN("nothing to choose from here");
    return;
  }
  ProgramOptions options;
  options.environment["OPENBLAS_VERBOSE"] = "2";  // says which kernels it took
  const ProgramResult result = mudsc_merge({"--version"}, options);
  CHECK(result.exit_code == 0);
  CHECK_THAT(result.out, Catch::StartsWith("mudsc-merge (weightsmith) "));
  const std::string said = result.out + result.err;
  const std::size_t last = said.rfind("Core: ");
  INFO(said);
  REQUIRE(last != std::string::npos);
  CHECK(said.substr(last + 6, 8) != "Prescott");
}

TEST_CASE("--print-schema is the schema in one document") {
  for (const auto& run : {lookaround_train, modelgif_dist, mudsc_merge}) {
    const json schema = summary_of(run({"--print-schema"}, {}));
    CHECK(schema["$schema"] == "http://json-schema.org/draft-07/schema#");
    CHECK(schema["definitions"].contains("data"));
    CHECK(schema.dump().find("common.schema.json") == std::string::npos);
  }
}

TEST_CASE("defaults, file, --set and flags, in this order") {
  const TemporaryFolder folder;
  const std::string file = write_config(folder / "train.json", small_training());
  const json config = summary_of(lookaround_train(
      {"--config", file, "--print-config", "--set", "epochs=7", "--set", "method.k=2", "--set",
       "seed=1", "--seed", "9", "--threads", "3", "--device", "cpu", "--out", "x"}));
  CHECK(config["epochs"] == 7);
  CHECK(config["method"]["type"] == "lookaround");
  CHECK(config["method"]["heads"] == 3);
  CHECK(config["method"]["k"] == 2);
  CHECK(config["seed"] == 9);
  CHECK(config["threads"] == 3);
  CHECK(config["device"] == "cpu");
  CHECK(config["batch_size"] == 32);
  CHECK(config["optimizer"]["lr"] == 0.1);
  CHECK(config["model"]["options"]["hidden"] == json{16, 16});
}

TEST_CASE("paths start from the file's folder, on the command line from the current one") {
  const TemporaryFolder folder;
  fs::create_directories(folder / "configs" / "deep");
  fs::create_directories(folder / "work");
  write_config(folder / "configs" / "deep" / "merge.json",
               {{"models", {"../a.pt", "${WS_TEST_MODELS}/b.pt"}},
                {"method", "average"},
                {"normalization", {{"mode", "none"}}},
                {"out", "../runs"}});
  ProgramOptions options;
  options.folder = folder / "work";
  options.environment = {{"WS_TEST_MODELS", "/models"}, {"HOME", "/home/somebody"}};
  const auto config = [&](std::vector<std::string> more) {
    more.insert(more.end(), {"--config", "../configs/deep/merge.json", "--print-config"});
    return summary_of(mudsc_merge(more, options));
  };
  const fs::path root = fs::canonical(folder.path());
  const auto is = [](const json& text, const fs::path& path) {
    return fs::path(text.get<std::string>()).lexically_normal() == path;
  };
  const auto script = [](const json& c, int model) {
    const json& m = c["models"][model];
    return m.is_string() ? m : m["script"];
  };
  const json from_file = config({});
  CHECK(is(script(from_file, 0), root / "configs" / "a.pt"));
  CHECK(is(script(from_file, 1), "/models/b.pt"));
  CHECK(is(from_file["out"], root / "configs" / "runs"));
  const json from_line =
      config({"--out", "here", "--set", "models.0=mine.pt", "--set", "models.1=~/b.pt"});
  CHECK(is(script(from_line, 0), root / "work" / "mine.pt"));
  CHECK(is(script(from_line, 1), "/home/somebody/b.pt"));
  CHECK(is(from_line["out"], root / "work" / "here"));
}

TEST_CASE("a configuration from standard input starts from the current folder") {
  const TemporaryFolder folder;
  ProgramOptions options;
  options.folder = folder.path();
  json config = small_training();
  config["epochs"] = 1;
  config["out"] = "out";
  options.input = "// comments are allowed\n" + config.dump();
  const json summary = summary_of(lookaround_train({"--config", "-", "--quiet"}, options));
  CHECK(summary["epochs"] == 1);
  CHECK(fs::exists(folder / "out" / "results.json"));
  CHECK(json::parse(read_bytes(folder / "out" / "run.json"))["inputs_sha256"].contains("-"));

  options.input = "{\"epochs\":\n}";
  check_failure(lookaround_train({"--config", "-", "--quiet"}, options), "lookaround-train", 2,
                {"standard input", "line 2"});
}

TEST_CASE("--quiet is silent, otherwise standard error tells what happens, and the log keeps it") {
  const TemporaryFolder folder;
  const std::string file = write_config(folder / "train.json", small_training());
  const std::string log = (folder / "run.log").string();
  const auto train = [&](std::vector<std::string> more) {
    more.insert(more.end(), {"--config", file, "--out", (folder / "out").string(), "--overwrite"});
    const ProgramResult result = lookaround_train(more);
    CHECK(summary_of(result).contains("test"));
    return result.err;
  };
  CHECK(train({"--quiet", "--log-file", log}).empty());
  CHECK_THAT(read_bytes(log), Catch::Contains("train: begins"));
  CHECK_THAT(train({"-v"}), Catch::Contains("train: begins"));
}
