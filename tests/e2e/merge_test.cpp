// mudsc-merge from two trained networks to one.
#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <csignal>

#include "support/files.h"
#include "support/temporary_folder.h"
#include "tools.h"
#include "weightsmith/core/rng.h"
#include "weightsmith/core/sha256.h"
#include "weightsmith/graph/unit_groups.h"
#include "weightsmith/model/script_model.h"
#include "weightsmith/tensor/safetensors.h"

using namespace weightsmith;
using namespace weightsmith::testing;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

const json kObjective = {{"type", "embedding"}, {"embeddings", {{"random", 16}, {"seed", 0}}}};

/// Two networks that learnt half of the digits each.
struct TrainedPair {
  TrainedPair() {
    json config = small_training();
    config["model"] = {{"builtin", "convnet"}, {"options", {{"width", 4}, {"outputs", 16}}}};
    config["objective"] = kObjective;
    config["objective"]["candidates"] = "data";
    const std::string file = write_config(folder / "train.json", config);
    for (const auto& [name, classes] :
         {std::pair{"low", "[0, 1, 2, 3, 4]"}, {"high", "[5, 6, 7, 8, 9]"}}) {
      const std::string value = classes;
      summary_of(
          lookaround_train({"--config", file, "--out", (folder / name).string(), "--quiet", "--set",
                            "data.train.classes=" + value, "--set", "data.test.classes=" + value}));
    }
  }
  fs::path low() const { return folder / "low" / "model.pt"; }
  fs::path high() const { return folder / "high" / "model.pt"; }
  TemporaryFolder folder;
};

const TrainedPair& trained() {
  static const TrainedPair pair;
  return pair;
}

/// All methods and spaces, scored.
json comparison() {
  json compare = json::array({{{"method", "average"}}});
  for (const char* method : {"align", "zip"})
    for (const char* space : {"weight", "activation", "dual"})
      compare.push_back({{"method", method}, {"space", space}});
  return {{"models", {trained().low().string(), trained().high().string()}},
          {"compare", compare},
          {"activations", {{"data", {{"split", "train"}, {"limit", 200}}}}},
          {"evaluation",
           {{"objective", kObjective},
            {"sets",
             {{{"name", "all"}, {"data", {{"split", "test"}, {"limit", 100}}}},
              {{"name", "low"},
               {"data", {{"split", "test"}, {"classes", {0, 1, 2, 3, 4}}}},
               {"candidates", "data"}}}}}}};
}

const std::vector<std::string> kVariants{"align-activation", "align-dual-0.5", "align-weight",
                                         "average",          "zip-activation", "zip-dual-0.5",
                                         "zip-weight"};

/// The same network with the units of every group in a random order.
void permute_units(ScriptModel& model, const UnitGroups& groups) {
  TensorMap state = model.state_dict();
  Rng rng(11);
  for (const UnitGroup& group : groups.groups) {
    const auto order = random_permutation(group.units, rng);
    for (const GroupMember& member : group.members) {
      at::Tensor stretch =
          state.at(member.parameter).detach().narrow(member.axis, member.offset, member.length);
      const at::Tensor before = stretch.clone();
      const std::int64_t elements = member.length / group.units;
      for (std::int64_t u = 0; u < group.units; ++u)
        stretch.narrow(member.axis, u * elements, elements)
            .copy_(before.narrow(member.axis, order[u] * elements, elements));
    }
  }
}

std::string print(const fs::path& path) { return path.string(); }

}  // namespace

TEST_CASE("merging two trained networks in every method and space") {
  const TemporaryFolder folder;
  const std::string file = write_config(folder / "merge.json", comparison());
  const fs::path out = folder / "out";
  const json summary = summary_of(mudsc_merge({"--config", file, "--out", print(out), "--quiet"}));
  CHECK(summary == json::parse(read_bytes(out / "results.json")));
  REQUIRE(summary["variants"].size() == kVariants.size());
  REQUIRE(summary["originals"].size() == 3);

  std::vector<std::string> expected{"config.json", "log.txt",   "results.json", "run.json",
                                    "scores.csv",  "table.csv", "table.md"};
  for (const std::string& variant : kVariants)
    for (const char* name :
         {"groups.json", "matching.safetensors", "merged.pt", "merged.safetensors"})
      expected.push_back(variant + "/" + name);
  std::sort(expected.begin(), expected.end());
  CHECK(files_under(out) == expected);

  const std::string table = read_bytes(out / "table.md");
  const at::Tensor images = at::rand({4, 1, 8, 8});
  const at::NoGradGuard no_grad;
  for (const json& variant : summary["variants"]) {
    const std::string name = variant["name"];
    INFO(name);
    CHECK(table.find("| " + name + " ") != std::string::npos);
    CHECK(variant["scores"]["all"]["samples"] == 100);
    const fs::path at = out / name;
    CHECK(variant["model"] == print(at / "merged.pt"));
    ScriptModel merged = load_archive(at / "merged.pt");
    CHECK(merged.forward(images).isfinite().all().item<bool>());
    const TensorMap weights = read_safetensors(at / "merged.safetensors").tensors;
    for (const auto& [key, tensor] : merged.state_dict()) CHECK(at::equal(tensor, weights.at(key)));
    const TensorMap matching = read_safetensors(at / "matching.safetensors").tensors;
    const UnitGroups groups = read_unit_groups(at / "groups.json");
    REQUIRE(groups.groups.size() == 4);
    for (const UnitGroup& group : groups.groups)
      CHECK(matching.at("slot/" + group.name).sizes() == at::IntArrayRef{2, group.units});
  }

  const json run = json::parse(read_bytes(out / "run.json"));
  CHECK(run["inputs_sha256"][print(trained().low())] == sha256_of_file(trained().low()));
  CHECK(run["inputs_sha256"][print(trained().high())] == sha256_of_file(trained().high()));
  CHECK(run["inputs_sha256"][file] == sha256_of_file(file));
  CHECK(run["phases_s"].contains("assignment"));

  // The network is the same again from the configuration beside it.
  summary_of(mudsc_merge(
      {"--config", print(out / "config.json"), "--out", print(folder / "again"), "--quiet"}));
  for (const std::string& variant : kVariants)
    CHECK(read_bytes(out / variant / "merged.safetensors") ==
          read_bytes(folder / "again" / variant / "merged.safetensors"));
}

TEST_CASE("aligning a network with a permuted copy of itself returns its function") {
  const TemporaryFolder folder;
  for (const auto& [name, options] :
       {std::pair<std::string, json>{"mlp", {{"hidden", {16, 16}}}},
        {"convnet", {{"width", 8}}},
        {"resnet20", {{"depth", 8}, {"width", 0.5}, {"channels", 1}}}}) {
    INFO(name);
    const fs::path original = save_builtin(folder / "a.pt", name, options, 5);
    const ScriptModel loaded = load_archive(original);
    ScriptModel permuted = loaded.clone();
    const at::NoGradGuard no_grad;
    permute_units(permuted, check_unit_groups(builtin_unit_groups(name, options),
                                              permuted.state_dict(), name));
    permuted.save(folder / "b.pt");

    const at::Tensor images = at::rand({8, 1, 8, 8});
    ScriptModel a = loaded.clone();
    const at::Tensor wanted = a.forward(images);
    REQUIRE((permuted.forward(images) - wanted).abs().max().item<double>() < 1e-4);
    const auto distance = [&](const std::string& method) {
      json config = plain_merge(original, folder / "b.pt");
      config["method"] = method;
      config["space"] = "weight";
      const std::string file = write_config(folder / "merge.json", config);
      summary_of(mudsc_merge(
          {"--config", file, "--out", print(folder / "out"), "--overwrite", "--quiet"}));
      ScriptModel merged = load_archive(folder / "out" / "merged.pt");
      return (merged.forward(images) - wanted).abs().max().item<double>();
    };
    CHECK(distance("align") < 1e-4);
    CHECK(distance("average") > 1e-3);  // the permutation did disturb
  }
}

TEST_CASE("a group file gives what auto gives") {
  const TemporaryFolder folder;
  json config = plain_merge(trained().low(), trained().high());
  config["method"] = "zip";
  config["space"] = "weight";
  const std::string file = write_config(folder / "merge.json", config);
  summary_of(mudsc_merge({"--config", file, "--out", print(folder / "auto"), "--quiet"}));
  const std::string groups = print(folder / "auto" / "groups.json");
  summary_of(mudsc_merge(
      {"--config", file, "--out", print(folder / "file"), "--quiet", "--set", "groups=" + groups}));
  for (const char* name : {"merged.safetensors", "matching.safetensors", "groups.json"})
    CHECK(read_bytes(folder / "auto" / name) == read_bytes(folder / "file" / name));
  CHECK(json::parse(read_bytes(folder / "file" / "run.json"))["inputs_sha256"].contains(groups));
}

TEST_CASE("Ctrl-C in mid-merge ends with 130 and leaves whole files") {
  const TemporaryFolder folder;
  json config = comparison();
  // The later variants are slow enough to be met.
  const json wide = {{"hidden", {256, 256}}};
  config["models"] = {print(save_builtin(folder / "a.pt", "mlp", wide, 1)),
                      print(save_builtin(folder / "b.pt", "mlp", wide, 2))};
  config["evaluation"] = json::object();
  const std::string file = write_config(folder / "merge.json", config);
  const fs::path out = folder / "out";
  ProgramOptions options;
  options.signal = SignalPlan{SIGINT, out / "average" / "merged.pt", "", {}};
  const ProgramResult result =
      mudsc_merge({"--config", file, "--out", print(out), "--quiet"}, options);
  CHECK(result.exit_code == 130);
  CHECK(result.out.empty());
  CHECK_THAT(result.err, Catch::StartsWith("mudsc-merge: stopped by signal 2"));
  CHECK(std::count(result.err.begin(), result.err.end(), '\n') == 1);
  check_nothing_half_written(out);
  CHECK_FALSE(fs::exists(out / "zip-dual-0.5"));
  const json outputs = json::parse(read_bytes(out / "run.json"))["outputs"];
  CHECK(std::find(outputs.begin(), outputs.end(), "average/merged.pt") != outputs.end());

  summary_of(mudsc_merge({"--config", file, "--out", print(out), "--quiet", "--resume"}));
  CHECK(fs::exists(out / "zip-dual-0.5" / "merged.pt"));
}

TEST_CASE("a run that replaces another removes what that one wrote, and nothing else") {
  const TemporaryFolder folder;
  json config = plain_merge(save_mlp(folder / "a.pt", 1), save_mlp(folder / "b.pt", 2));
  config["compare"] = {{{"method", "average"}},
                       {{"method", "align"}, {"space", "weight"}},
                       {{"method", "zip"}, {"space", "weight"}}};
  const std::string file = write_config(folder / "merge.json", config);
  const fs::path out = folder / "out";
  const auto merge = [&](std::vector<std::string> more) {
    std::vector<std::string> arguments{"--config", file, "--out", print(out), "--quiet"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return mudsc_merge(arguments);
  };
  summary_of(merge({}));
  const json first = json::parse(read_bytes(out / "run.json"))["outputs"];
  CHECK(first.size() == 12);
  write_bytes(out / "notes.txt", "mine");
  write_bytes(out / "zip-weight" / "notes.txt", "mine");
  // A link in place of a folder of ours leads to files that are not ours.
  fs::create_directories(folder / "elsewhere");
  fs::rename(out / "align-weight", folder / "elsewhere" / "align-weight");
  fs::create_directory_symlink(folder / "elsewhere" / "align-weight", out / "align-weight");

  const std::vector<std::string> replace{"--overwrite", "--set",
                                         R"(compare=[{"method":"average"}])"};
  summary_of(merge(replace));
  CHECK(files_under(out) ==
        std::vector<std::string>{"average/groups.json", "average/matching.safetensors",
                                 "average/merged.pt", "average/merged.safetensors", "config.json",
                                 "log.txt", "notes.txt", "results.json", "run.json",
                                 "zip-weight/notes.txt"});
  CHECK(fs::exists(folder / "elsewhere" / "align-weight" / "merged.pt"));

  // What names files outside, or comes from another tool, is not believed.
  json record = json::parse(read_bytes(out / "run.json"));
  record["outputs"] = {"../a.pt", print(folder / "b.pt"), "notes.txt/../notes.txt", "zip-weight"};
  write_config(out / "run.json", record);
  summary_of(merge(replace));
  record["tool"] = "lookaround-train";
  record["outputs"] = {"notes.txt"};
  write_config(out / "run.json", record);
  summary_of(merge(replace));
  for (const fs::path& path :
       {folder / "a.pt", folder / "b.pt", out / "notes.txt", out / "zip-weight" / "notes.txt"})
    CHECK(fs::exists(path));
}

TEST_CASE("a run that replaces another leaves what it is made of") {
  const TemporaryFolder folder;
  json config = plain_merge(save_mlp(folder / "a.pt", 1), save_mlp(folder / "b.pt", 2));
  config["compare"] = {{{"method", "average"}}, {{"method", "zip"}, {"space", "weight"}}};
  const fs::path out = folder / "out";
  const auto merge = [&] {
    const std::string file = write_config(folder / "merge.json", config);
    summary_of(mudsc_merge({"--config", file, "--out", print(out), "--overwrite", "--quiet"}));
  };
  merge();
  fs::create_directory_symlink(out, folder / "link");
  config["models"][0] = print(folder / "link" / "zip-weight" / "merged.pt");
  config["compare"] = {{{"method", "average"}}};
  merge();
  CHECK(files_under(out) ==
        std::vector<std::string>{"average/groups.json", "average/matching.safetensors",
                                 "average/merged.pt", "average/merged.safetensors", "config.json",
                                 "log.txt", "results.json", "run.json", "zip-weight/merged.pt"});
}

TEST_CASE("a dry run of a merge checks, plans and writes nothing") {
  const TemporaryFolder folder;
  const std::string file = write_config(folder / "merge.json", comparison());
  const fs::path out = folder / "out";
  const json plan =
      summary_of(mudsc_merge({"--config", file, "--out", print(out), "--dry-run", "--quiet"}));
  CHECK(plan["dry_run"] == true);
  CHECK(plan["models"] == 2);
  CHECK(plan["groups"] == 4);
  CHECK(plan["units"] == 4 + 8 + 8 + 16);
  CHECK(plan["variants"].size() == kVariants.size());
  CHECK(plan["activation_samples"] == 200);
  CHECK(plan["evaluation_samples"]["all"] == 100);
  CHECK_FALSE(fs::exists(out));
}
