// mudsc-merge beyond one matching of two networks: sweeps, several models, repair, reuse.
#include <ATen/ATen.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <csignal>
#include <functional>
#include <map>
#include <string>

#include "merges.h"
#include "support/archives.h"
#include "support/files.h"
#include "support/networks.h"
#include "support/temporary_folder.h"
#include "tools.h"
#include "weightsmith/model/script_model.h"
#include "weightsmith/tensor/safetensors.h"

using namespace weightsmith;
using namespace weightsmith::testing;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

const json kMlp = {{"hidden", {12, 12}}};

}  // namespace

TEST_CASE("a sweep keeps the balance that is best on held-out data") {
  const TemporaryFolder folder;
  json config = scored(merge_of(folder, "mlp", kMlp, 2));
  config["balance"] = {0.1, 0.5, 0.9};
  config["select_on"] = "joint";
  const json summary = run(folder, config, "out");
  REQUIRE(summary["variants"].size() == 1);
  const json& variant = summary["variants"][0];
  CHECK(variant["name"] == "zip-dual");
  CHECK(variant["select_on"] == "joint");
  REQUIRE(variant["sweep"].size() == 3);
  double best = -1;
  for (const json& point : variant["sweep"]) {
    CHECK(point["selection"]["samples"] == 100);
    best = std::max(best, point["selection"]["accuracy"].get<double>());
  }
  bool chosen_is_best = false;
  for (const json& point : variant["sweep"])
    if (point["balance"] == variant["balance"])
      chosen_is_best = point["selection"]["accuracy"] == best;
  CHECK(chosen_is_best);
  // Chosen on training data, scored on test data.
  CHECK(variant["scores"]["joint"]["samples"] == 100);
  CHECK(variant["scores"].contains("task_average"));
  CHECK(variant["scores"]["low"].contains("ece"));

  const fs::path out = folder / "out";
  const auto rows = lines_of(out / "sweep.csv");
  REQUIRE(rows.size() == 4);
  CHECK_THAT(rows[0], Catch::StartsWith("balance,chosen,objective,"));
  CHECK(std::count_if(rows.begin(), rows.end(),
                      [](const std::string& row) { return row.find(",1,") < 5; }) == 1);
  CHECK_THAT(read_bytes(out / "sweep.svg"), Catch::StartsWith("<svg "));
  CHECK(lines_of(out / "scores.csv").size() == 1 + 4 * 4);  // three originals' rows, one merged
  CHECK_THAT(read_bytes(out / "table.md"),
             Catch::Contains("task average") && Catch::Contains("95 % interval"));

  // Every point of a sweep can be given back, and gives the same network.
  const std::string point =
      print(out / "sweep" / ("zip-dual-" + variant["balance"].dump() + ".safetensors"));
  json again = config;
  again.erase("balance");
  again.erase("select_on");
  again["matching"] = point;
  const json reused = run(folder, again, "reused");
  CHECK(reused["variants"][0]["name"] == "matching");
  CHECK(reused["variants"][0]["scores"] == variant["scores"]);
  CHECK(read_bytes(folder / "reused/merged.safetensors") == read_bytes(out / "merged.safetensors"));
}

TEST_CASE("without labels the dual objective chooses, in every variant") {
  const TemporaryFolder folder;
  json config = merge_of(folder, "mlp", kMlp, 2);
  config["compare"] = {{{"method", "align"}, {"balance", {0.2, 0.8}}},
                       {{"method", "zip"}, {"balance", {0.2, 0.8}}},
                       {{"method", "zip"}, {"space", "activation"}, {"balance", {0.2, 0.8}}}};
  const json summary = run(folder, config, "out");
  REQUIRE(summary["variants"].size() == 3);
  for (int v = 0; v < 2; ++v) {
    const json& variant = summary["variants"][v];
    CHECK(variant["select_on"] == "similarity");
    double best = -1;
    for (const json& point : variant["sweep"])
      best = std::max(best, point["dual_objective"].get<double>());
    for (const json& point : variant["sweep"])
      if (point["balance"] == variant["balance"]) CHECK(point["dual_objective"] == best);
  }
  CHECK_FALSE(summary["variants"][2].contains("sweep"));
  CHECK(fs::exists(folder / "out/align-dual/sweep.csv"));
  CHECK(fs::exists(folder / "out/zip-dual/sweep/zip-dual-0.8.safetensors"));
  CHECK_FALSE(fs::exists(folder / "out/zip-activation/sweep.csv"));
}

TEST_CASE("what a variant is chosen by does not depend on the variants beside it") {
  const TemporaryFolder folder;
  json config = merge_of(folder, "mlp", kMlp, 3);
  const json align = {{"method", "align"}, {"balance", {0.2, 0.8}}};
  config["compare"] = {align};
  const json alone = run(folder, config, "alone");
  // Its similarities of all pairs serve align, too, which looks at those with the first model.
  config["compare"] = {align, {{"method", "zip"}, {"space", "activation"}}};
  const json beside = run(folder, config, "beside");
  for (int p = 0; p < 2; ++p)
    for (const char* key : {"weight_agreement", "activation_agreement"})
      CHECK(alone["variants"][0]["sweep"][p].at(key).get<double>() ==
            Approx(beside["variants"][0]["sweep"][p].at(key).get<double>()).epsilon(1e-6));
}

TEST_CASE("zip keeps to the budgets of models and of blocks") {
  const TemporaryFolder folder;
  json config = merge_of(folder, "convnet", {{"width", 8}, {"norm", "group"}, {"groups", 2}}, 2);
  run(folder, config, "free");
  const auto matching_with = [&](const char* budget) {
    config["zip"] = {{budget, 0}};
    run(folder, config, budget);
    return read_bytes(folder / budget / "matching.safetensors");
  };
  const std::string free = read_bytes(folder / "free/matching.safetensors");
  const std::string models = matching_with("b");
  const std::string blocks = matching_with("b_block");
  CHECK(free != models);
  CHECK(free != blocks);
  CHECK(models != blocks);
}

TEST_CASE("the balances of a sweep share one pass over the data") {
  const TemporaryFolder folder;
  const auto phases = [&](const json& balance, const std::string& out) {
    json config = merge_of(folder, "mlp", kMlp, 2);
    config["balance"] = balance;
    config["normalization"]["mode"] = "none";
    run(folder, config, out, {"--verbose"});
    std::map<std::string, int> begun;
    for (const std::string& line : lines_of(folder / out / "log.txt"))
      if (line.ends_with(": begins"))
        if (const std::size_t at = line.find(" debug "); at != std::string::npos)
          ++begun[line.substr(at + 7)];
    return begun;
  };
  std::map<std::string, int> one = phases(0.5, "one");
  std::map<std::string, int> three = phases({0.2, 0.5, 0.8}, "three");
  // What runs the networks runs as often; what is matched anew needs the statistics only.
  CHECK(one.at("activations: begins") == 1);
  int matched = 0;
  for (const auto& [phase, times] : three)
    if (phase.starts_with("match ")) {
      matched += times;
    } else if (phase != "compare matchings: begins") {
      INFO(phase);
      CHECK(one[phase] == times);
    }
  CHECK(matched > 1);
}

TEST_CASE("a stopped sweep goes on where it stopped") {
  const TemporaryFolder folder;
  json config = merge_of(folder, "mlp", {{"hidden", {256, 256}}}, 2);
  config["balance"] = {0.1, 0.3, 0.5, 0.7, 0.9};
  config["activations"]["cache"] = print(folder / "cache");
  const std::string file = write_config(folder / "merge.json", config);
  const fs::path out = folder / "out";
  ProgramOptions options;
  options.signal = SignalPlan{SIGINT, out / "sweep/zip-dual-0.1.safetensors", "", {}};
  const ProgramResult stopped =
      mudsc_merge({"--config", file, "--out", print(out), "--quiet"}, options);
  CHECK(stopped.exit_code == 130);
  check_nothing_half_written(out);
  CHECK_FALSE(fs::exists(out / "sweep/zip-dual-0.9.safetensors"));

  const ProgramResult resumed = mudsc_merge({"--config", file, "--out", print(out), "--resume"});
  const json summary = summary_of(resumed);
  CHECK_THAT(resumed.err, Catch::Contains("zip-dual-0.1: taken from"));
  // The statistics came from the cache: the networks were not run to compare activations.
  const json phases = json::parse(read_bytes(out / "run.json"))["phases_s"];
  CHECK_FALSE(phases.contains("activations"));
  const json whole = run(folder, config, "whole");
  CHECK(summary["variants"][0]["sweep"] == whole["variants"][0]["sweep"]);
  CHECK(read_bytes(out / "merged.safetensors") == read_bytes(folder / "whole/merged.safetensors"));

  // Points of other settings are not taken.
  config["zip"]["a"] = 0.3;
  fs::remove(out / "results.json");
  write_config(folder / "merge.json", config);
  const ProgramResult other = mudsc_merge({"--config", file, "--out", print(out), "--resume"});
  summary_of(other);
  CHECK_THAT(other.err, !Catch::Contains("taken from"));
}

TEST_CASE("the cache answers for the same models and data only") {
  const TemporaryFolder folder;
  json config = merge_of(folder, "convnet", {{"width", 4}}, 2);
  config["activations"]["cache"] = "cache";  // relative to the configuration
  const auto ran_the_networks = [&](const std::string& out) {
    run(folder, config, out);
    return json::parse(read_bytes(folder / out / "run.json"))["phases_s"].contains("activations");
  };
  CHECK(ran_the_networks("first"));
  CHECK(fs::exists(folder / "cache"));
  CHECK_FALSE(ran_the_networks("second"));
  for (const char* name : {"merged.safetensors", "matching.safetensors"})
    CHECK(read_bytes(folder / "first" / name) == read_bytes(folder / "second" / name));
  config["activations"]["data"]["limit"] = 101;
  CHECK(ran_the_networks("third"));
  save_builtin(folder / "b.pt", "convnet", {{"width", 4}}, 77);
  CHECK(ran_the_networks("fourth"));
}

TEST_CASE("three networks merge with shares, aligned to the first or to their mean") {
  const TemporaryFolder folder;
  json config = scored(merge_of(folder, "convnet", {{"width", 4}}, 3));
  config["share"] = {5, 3, 2};
  config["compare"] = {{{"method", "average"}}, {{"method", "align"}}, {{"method", "zip"}}};
  const json first = run(folder, config, "first");
  config["align"]["reference"] = "mean";
  const json mean = run(folder, config, "mean");
  for (const json& summary : {first, mean}) {
    REQUIRE(summary["originals"].size() == 4);
    for (const json& variant : summary["variants"]) {
      ScriptModel merged = load_archive(variant["model"].get<std::string>());
      CHECK(merged.forward(at::rand({2, 1, 8, 8})).isfinite().all().item<bool>());
    }
  }
  const TensorMap average = read_safetensors(folder / "first/average/merged.safetensors").tensors;
  at::Tensor wanted = at::zeros_like(average.at("fc.weight"));
  const std::vector<double> shares{0.5, 0.3, 0.2};
  for (int i = 0; i < 3; ++i)
    wanted += load_archive(config["models"][i].get<std::string>()).state_dict().at("fc.weight") *
              shares[i];
  CHECK(at::allclose(average.at("fc.weight"), wanted, 1e-5, 1e-6));
  // The mean looks at all pairs, the first model at its own alone.
  CHECK(read_bytes(folder / "first/align-dual-0.5/matching.safetensors") !=
        read_bytes(folder / "mean/align-dual-0.5/matching.safetensors"));
}

TEST_CASE("attention heads of three networks are aligned with their mean, too") {
  const TemporaryFolder folder;
  const json vit = {{"image", 8}, {"patch", 4}, {"dim", 32},    {"depth", 1},
                    {"heads", 8}, {"mlp", 32},  {"channels", 1}};
  json config = merge_of(folder, "vit", vit, 3);
  config["method"] = "align";
  config["space"] = "activation";
  const auto slots_with = [&](const char* reference) {
    config["align"] = {{"reference", reference}};
    run(folder, config, reference);
    return read_safetensors(folder / reference / "matching.safetensors").tensors;
  };
  const TensorMap first = slots_with("first");
  const TensorMap mean = slots_with("mean");
  int heads = 0;
  for (const auto& [name, slots] : first)
    if (name.starts_with("slot/") && name.ends_with(".blocks")) {
      ++heads;
      CHECK_FALSE(at::equal(slots, mean.at(name)));
    }
  CHECK(heads > 0);
}

TEST_CASE(
    "a transformer whose heads and units were permuted is merged back, however it is matched") {
  const TemporaryFolder folder;
  const json vit = {{"image", 8}, {"patch", 4}, {"dim", 32},    {"depth", 2},
                    {"heads", 4}, {"mlp", 48},  {"channels", 1}};
  const fs::path a = save_builtin(folder / "a.pt", "vit", vit, 1);
  ScriptModel network = load_archive(a);
  at::manual_seed(1);
  for (auto& [name, tensor] : network.parameters())  // classifiers start at 0
    if (name.find("head") != std::string::npos) tensor.detach().normal_();
  network.save(a.string());
  const fs::path b = folder / "b.pt";
  summary_of(mudsc_merge(
      {"explain", print(a), "--input", "2x1x8x8", "--json", "--quick", "--permuted", print(b)}));

  json config = {{"models", {print(a), print(b)}},
                 {"activations", {{"data", {{"split", "train"}, {"limit", 200}}}}},
                 {"iterations", {{"start", "propagate"}}},
                 {"compare", {{{"method", "average"}}}}};
  for (const char* method : {"align", "zip"})
    for (const char* space : {"weight", "activation", "dual"})
      config["compare"].push_back({{"method", method}, {"space", space}});
  const json summary = run(folder, config, "out");
  const at::Tensor x = at::rand({4, 1, 8, 8});
  const at::Tensor wanted = network.forward(x);
  const double largest = wanted.abs().max().item<double>();
  REQUIRE(largest > 0.1);
  REQUIRE(summary["variants"].size() == 7);
  for (const json& variant : summary["variants"]) {
    const auto name = variant["name"].get<std::string>();
    INFO(name);
    ScriptModel merged = load_archive(folder / "out" / name / "merged.pt");
    const double apart = (merged.forward(x) - wanted).abs().max().item<double>();
    if (name == "average")
      CHECK(apart > 0.1 * largest);
    else
      CHECK(apart < 1e-4 * largest);
  }
}

TEST_CASE("repair works without batch norm, and says where it cannot") {
  const TemporaryFolder folder;
  json config = scored(merge_of(folder, "convnet", {{"width", 4}, {"norm", "none"}}, 2));
  config["method"] = "align";
  config["normalization"]["mode"] = "repair";
  run(folder, config, "repaired");
  config["normalization"]["mode"] = "none";
  run(folder, config, "plain");
  const TensorMap repaired = read_safetensors(folder / "repaired/merged.safetensors").tensors;
  const TensorMap plain = read_safetensors(folder / "plain/merged.safetensors").tensors;
  CHECK_FALSE(at::allclose(repaired.at("conv2.weight"), plain.at("conv2.weight")));
  CHECK_FALSE(at::allclose(repaired.at("conv2.bias"), plain.at("conv2.bias")));
  CHECK(at::equal(repaired.at("fc.bias"), plain.at("fc.bias")));  // of no group

  json groups = json::parse(read_bytes(folder / "plain/groups.json"));
  auto& members = groups["groups"][1]["members"];
  members.erase(std::find_if(members.begin(), members.end(), [](const json& member) {
    return member["parameter"] == "conv2.bias";
  }));
  config["groups"] = write_config(folder / "groups.json", groups);
  config["verify"] = false;  // or the proof would refuse the file before
  config["normalization"]["mode"] = "repair";
  check_failure(mudsc_merge({"--config", write_config(folder / "merge.json", config), "--out",
                             print(folder / "refused"), "--quiet"}),
                "mudsc-merge", 3, {"groups.json: group \"conv2\"", "conv2.weight"});
  CHECK_FALSE(fs::exists(folder / "refused"));
}

TEST_CASE("half and bfloat16 archives are merged in float32 and saved as they were") {
  const TemporaryFolder folder;
  for (const at::ScalarType type : {at::kHalf, at::kBFloat16}) {
    INFO(c10::toString(type));
    json config = scored(merge_of(folder, "convnet", {{"width", 4}}, 2));
    const json full = run(folder, config, "full", {"--overwrite"});
    for (const json& path : config["models"]) {
      ScriptModel model = load_archive(path.get<std::string>());
      const at::NoGradGuard no_grad;
      for (auto [name, tensor] : model.parameters()) tensor.set_data(tensor.detach().to(type));
      model.save(path.get<std::string>());
    }
    const json low = run(folder, config, "low", {"--overwrite"});
    const TensorMap wide = read_safetensors(folder / "full/merged.safetensors").tensors;
    const TensorMap narrow = read_safetensors(folder / "low/merged.safetensors").tensors;
    ScriptModel archive = load_archive(folder / "low/merged.pt");
    for (const auto& [name, tensor] : archive.parameters()) {
      CHECK(tensor.scalar_type() == type);
      CHECK(at::equal(tensor.detach(), narrow.at(name)));
    }
    CHECK(narrow.at("bn1.running_mean").scalar_type() == at::kFloat);
    CHECK(low["variants"][0]["scores"]["joint"]["samples"] == 100);
    CHECK(
        (narrow.at("fc.weight").to(at::kFloat) - wide.at("fc.weight")).abs().max().item<double>() <
        0.01);
  }
}

TEST_CASE("archives that were saved on another device are merged where the run says") {
  const TemporaryFolder folder;
  const json config = merge_of(folder, "mlp", kMlp, 2);
  run(folder, config, "cpu");
  // The second one as a GPU would have saved it.
  Records records = read_archive(folder / "b.pt");
  const std::string here("X\x03\0\0\0cpu", 8);
  const std::string there("X\x06\0\0\0cuda:0", 11);
  std::string& pickle = records.at("data.pkl");
  int moved = 0;
  for (std::size_t at = 0; (at = pickle.find(here, at)) != std::string::npos; ++moved)
    pickle.replace(at, here.size(), there);
  REQUIRE(moved > 0);
  write_archive(folder / "b.pt", records);
  run(folder, config, "mixed");
  CHECK(read_bytes(folder / "mixed/merged.safetensors") ==
        read_bytes(folder / "cpu/merged.safetensors"));
  CHECK(read_bytes(folder / "mixed/merged.pt") == read_bytes(folder / "cpu/merged.pt"));
}

TEST_CASE("outputs that do not fit the objective are refused before anything is written") {
  const TemporaryFolder folder;
  json config = scored(merge_of(folder, "mlp", kMlp, 2));
  config["evaluation"]["objective"] = {{"type", "embedding"}, {"embeddings", {{"random", 16}}}};
  check_failure(mudsc_merge({"--config", write_config(folder / "merge.json", config), "--out",
                             print(folder / "out"), "--quiet"}),
                "mudsc-merge", 3, {"(B, 16)", "10"});
  CHECK_FALSE(fs::exists(folder / "out"));
}

TEST_CASE("data that nothing else needs still tell what inputs look like") {
  const TemporaryFolder folder;
  const json vit = {{"image", 8}, {"patch", 4}, {"dim", 16},    {"depth", 1},
                    {"heads", 2}, {"mlp", 32},  {"channels", 1}};
  const json config = merge_of(folder, "vit", vit, 2);  // its groups come from its graph
  run(folder, config, "out");
  json again = config;
  again["matching"] = print(folder / "out/matching.safetensors");
  run(folder, again, "again");
  CHECK(read_bytes(folder / "out/merged.safetensors") ==
        read_bytes(folder / "again/merged.safetensors"));
}

TEST_CASE("a matching of other networks is refused") {
  const TemporaryFolder folder;
  json config = merge_of(folder, "mlp", kMlp, 2);
  run(folder, config, "out");
  json other = merge_of(folder, "mlp", {{"hidden", {12, 10}}}, 2);
  other["matching"] = print(folder / "out/matching.safetensors");
  check_failure(mudsc_merge({"--config", write_config(folder / "merge.json", other), "--out",
                             print(folder / "refused"), "--quiet"}),
                "mudsc-merge", 3, {"matching.safetensors", "group fc2", "[2, 12]"});
}

TEST_CASE("networks of unequal widths zip to any width, and do nothing else") {
  const TemporaryFolder folder;
  json config = merge_of(folder, "mlp", {{"hidden", {12, 8}}}, 2);
  config["models"][1] = print(save_builtin(folder / "wide.pt", "mlp", {{"hidden", {20, 13}}}, 2));
  const auto width = [&](const std::string& out) {
    const auto tensors = read_safetensors(folder / out / "merged.safetensors").tensors;
    return std::vector<std::int64_t>{tensors.at("fc1.weight").size(0),
                                     tensors.at("fc2.weight").size(0)};
  };
  for (const char* space : {"weight", "activation", "dual"}) {
    config["space"] = space;
    run(folder, scored(config), space);
    CHECK(width(space) == std::vector<std::int64_t>{16, 10});  // the mean, rounded down
  }
  const json groups = json::parse(read_bytes(folder / "dual/groups.json"));
  CHECK(groups["groups"][0]["units"] == 16);
  // What it wrote is a network like any other, and the matching can be given back.
  ModelRef reference;
  reference.script = folder / "dual/merged.pt";
  const ScriptModel merged = ScriptModel::load(reference, {});
  CHECK_FALSE(merged.metadata().contains("builtin"));
  json given = config;
  given["matching"] = print(folder / "dual/matching.safetensors");
  run(folder, given, "given");
  CHECK(read_bytes(folder / "given/merged.safetensors") ==
        read_bytes(folder / "dual/merged.safetensors"));

  config["zip"]["reduce"] = 0.75;
  run(folder, config, "small");
  CHECK(width("small") == std::vector<std::int64_t>{8, 5});

  const auto refused = [&](json other, int code, const std::vector<std::string>& words) {
    check_failure(mudsc_merge({"--config", write_config(folder / "merge.json", other), "--out",
                               print(folder / "refused"), "--quiet"}),
                  "mudsc-merge", code, words);
    CHECK_FALSE(fs::exists(folder / "refused"));
  };
  json other = config;
  other["zip"]["reduce"] = 0.99;
  refused(other, 2, {"zip.reduce: 0.99", "21 units of group \"fc2\"", "[0, 0.9523]"});
  other = config;
  other["method"] = "align";
  other.erase("zip");
  refused(other, 3, {"wide.pt", "not of the architecture", "fc1"});
  other = scored(config);
  other["landscape"]["line"] = 3;
  refused(other, 2, {"landscape", "differ in width"});
}

TEST_CASE("partial merges of trunks of unequal widths keep their heads") {
  const TemporaryFolder folder;
  json config = merge_of(folder, "mlp", {{"hidden", {12, 8}}}, 2);
  config["models"][1] = print(save_builtin(folder / "wide.pt", "mlp", {{"hidden", {20, 8}}}, 2));
  config["partial"]["until"] = "fc1";
  run(folder, config, "out");
  const auto merged = read_safetensors(folder / "out/merged.safetensors").tensors;
  CHECK(merged.at("trunk.fc1.weight").size(0) == 16);
  CHECK(merged.at("heads.0.fc2.weight").size(1) == 12);
  CHECK(merged.at("heads.1.fc2.weight").size(1) == 20);
}

TEST_CASE("integer buffers that differ are refused, but for counters") {
  const TemporaryFolder folder;
  json config = {{"models", json::array()}, {"method", "average"}};
  const auto merge = [&](const std::function<at::Tensor(int)>& buffer) {
    config["models"] = json::array();
    for (const int shift : {0, 1}) {
      const ScriptModel model(
          make_network(
              {{"fc.weight", {3, 4}}},
              "return torch.linear(torch.index_select(x, 1, self.order % 4), self.fc.weight)\n",
              {{"order", buffer(shift)}}),
          "net");
      const fs::path file = folder / (shift == 0 ? "a.pt" : "b.pt");
      model.save(file);
      config["models"].push_back(print(file));
    }
    return mudsc_merge({"--config", write_config(folder / "merge.json", config), "--out",
                        print(folder / "out"), "--overwrite"});
  };
  check_failure(merge([](int shift) { return (at::arange(4, at::kLong) + shift) % 4; }),
                "mudsc-merge", 3, {"b.pt", "order", "Long", "a.pt"});
  const ProgramResult result = merge([](int shift) { return at::full({1}, shift, at::kLong); });
  CHECK(result.exit_code == 0);
  CHECK_THAT(result.err, Catch::Contains("order differs"));
}
