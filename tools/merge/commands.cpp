#include "merge/commands.h"

#include <chrono>
#include <limits>
#include <memory>

#include "weightsmith/match/align.h"
#include "weightsmith/match/zip.h"
#include "weightsmith/tensor/safetensors.h"

namespace weightsmith {
namespace {

struct MatchFlags {
  std::string file;
  std::int64_t models = 2;
  std::string method = "zip";
  std::int64_t blocks = 1;
  ZipOptions zip;
  std::int64_t repeat = 1;
};

nlohmann::json run_match(const MatchFlags& flags, Run& run) {
  const SafetensorsFile file = read_safetensors(flags.file);
  const auto sims = file.tensors.find("sims");
  if (sims == file.tensors.end())
    throw Error(ErrorKind::kInput, flags.file, "holds no tensor called \"sims\"",
                "store the similarity matrix under that name");
  const Similarity similarity = all_pairs_similarity(sims->second, flags.models, flags.file);
  check_finite(similarity, flags.file);
  Matching matching;
  double best_s = std::numeric_limits<double>::infinity();
  Phase phase(run.progress(), "match", flags.repeat, "runs");
  for (std::int64_t i = 0; i < flags.repeat; ++i) {
    const auto start = std::chrono::steady_clock::now();
    matching = flags.method == "align" ? align(similarity, flags.blocks, flags.file)
                                       : zip(similarity, flags.zip, flags.blocks, flags.file);
    best_s = std::min(
        best_s, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    phase.update(i + 1);
  }
  return {{"assign", matching.slot},
          {"value", matching.value},
          {"slots", matching.slots},
          {"seconds", best_s}};
}

}  // namespace

Command match_command() {
  const auto define = [](CLI::App& app) -> std::function<nlohmann::json(Run&)> {
    auto flags = std::make_shared<MatchFlags>();
    // CLI11's PositiveNumber spells out the largest double in its message.
    const CLI::Range count(std::int64_t{1}, std::int64_t{1'000'000}, "1 or more");
    app.add_option("FILE", flags->file, "safetensors file with the similarity matrix `sims` (O, O)")
        ->required();
    app.add_option("--models", flags->models, "Models whose units are stacked in it")
        ->capture_default_str()
        ->check(count);
    app.add_option("--method", flags->method, "align or zip")
        ->capture_default_str()
        ->check(CLI::IsMember({"align", "zip"}));
    app.add_option("--blocks", flags->blocks, "Equal blocks that move as wholes")
        ->capture_default_str()
        ->check(count);
    app.add_option("--reduce", flags->zip.reduce, "zip: share of the stacked units merged away")
        ->capture_default_str();
    app.add_option("--a", flags->zip.a, "zip: factor on a merged cluster's similarities")
        ->capture_default_str();
    app.add_option("--b", flags->zip.b, "zip: budget of merges inside one model")
        ->capture_default_str();
    app.add_option("--b-block", flags->zip.b_block, "zip: budget of merges inside one block")
        ->capture_default_str();
    app.add_option("--repeat", flags->repeat, "Time the best of K runs")
        ->capture_default_str()
        ->check(count);
    return [flags](Run& run) { return run_match(*flags, run); };
  };
  return {"match", "Match the similarity matrix of a file and print the assignment", define};
}

}  // namespace weightsmith
