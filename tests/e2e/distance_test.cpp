// modelgif-dist: every task on networks trained on the shipped digits, and what it refuses.
#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <csignal>
#include <cstring>
#include <map>
#include <thread>

#include "support/files.h"
#include "support/golden.h"
#include "support/networks.h"
#include "support/temporary_folder.h"
#include "tools.h"
#include "weightsmith/core/rng.h"
#include "weightsmith/tensor/safetensors.h"

using namespace weightsmith;
using namespace weightsmith::testing;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

/// One victim, three copies of it that were trained on, and five networks of other seeds.
struct Family {
  Family() {
    train("victim", {}, 1, 12, 0.1);
    for (int i = 0; i < 3; ++i)
      train("tuned" + std::to_string(i), folder / "victim" / "model.pt", 10 + i, 4, 0.02);
    for (int i = 0; i < 5; ++i) train("other" + std::to_string(i), {}, 20 + i, 12, 0.1);
  }
  void train(const std::string& name, const fs::path& start, int seed, int epochs, double lr) {
    json config = small_training();
    config["model"] = {{"builtin", "mlp"}, {"options", {{"hidden", {24, 16}}}}};
    if (!start.empty()) config["model"]["weights"] = start.string();
    config["data"]["train"]["limit"] = 600;
    // Copies see other samples than the victim did.
    config["data"]["train"]["subset_seed"] = start.empty() ? 0 : seed;
    config["epochs"] = epochs;
    config["optimizer"] = {{"lr", lr}};
    config["method"] = {{"type", "sgd"}};
    config["augmentations"] = json::array({json::array()});
    config["seed"] = seed;
    const std::string file = write_config(folder / (name + ".json"), config);
    summary_of(lookaround_train({"--config", file, "--out", (folder / name).string(), "--quiet"}));
  }
  json models() const {
    json list = json::array();
    for (const std::string name :
         {"victim", "tuned0", "tuned1", "tuned2", "other0", "other1", "other2", "other3", "other4"})
      list.push_back({{"name", name}, {"script", (folder / name / "model.pt").string()}});
    return list;
  }
  json config() const {
    return {{"models", models()},
            {"reference", {{"data", {{"split", "test"}, {"limit", 64}}}}},
            {"field", {{"steps", 8}}},
            {"cache", (folder / "fields").string()}};
  }
  TemporaryFolder folder;
};

const Family& family() {
  static const Family made;
  return made;
}

json measure(const fs::path& folder, const json& config,
             const std::vector<std::string>& more = {}) {
  fs::create_directories(folder);
  std::vector<std::string> arguments{"--config", write_config(folder / "gif.json", config),
                                     "--out",    (folder / "out").string(),
                                     "--quiet",  "--overwrite"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return summary_of(modelgif_dist(arguments));
}

}  // namespace

TEST_CASE("the distances between all models, and their tree") {
  const TemporaryFolder folder;
  const json summary = measure(folder.path(), family().config());
  const auto d = summary["distances"].get<std::vector<std::vector<double>>>();
  REQUIRE(d.size() == 9);
  for (int i = 0; i < 9; ++i) {
    CHECK(std::abs(d[i][i]) < 1e-5);
    for (int j = 0; j < 9; ++j) {
      CHECK(d[i][j] == Approx(d[j][i]).margin(1e-6));
      CHECK(summary["low"][i][j].get<double>() <= d[i][j] + 1e-9);
      CHECK(summary["high"][i][j].get<double>() >= d[i][j] - 1e-9);
    }
  }
  // Copies are nearer to the victim and to each other than anything is to a stranger.
  for (int copy = 1; copy < 4; ++copy)
    for (int other = 4; other < 9; ++other) CHECK(d[0][copy] < d[0][other]);
  for (const json& model : summary["models"])
    CHECK(model["completeness_error"].get<double>() < 0.05);
  const fs::path out = folder / "out";
  CHECK_THAT(read_bytes(out / "tree.newick"), Catch::EndsWith(";\n"));
  CHECK_THAT(read_bytes(out / "distances.csv"), Catch::StartsWith("model,victim,tuned0"));
  CHECK(read_bytes(out / "distances.npy").size() == 128 + 81 * 8);
  CHECK_THAT(read_bytes(out / "distances.svg"), Catch::StartsWith("<"));
  CHECK(json::parse(read_bytes(out / "results.json")) == summary);
  for (const char* cheap : {"output_cosine", "cka"})
    for (int i = 0; i < 9; ++i) {
      CHECK(std::abs(summary[cheap][i][i].get<double>()) < 1e-5);
      for (int j = 0; j < 9; ++j) {
        CHECK(summary[cheap][i][j] == summary[cheap][j][i]);
        if (i != j) CHECK(summary[cheap][i][j].get<double>() > 1e-4);
      }
    }

  // The same run again, from the same fields; and against one model.
  CHECK(measure(folder.path(), family().config())["distances"] == summary["distances"]);
  json one = family().config();
  one["task"] = {{"type", "matrix"}, {"against", "victim"}};
  const json column = measure(folder.path(), one);
  for (int i = 0; i < 9; ++i)
    CHECK(column["distances"][i].get<double>() == Approx(d[i][0]).margin(1e-5));
  for (const char* cheap : {"output_cosine", "cka"})
    for (int i = 0; i < 9; ++i)
      CHECK(column[cheap][i].get<double>() ==
            Approx(summary[cheap][i][0].get<double>()).margin(1e-9));
  // The victim repeats all of its mistakes; strangers make fewer of them.
  CHECK(column["victim_mistakes"][0].get<double>() == 0);
  CHECK(column["victim_mistakes"][4].get<double>() > 0);

  // Gradient x input, which that run also measures, is a field of one step at the input.
  one["field"] = {{"rule", "riemann_right"}, {"steps", 1}};
  const json single = measure(folder.path(), one);
  for (int i = 0; i < 9; ++i)
    CHECK(single["distances"][i].get<double>() ==
          Approx(column["gradient_input"][i].get<double>()).margin(1e-6));
  CHECK(std::abs(column["gradient_input"][4].get<double>() - column["distances"][4].get<double>()) >
        1e-4);
}

TEST_CASE("as many steps as distances need, and no more") {
  const TemporaryFolder folder;
  json config = family().config();
  config["field"] = {{"steps", "auto"}, {"steps_tolerance", 0.02}};
  const json automatic = measure(folder.path(), config);
  const auto steps = automatic["steps"].get<std::int64_t>();
  REQUIRE(automatic["steps_tried"].size() >= 1);
  CHECK(automatic["steps_tried"].back()["steps"] == steps);
  for (std::size_t i = 0; i < automatic["steps_tried"].size(); ++i) {
    const bool enough = automatic["steps_tried"][i]["change"].get<double>() <= 0.02;
    CHECK(enough == (i + 1 == automatic["steps_tried"].size()));
  }
  // Told explicitly, the same fields are found in the cache; many more give nearly the same.
  config["field"] = {{"steps", steps}};
  const json told = measure(folder.path(), config);
  CHECK(told["distances"] == automatic["distances"]);
  // Which were found in the cache, and so not compared with a faster form again.
  json computed = automatic["models"];
  for (json& model : computed) {
    CHECK(model["faster"]["error"].get<double>() < 1e-4);
    CHECK(model["faster"]["used"] == true);
    model.erase("faster");
  }
  CHECK(told["models"] == computed);
  CHECK_FALSE(told.contains("steps_tried"));
  config["field"] = {{"steps", 64}};
  const json many = measure(folder.path(), config);
  double largest = 0, worst = 0;
  for (std::size_t i = 0; i < 9; ++i)
    for (std::size_t j = 0; j < 9; ++j) {
      const double exact = many["distances"][i][j].get<double>();
      largest = std::max(largest, exact);
      worst = std::max(worst, std::abs(exact - automatic["distances"][i][j].get<double>()));
    }
  CHECK(worst <= 0.06 * largest);

  config["models"] = json::array({config["models"][0]});
  config["field"] = {{"steps", "auto"}};
  check_failure(modelgif_dist({"--config", write_config(folder / "one.json", config), "--out",
                               (folder / "one").string(), "--quiet"}),
                "modelgif-dist", 2, {"field.steps", "one model"});
}

TEST_CASE("a field of the subcommand, and the distance of two") {
  const TemporaryFolder folder;
  const std::string file = write_config(folder / "gif.json", family().config());
  for (const char* name : {"victim", "other0"}) {
    const json summary = summary_of(
        modelgif_dist({"field", name, "--config", file, "--out",
                       (folder / (std::string(name) + ".safetensors")).string(), "--quiet"}));
    CHECK(summary["shape"] == json({64, 8, 64}));
  }
  const auto stored = read_safetensors(folder / "victim.safetensors").tensors.at("field");
  CHECK(stored.sizes() == at::IntArrayRef({64, 8, 64}));
  const auto distance = [&](const std::string& kind) {
    return summary_of(modelgif_dist({"distance", (folder / "victim.safetensors").string(),
                                     (folder / "other0.safetensors").string(), "--distance",
                                     kind}))["distance"]
        .get<double>();
  };
  json config = family().config();
  const json matrix = measure(folder.path(), config);
  CHECK(distance("cosine") == Approx(matrix["distances"][0][4].get<double>()).margin(1e-5));
  CHECK(distance("euclidean") > 0);
}

TEST_CASE("what --set says of a subcommand's paths starts from the current folder") {
  const TemporaryFolder folder;
  json config = family().config();
  const fs::path script = config["models"][1]["script"].get<std::string>();
  const std::string name = config["models"][1]["name"];
  config["models"][1]["script"] = "missing.pt";
  fs::create_directory(folder / "here");
  fs::copy_file(script, folder / "here" / "network.pt");
  ProgramOptions options;
  options.folder = folder / "here";
  const json summary = summary_of(
      modelgif_dist({"field", name, "--config", write_config(folder / "gif.json", config), "--set",
                     R"(models.1.script="network.pt")", "--out", "field.safetensors", "--quiet"},
                    options));
  CHECK(summary["shape"] == json({64, 8, 64}));
  CHECK(fs::exists(folder / "here" / "field.safetensors"));
}

TEST_CASE("a field that cannot be computed leaves the file of its name as it was") {
  const TemporaryFolder folder;
  // A root of zero has no gradient: the second sample fails after the first went well.
  const fs::path root = folder / "root.pt";
  ScriptModel(
      make_network({{"w", {10, 64}}}, "return torch.matmul(x.abs().sqrt().flatten(1), self.w.t())"),
      "root.pt")
      .save(root);
  write_safetensors(folder / "data.safetensors",
                    {{"images", at::cat({at::ones({1, 1, 8, 8}), at::zeros({1, 1, 8, 8})})},
                     {"labels", at::zeros({2}, at::kLong)}});
  const json config = {
      {"models", {root.string()}},
      {"reference",
       {{"data", {{"format", "tensors"}, {"path", (folder / "data.safetensors").string()}}}}}};
  const fs::path out = write_bytes(folder / "field.safetensors", "the former field");
  check_failure(
      modelgif_dist({"field", root.string(), "--config", write_config(folder / "gif.json", config),
                     "--out", out.string(), "--quiet"}),
      "modelgif-dist", 5, {"root.pt", "sample 1", "not finite"});
  CHECK(read_bytes(out) == "the former field");
}

TEST_CASE("ownership: copies are told from strangers, and a leaking selection is refused") {
  const TemporaryFolder folder;
  json config = family().config();
  config["task"] = {{"type", "ownership"},
                    {"victim", "victim"},
                    {"groups", {{{"name", "tuned"}, {"models", {"tuned0", "tuned1", "tuned2"}}}}},
                    {"independents", {"other0", "other1", "other2", "other3", "other4"}},
                    {"counts", {8, 32}},
                    {"false_positive_rate", 0.2}};
  const json summary = measure(folder.path(), config);
  const json& group = summary["groups"][0];
  CHECK(group["auc"] == 1.0);
  CHECK(group["auc_same_architecture"] == 1.0);
  CHECK(group["auc_gradient_input"] == 1.0);
  CHECK(group["auc_low"].get<double>() < 0.9);  // three against five
  CHECK(group["p_value"].get<double>() == Approx(1.0 / 56));
  CHECK(group["curve"]["samples"] == json({8, 32, 64}));
  for (const std::string cheap : {"gradient_input", "victim_mistakes", "output_cosine", "cka"}) {
    REQUIRE(group["auc_" + cheap].is_number());
    CHECK(group["curve"]["auc_" + cheap].size() == 3);
    CHECK(group["curve"]["auc_" + cheap][2] == group["auc_" + cheap]);
  }
  CHECK(group["auc_cka"].get<double>() > 0.5);
  for (const json& model : group["models"]) CHECK(model["derived"] == true);
  CHECK(fs::exists(folder / "out" / "curve.svg"));

  json selecting = family().config();
  selecting["task"] = {{"type", "select"},
                       {"victim", "victim"},
                       {"surrogates", {"tuned0"}},
                       {"independents", {"other0"}},
                       {"rule", "gap"}};
  const json selected = measure(folder.path(), selecting);
  CHECK(selected["order"].size() == 64);
  const fs::path file = folder / "selection.json";
  fs::copy_file(folder / "out" / "selection.json", file);
  config["reference"]["selection"] = file.string();
  const std::vector<std::string> arguments{"--config", write_config(folder / "own.json", config),
                                           "--out", (folder / "own").string(), "--quiet"};
  check_failure(modelgif_dist(arguments), "modelgif-dist", 3,
                {"selection.json", "tuned0", "other0", "allow_overlap"});
  json marked = config;
  marked["task"]["allow_overlap"] = true;
  CHECK(measure(folder.path(), marked)["selection_overlap"] == json({"tuned0", "other0"}));
  config["task"]["groups"][0]["models"] = {"tuned1", "tuned2"};
  config["task"]["independents"] = {"other1", "other2", "other3", "other4"};
  config["models"].erase(4);
  config["models"].erase(1);
  const json disjoint = measure(folder.path(), config);
  CHECK(disjoint["selection_overlap"].empty());
  CHECK(disjoint["samples"] == 32);
  config["reference"]["data"]["limit"] = 63;
  check_failure(modelgif_dist({"--config", write_config(folder / "own.json", config), "--out",
                               (folder / "own").string(), "--quiet"}),
                "modelgif-dist", 3, {"selection.json", "other reference samples"});
}

TEST_CASE("relatedness and unlearning") {
  const TemporaryFolder folder;
  json config = family().config();
  config["models"] = json::array({config["models"][0], config["models"][1], config["models"][4]});
  config["task"] = {{"type", "relatedness"},
                    {"affinity", {{1.0, 0.9, 0.1}, {0.9, 1.0, 0.2}, {0.1, 0.2, 1.0}}}};
  const json related = measure(folder.path(), config);
  // Seen from the victim: itself, its copy, the stranger.
  CHECK(related["spearman"]["victim"].get<double>() == Approx(-1));
  CHECK(related["spearman_mean"].get<double>() < -0.5);
  CHECK(related["spearman_mean_cka"].get<double>() < -0.5);
  CHECK(related["spearman_mean_output_cosine"].get<double>() < -0.5);
  CHECK(fs::exists(folder / "out" / "relatedness.svg"));

  config = family().config();
  config["reference"]["data"] = {{"split", "train"}, {"classes", {9}}, {"limit", 40}};
  config["field"]["target"] = "label";
  config["task"] = {{"type", "unlearning"},
                    {"reference", {"victim"}},
                    {"sequences",
                     {{{"name", "tuned"}, {"models", {"tuned0"}}},
                      {{"name", "tuned"}, {"models", {"tuned1"}}},
                      {{"name", "unrelated"}, {"models", {"other0"}}},
                      {{"name", "unrelated"}, {"models", {"other1"}}}}}};
  const json curves = measure(folder.path(), config)["sequences"];
  REQUIRE(curves.size() == 2);
  CHECK(curves[0]["replicates"] == 2);
  CHECK(curves[0]["distance"][0].get<double>() < curves[1]["distance"][0].get<double>());
  CHECK(fs::exists(folder / "out" / "curves.svg"));
}

TEST_CASE("unlearning: curves over checkpoints against the reference's, step by step") {
  const TemporaryFolder folder;
  json config = family().config();
  config["reference"]["data"] = {{"split", "train"}, {"classes", {9}}, {"limit", 40}};
  config["field"]["target"] = "label";
  const auto sequence = [](const std::string& name, const json& models) {
    return json{{"name", name}, {"models", models}};
  };
  config["task"] = {{"type", "unlearning"},
                    {"reference", {"victim", "other0", "tuned0"}},
                    {"sequences",
                     {sequence("a", {"tuned0", "other1", "tuned0"}),
                      sequence("a", {"tuned1", "other2", "victim"}),
                      sequence("b", {"other3", "other4", "other3"})}}};
  const json curves = measure(folder.path(), config)["sequences"];
  const std::string table = read_bytes(folder / "out" / "curves.csv");
  json pairs = config;
  pairs["task"] = {{"type", "matrix"}};
  const json all = measure(folder.path(), pairs);
  std::map<std::string, std::size_t> at;
  for (std::size_t i = 0; i < config["models"].size(); ++i) at[config["models"][i]["name"]] = i;
  const auto distance = [&](const std::string& a, const std::string& b) {
    return all["distances"][at.at(a)][at.at(b)].get<double>();
  };
  REQUIRE(curves.size() == 2);
  const std::vector<std::pair<double, double>> replicates{
      {distance("victim", "tuned0"), distance("victim", "tuned1")},
      {distance("other0", "other1"), distance("other0", "other2")},
      {distance("tuned0", "tuned0"), distance("tuned0", "victim")}};
  CHECK(curves[0]["replicates"] == 2);
  REQUIRE(curves[0]["distance"].size() == 3);
  for (std::size_t t = 0; t < 3; ++t) {
    const auto [first, second] = replicates[t];
    CHECK(curves[0]["distance"][t].get<double>() == Approx((first + second) / 2).margin(1e-6));
    CHECK(curves[0]["deviation"][t].get<double>() ==
          Approx(std::abs(first - second) / std::sqrt(2.0)).margin(1e-6));
  }
  // Of a single sequence, bounds by resampling samples.
  CHECK(curves[1]["replicates"] == 1);
  REQUIRE(curves[1]["distance"].size() == 3);
  const std::vector<double> single{distance("victim", "other3"), distance("other0", "other4"),
                                   distance("tuned0", "other3")};
  for (std::size_t t = 0; t < 3; ++t) {
    CHECK(curves[1]["distance"][t].get<double>() == Approx(single[t]).margin(1e-6));
    CHECK(curves[1]["low"][t].get<double>() < single[t]);
    CHECK(curves[1]["high"][t].get<double>() > single[t]);
  }
  CHECK_THAT(table, Catch::StartsWith("sequence,step,distance,deviation,low,high\na,0,"));
  CHECK(std::count(table.begin(), table.end(), '\n') == 7);
}

TEST_CASE("preprocessing is part of the function: fields lie in the space of the reference") {
  const TemporaryFolder folder;
  const auto network = [&](const std::string& name, const std::string& before) {
    const std::string path = (folder / (name + ".pt")).string();
    at::manual_seed(2);
    ScriptModel(make_network({{"w", {10, 144}}},
                             before + "return torch.matmul(torch.tanh(x).flatten(1), self.w.t())"),
                name)
        .save(path);
    return path;
  };
  // The same function of 8 x 8 images: once by the reference, once by the graph.
  const std::string plain = network("plain", "");
  const std::string whole = network("whole",
                                    "x = torch.upsample_bilinear2d(x, [12, 12], False)\n"
                                    "x = (x - 0.2) / 0.7\n");
  json config = family().config();
  config["models"] = {{{"name", "by reference"},
                       {"script", plain},
                       {"preprocess", {{"resize", 12}, {"mean", {0.2}}, {"std", {0.7}}}}},
                      {{"name", "by graph"}, {"script", whole}},
                      {{"name", "otherwise"},
                       {"script", plain},
                       {"preprocess", {{"resize", 12}, {"mean", {0.9}}, {"std", {0.1}}}}},
                      config["models"][0]};
  const json summary = measure(folder.path(), config);
  CHECK(std::abs(summary["distances"][0][1].get<double>()) < 1e-5);
  CHECK(summary["distances"][0][2].get<double>() > 0.01);
  CHECK(summary["distances"][0][3].get<double>() > 0.1);
}

TEST_CASE("a field without length is counted, and as far from others as can be") {
  const TemporaryFolder folder;
  const std::string flat = (folder / "flat.pt").string();
  // Dead units: the inputs reach them, their slope is 0.
  ScriptModel(make_network({{"w", {10, 64}}},
                           "return torch.relu(-1.0 - x.flatten(1).abs()).sum(1, True) * "
                           "self.w.sum(1)"),
              flat)
      .save(flat);
  json config = family().config();
  config["models"] = json::array({config["models"][0], {{"name", "flat"}, {"script", flat}}});
  const json summary = measure(folder.path(), config);
  CHECK(summary["zero_norms"] == json({0, 64 * 8}));
  CHECK(summary["distances"][0][1].get<double>() == Approx(1));
  CHECK(summary["distances"][1][1].get<double>() == Approx(1));
}

TEST_CASE("fields are never in memory at once") {
  const TemporaryFolder folder;
  json config;
  for (const char* name : {"a", "b"}) {
    const fs::path path = folder / (std::string(name) + ".pt");
    save_builtin(path, "mlp", {{"inputs", 1024}, {"hidden", {8}}}, name[0]);
    config["models"].push_back(path.string());
  }
  const auto peak = [&](std::int64_t samples) {
    at::manual_seed(1);
    const fs::path data = folder / "data.safetensors";
    write_safetensors(data, {{"images", at::randn({samples, 1, 32, 32})},
                             {"labels", at::zeros({samples}, at::kLong)}});
    config["reference"] = {{"data", {{"format", "tensors"}, {"path", data.string()}}}};
    config["field"] = {{"steps", 50}};
    config["bootstrap"] = 0;
    // A task that keeps no outputs or features.
    config["task"] = {{"type", "unlearning"},
                      {"reference", {"a"}},
                      {"sequences", {{{"name", "b"}, {"models", {"b"}}}}}};
    const ProgramResult result =
        modelgif_dist({"--config", write_config(folder / "gif.json", config), "--out",
                       (folder / "out").string(), "--quiet", "--overwrite"});
    summary_of(result);
    return result.peak_bytes;
  };
  // 2 x 200 kB a sample. The distances take up to 256 MB whatever there is to compare.
  const std::int64_t some = peak(300), more = peak(1200);
  const double field = 900.0 * 50 * 1024 * 4;  // that each model has more in the second run
  INFO(some << " and " << more << " bytes, " << field << " of each field");
  // The peak of one and the same run moves by 40 MB; half a field of either model is 92 MB.
  CHECK(static_cast<double>(more - some) < 0.5 * field);
}

TEST_CASE("a network that rounding throws off is computed as it is") {
  const TemporaryFolder folder;
  // The last bit of what the sine is given is a turn of its phase. It is a product of two factors
  // and none is added to it, so that every kernel rounds it alike, whatever the batch; with the
  // normalisation folded into the weight the factors are others.
  const std::string chaotic = (folder / "chaotic.pt").string();
  ScriptModel network(make_network({{"w", {4, 1, 1, 1}}, {"g", {4}}, {"b", {4}}, {"v", {10, 256}}},
                                   R"(y = torch.conv2d(x, self.w)
y = torch.batch_norm(y, self.g, self.b, self.b, torch.exp(self.b), False, 0.1, 1e-5, False)
return torch.linear(torch.sin(100000000.0 * y).flatten(1), self.v)
)"),
                      chaotic);
  {
    const at::NoGradGuard no_grad;
    network.state_dict().at("b").zero_();
  }
  network.save(chaotic);
  json config = family().config();
  config["models"].push_back({{"name", "chaotic"}, {"script", chaotic}});
  config["cache"] = (folder / "cache").string();  // what is found in one is not compared again
  const json models = measure(folder.path(), config)["models"];
  CHECK(models.front().at("faster").at("used") == true);
  const json& plain = models.back().at("faster");
  CHECK(plain.at("used") == false);
  CHECK(plain.at("error").get<double>() > 1e-4);
}

TEST_CASE("faster networks give the same distances, and bfloat16 says what it costs") {
  const TemporaryFolder folder;
  json config = family().config();
  for (int i = 0; i < 3; ++i) config["models"].erase(6);
  const json fast = measure(folder.path(), config);
  config["field"]["fast"] = false;
  const json plain = measure(folder.path(), config);
  config["field"] = {{"steps", 8}, {"precision", "bfloat16"}};
  const json half = measure(folder.path(), config);
  CHECK(measure(folder.path(), config)["models"] == half["models"]);  // also from the cache
  for (std::size_t i = 0; i < plain["models"].size(); ++i) {
    CHECK_FALSE(plain["models"][i].contains("faster"));
    CHECK(plain["models"][i]["field"] != fast["models"][i]["field"]);
    const json& cost = half["models"][i]["faster"];
    CHECK(cost["error"].get<double>() > 1e-4);
    CHECK(cost["error"].get<double>() < 0.2);
    CHECK(cost["cosine_distance"].get<double>() < 0.05);
    for (std::size_t j = 0; j < plain["models"].size(); ++j) {
      const double exact = plain["distances"][i][j].get<double>();
      CHECK(fast["distances"][i][j].get<double>() == Approx(exact).margin(1e-4));
      CHECK(half["distances"][i][j].get<double>() == Approx(exact).margin(0.05));
    }
  }
}

TEST_CASE("a dry run writes nothing; damaged fields are computed again") {
  const TemporaryFolder folder;
  json config = family().config();
  config["cache"] = (folder / "cache").string();
  const json plan = measure(folder.path(), config, {"--dry-run"});
  CHECK(plan["fields_to_compute"] == 9);
  CHECK(plan["field_bytes"] == 64 * 8 * 64 * 4);
  CHECK_FALSE(fs::exists(folder / "out"));
  CHECK_FALSE(fs::exists(folder / "cache"));
  const json first = measure(folder.path(), config);
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder / "cache")) files.push_back(entry.path());
  REQUIRE(files.size() == 9);
  std::sort(files.begin(), files.end());
  fs::resize_file(files[0], fs::file_size(files[0]) - 1);
  fs::copy_file(files[1], files[2], fs::copy_options::overwrite_existing);  // of another model
  CHECK(measure(folder.path(), config)["distances"] == first["distances"]);
}

TEST_CASE("a stopped run ends soon, and resumed it gives the bytes of one that never was") {
  // A number of steps that the run chose is chosen again by the resumed run, and is the same.
  for (const json& steps : {json(400), json("auto")}) {
    INFO("steps " << steps);
    const TemporaryFolder folder;
    json config = family().config();
    config["cache"] = (folder / "cache").string();
    config["field"] = {{"steps", steps}, {"steps_tolerance", 1e-5}};
    config["batch_size"] = steps.is_string() ? 5 : 25;
    const std::string file = write_config(folder / "gif.json", config);
    const fs::path out = folder / "out";
    const std::vector<std::string> arguments{"--config",   file,       "--out",
                                             out.string(), "--resume", "--verbose"};
    ProgramOptions options;
    options.signal = SignalPlan{SIGTERM, "", "field of tuned0", std::chrono::milliseconds(5)};
    const ProgramResult stopped = modelgif_dist(arguments, options);
    INFO(stopped.err);
    REQUIRE(stopped.exit_code == 128 + SIGTERM);
    CHECK(stopped.out.empty());
    CHECK_THAT(stopped.err, Catch::Contains("stopped by signal 15"));
    // Between two fields there is no part of one to tell of.
    for (const std::string& name : files_under(folder / "cache"))
      if (name.ends_with(".part"))
        CHECK_THAT(stopped.err,
                   Catch::Contains("of 64 samples of") && Catch::Contains("--resume continues"));
    CHECK_FALSE(fs::exists(out / "results.json"));
    const auto kept = files_under(folder / "cache");
    // The field in which the signal arrived, on a busy machine a later one than was shown, is the
    // last: most were not begun.
    CHECK(kept.size() >= 2);
    CHECK(kept.size() < 9);

    const ProgramResult resumed = modelgif_dist(arguments);
    const json results = summary_of(resumed);
    CHECK_THAT(resumed.err, !Catch::Contains("field of victim"));
    CHECK_THAT(resumed.err, Catch::Contains("field of other4"));

    config["cache"] = (folder / "undisturbed fields").string();
    json wanted = measure(folder / "undisturbed", config);
    if (steps.is_string()) {
      CHECK(results["steps"] == wanted["steps"]);
      CHECK(wanted["steps"].get<int>() > 16);  // enough for the signal to come in between
    }
    REQUIRE(files_under(folder / "cache") == files_under(folder / "undisturbed fields"));
    for (const std::string& name : files_under(folder / "cache"))
      CHECK(read_bytes(folder / "cache" / name) ==
            read_bytes(folder / "undisturbed fields" / name));
    for (const char* name : {"distances.csv", "distances.npy", "distances.svg", "tree.newick"})
      CHECK(read_bytes(out / name) == read_bytes(folder / "undisturbed" / "out" / name));
  }
}

TEST_CASE("a run killed at any moment computes at most one chunk of a field again") {
  const TemporaryFolder folder;
  json config = family().config();
  config["cache"] = (folder / "cache").string();
  config["field"]["steps"] = 200;
  config["batch_size"] = 200;  // a chunk is one sample
  const std::string file = write_config(folder / "gif.json", config);
  const std::vector<std::string> arguments{
      "--config", file, "--out", (folder / "out").string(), "--resume", "--verbose"};
  Rng rng(3);
  int kills = 0, resumed = 0;
  std::string wanted;   // what the next run must find
  double longest = 50;  // milliseconds into the first field; more where they leave nothing
  for (int attempt = 0; attempt < 30; ++attempt) {
    ProgramOptions options;
    if (kills < 3 || resumed < 2)
      options.signal =
          SignalPlan{SIGKILL, "", "field of ",
                     std::chrono::milliseconds(static_cast<int>(rng.uniform(0, longest)))};
    const ProgramResult run = modelgif_dist(arguments, options);
    const bool killed = run.killed_by == SIGKILL;
    kills += killed ? 1 : 0;
    INFO(run.err);
    if (!wanted.empty() && run.err.find("samples are there already") != std::string::npos) {
      CHECK_THAT(run.err, Catch::Contains(wanted));
      ++resumed;
    }
    wanted.clear();
    if (!killed) {
      CHECK(run.exit_code == 0);
      break;
    }
    // Whole samples behind the header and the two scalars a sample: all of them are taken over.
    for (const auto& entry : fs::directory_iterator(folder / "cache"))
      if (entry.path().extension() == ".part") {
        const std::string bytes = read_bytes(entry.path());
        std::uint64_t header = 0;
        if (bytes.size() < 8) continue;
        std::memcpy(&header, bytes.data(), 8);
        const std::uint64_t rows = 8 + header + 64 * 16;
        const std::uint64_t sample = 200 * 64 * 4;
        if (bytes.size() >= rows + sample)
          wanted = std::to_string((bytes.size() - rows) / sample) + " samples are there already";
      }
    if (wanted.empty()) longest *= 1.5;
  }
  CHECK(kills >= 3);
  CHECK(resumed >= 1);
  const json whole = measure(folder.path(), config);
  config["cache"] = (folder / "other").string();
  CHECK(measure(folder.path(), config)["distances"] == whole["distances"]);
}

TEST_CASE("two runs share a cache") {
  const TemporaryFolder folder;
  json config = family().config();
  config["cache"] = (folder / "cache").string();
  config["field"]["steps"] = 60;
  const std::string file = write_config(folder / "gif.json", config);
  std::vector<ProgramResult> results(2);
  std::vector<std::thread> runs;
  for (int i = 0; i < 2; ++i)
    runs.emplace_back([&, i] {
      results[i] = modelgif_dist(
          {"--config", file, "--out", (folder / ("out" + std::to_string(i))).string(), "--quiet"});
    });
  for (std::thread& run : runs) run.join();
  const json first = summary_of(results[0]), second = summary_of(results[1]);
  CHECK(first["distances"] == second["distances"]);
  CHECK(files_under(folder / "cache").size() == 9);
  config["cache"] = (folder / "other").string();
  CHECK(measure(folder.path(), config)["distances"] == first["distances"]);
}

TEST_CASE("bad input of modelgif-dist") {
  const TemporaryFolder folder;
  const auto refused = [&](int code, const std::vector<std::string>& parts, const json& change) {
    json config = family().config();
    config["models"] = json::array({config["models"][0], config["models"][4]});
    config.merge_patch(change);
    check_failure(modelgif_dist({"--config", write_config(folder / "bad.json", config), "--out",
                                 (folder / "out").string(), "--quiet"}),
                  "modelgif-dist", code, parts);
    CHECK_FALSE(fs::exists(folder / "out"));
  };
  const auto archive = [&](const std::string& name, const std::string& forward) {
    const fs::path path = folder / name;
    ScriptModel(make_network({{"w", {10, 64}}}, forward), name).save(path);
    return json{{"models", {path.string()}}};
  };
  refused(3, {"cut.pt", "no gradient"},
          archive("cut.pt", "return torch.matmul(x.flatten(1), self.w.t()).detach()"));
  refused(3, {"mixed.pt", "rest of the batch"},
          archive("mixed.pt", "return torch.matmul((x - x.mean(0)).flatten(1), self.w.t())"));
  refused(3, {"dense.pt", "(B, K)"}, archive("dense.pt", "return x * self.w.sum()"));
  json few = archive("few.pt", "return torch.matmul(x.flatten(1), self.w.t())[:, :5]");
  few["field"] = {{"target", "label"}};
  refused(3, {"few.pt", "class", "5 outputs"}, few);
  refused(5, {"infinite.pt", "sample 0", "not finite"},
          archive("infinite.pt", "return torch.matmul(x.flatten(1), (self.w / 0.0).t())"));
  refused(3, {"integer.pt", "no gradient"},
          archive("integer.pt",
                  "return torch.matmul(torch.round(x.flatten(1)).long().float(), self.w.t())"));
  refused(3, {"norm.pt", "rest of the batch"},
          archive("norm.pt",
                  "h = torch.batch_norm(x, None, None, None, None, True, 0.1, 1e-5, False)\n"
                  "return torch.matmul(h.flatten(1), self.w.t())"));
  refused(3, {"none.pt"}, {{"models", {(folder / "none.pt").string()}}});
  refused(2, {"task.victim", "did you mean \"victim\"?"},
          {{"task", {{"type", "select"}, {"victim", "victm"}, {"independents", {"other0"}}}}});
  refused(2, {"task.groups", "needs it"},
          {{"task", {{"type", "ownership"}, {"victim", "victim"}, {"independents", {"other0"}}}}});
  refused(2, {"reference.baseline", "unknown baseline"}, {{"reference", {{"baseline", "one"}}}});
  refused(2, {"field.subset", "keeps none"}, {{"field", {{"steps", 1}, {"subset", "odd"}}}});
  refused(2, {"task.affinity", "2 x 2"},
          {{"task", {{"type", "relatedness"}, {"affinity", {{1.0}}}}}});
  const fs::path text = write_bytes(folder / "a.safetensors", "no field");
  check_failure(modelgif_dist({"distance", text.string(), text.string(), "--quiet"}),
                "modelgif-dist", 3, {"a.safetensors"});
  check_failure(modelgif_dist({"field", "x.pt", "--quiet"}), "modelgif-dist", 2, {"--out"});
}
