// modelgif-dist: every task on networks trained on the shipped digits, and what it refuses.
#include <ATen/ATen.h>

#include <array>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>

#include "family.h"
#include "support/files.h"
#include "support/networks.h"
#include "support/temporary_folder.h"
#include "tools.h"
#include "weightsmith/tensor/safetensors.h"

using namespace weightsmith;
using namespace weightsmith::testing;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

/// The float64 values of a file of NumPy's format 1.0, and its shape as it is written there.
std::pair<std::string, std::vector<double>> read_npy(const fs::path& path) {
  const std::string bytes = read_bytes(path);
  const std::size_t header = 10 + static_cast<unsigned char>(bytes[8]) +
                             256 * static_cast<std::size_t>(static_cast<unsigned char>(bytes[9]));
  const std::size_t open = bytes.find('('), close = bytes.find(')');
  std::vector<double> values((bytes.size() - header) / sizeof(double));
  std::memcpy(values.data(), bytes.data() + header, values.size() * sizeof(double));
  return {bytes.substr(open, close - open + 1), values};
}

const std::vector<std::string> kCheap{"gradient_input", "victim_mistakes", "output_cosine", "cka"};

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
  for (const char* cheap : {"output_cosine", "cka", "gradient_input"})
    for (int i = 0; i < 9; ++i) {
      CHECK(std::abs(summary[cheap][i][i].get<double>()) < 1e-5);
      for (int j = 0; j < 9; ++j) {
        CHECK(summary[cheap][i][j].get<double>() ==
              Approx(summary[cheap][j][i].get<double>()).margin(1e-6));
        if (i != j) CHECK(summary[cheap][i][j].get<double>() > 1e-4);
      }
    }
  // What the means are of.
  const auto [shape, per_sample] = read_npy(out / "per_sample.npy");
  CHECK(shape == "(9,9,64,)");
  REQUIRE(per_sample.size() == 9 * 9 * 64);
  for (int i = 0; i < 9; ++i)
    for (int j = 0; j < 9; ++j) {
      const auto begin = per_sample.begin() + (9 * i + j) * 64;
      CHECK(std::accumulate(begin, begin + 64, 0.0) / 64 == Approx(d[i][j]).margin(1e-9));
    }

  // The same run again, from the same fields; and against one model.
  CHECK(measure(folder.path(), family().config())["distances"] == summary["distances"]);
  json one = family().config();
  one["task"] = {{"type", "matrix"}, {"against", "victim"}};
  const json column = measure(folder.path(), one);
  for (int i = 0; i < 9; ++i)
    CHECK(column["distances"][i].get<double>() == Approx(d[i][0]).margin(1e-5));
  // A row of the matrix: of mistakes, those of its model.
  for (const std::string& cheap : kCheap)
    for (int i = 0; i < 9; ++i)
      CHECK(column[cheap][i].get<double>() == Approx(summary[cheap][0][i].get<double>())
                                                  .margin(cheap == "gradient_input" ? 1e-6 : 1e-9));
  const auto [list_shape, list] = read_npy(folder / "out" / "per_sample.npy");
  CHECK(list_shape == "(9,64,)");
  for (int i = 0; i < 9 * 64; ++i)
    CHECK(list[i] == Approx(per_sample[static_cast<std::size_t>(i)]).margin(1e-5));
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
  for (const json& model : told["models"]) {
    CHECK(model["faster"]["error"].get<double>() < 1e-4);
    CHECK(model["faster"]["used"] == true);
  }
  CHECK(told["models"] == automatic["models"]);
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
  for (const std::string& cheap : kCheap) {
    REQUIRE(group["auc_" + cheap].is_number());
    CHECK(group["curve"]["auc_" + cheap].size() == 3);
    CHECK(group["curve"]["auc_" + cheap][2] == group["auc_" + cheap]);
  }
  CHECK(group["auc_cka"].get<double>() > 0.5);
  for (const json& model : group["models"]) {
    CHECK(model["derived"] == true);
    CHECK(model["low"].get<double>() < model["distance"].get<double>());
    CHECK(model["high"].get<double>() > model["distance"].get<double>());
  }
  CHECK_THAT(read_bytes(folder / "out" / "distances.csv"),
             Catch::StartsWith("model,distance,low,high,gradient_input,victim_mistakes,"
                               "output_cosine,cka,derived\nvictim,"));
  CHECK(fs::exists(folder / "out" / "curve.svg"));
  json list = config;
  list["task"] = {{"type", "matrix"}, {"against", "victim"}};
  const json column = measure(folder.path(), list);
  for (const char* name : {"distances", "low", "high"}) CHECK(summary[name] == column[name]);
  for (const std::string& cheap : kCheap) CHECK(summary[cheap] == column[cheap]);

  json selecting = family().config();
  selecting["task"] = {{"type", "select"},
                       {"victim", "victim"},
                       {"surrogates", {"tuned0"}},
                       {"independents", {"other0"}},
                       {"rule", "gap"}};
  const json selected = measure(folder.path(), selecting);
  CHECK(selected["order"].size() == 64);
  for (const char* name : {"distances", "low", "high"}) CHECK(selected[name] == column[name]);
  for (const std::string& cheap : kCheap) CHECK(selected[cheap] == column[cheap]);
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
  CHECK(related["spearman_mean_gradient_input"].get<double>() < -0.5);
  CHECK(related["spearman_mean_victim_mistakes"].is_number());
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
  json ragged = config;
  ragged["task"]["sequences"][1]["models"] = {"tuned1", "tuned2"};
  check_failure(modelgif_dist({"--config", write_config(folder / "ragged.json", ragged), "--out",
                               (folder / "ragged").string(), "--quiet"}),
                "modelgif-dist", 2, {"task.sequences", "tuned", "1 and 2 checkpoints"});
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
  const auto [shape, per_sample] = read_npy(folder / "out" / "per_sample.npy");
  CHECK(shape == "(9,40,)");  // checkpoints in the order of the configuration
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
    const auto begin = per_sample.begin() + static_cast<std::ptrdiff_t>(6 + t) * 40;
    CHECK(std::accumulate(begin, begin + 40, 0.0) / 40 == Approx(single[t]).margin(1e-6));
  }
  // Means over replicates of what costs less.
  for (const std::string& cheap : kCheap) {
    REQUIRE(curves[0][cheap].size() == 3);
    for (std::size_t t = 0; t < 3; ++t) {
      const auto pair = [&](const std::string& a, const std::string& b) {
        const json& value = all[cheap][at.at(a)][at.at(b)];
        return value.is_null() ? std::nan("") : value.get<double>();
      };
      const std::vector<std::array<std::string, 3>> named{{"victim", "tuned0", "tuned1"},
                                                          {"other0", "other1", "other2"},
                                                          {"tuned0", "tuned0", "victim"}};
      const auto& [from, a, b] = named[t];
      const double expected = (pair(from, a) + pair(from, b)) / 2;
      if (std::isnan(expected))
        CHECK(curves[0][cheap][t].is_null());
      else
        CHECK(curves[0][cheap][t].get<double>() == Approx(expected).margin(1e-6));
    }
  }
  CHECK_THAT(table, Catch::StartsWith("sequence,step,distance,deviation,low,high,gradient_input,"
                                      "victim_mistakes,output_cosine,cka\na,0,"));
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
  CHECK_THAT(read_bytes(folder / "out" / "log.txt"),
             Catch::Contains("flat: 512 of 512 steps of its field have no length"));
  config["task"] = {{"type", "unlearning"},
                    {"reference", {"victim"}},
                    {"sequences", {{{"name", "dead"}, {"models", {"flat"}}}}}};
  CHECK(measure(folder.path(), config)["zero_norms"] == json({0, 64 * 8}));
  // One sample and step, standardised, is nothing.
  config.erase("task");
  config["reference"]["data"]["limit"] = 1;
  config["field"]["steps"] = 1;
  config["distance"] = "cosine_normalised";
  CHECK(measure(folder.path(), config)["zero_norms"] == json({1, 1}));
}

TEST_CASE("where the gradient at the input alone is infinite, the field goes without it") {
  const TemporaryFolder folder;
  // Black pixels lie at a root's zero, the points between them and grey ones do not.
  const std::string root = (folder / "root.pt").string();
  ScriptModel(
      make_network({{"w", {10, 64}}}, "return torch.linear(x.abs().sqrt().flatten(1), self.w)"),
      root)
      .save(root);
  json config = family().config();
  config["models"] =
      json::array({config["models"][0], {{"name", "root"}, {"script", root}}, config["models"][1]});
  config["reference"]["baseline"] = 0.5;
  config["task"] = {{"type", "matrix"}, {"against", "victim"}};
  const json list = measure(folder.path(), config);
  CHECK(list["distances"][1].get<double>() > 0.1);
  CHECK(list["gradient_input"][1].is_null());
  CHECK(list["gradient_input"][2].get<double>() > 0);
  CHECK_THAT(read_bytes(folder / "out" / "log.txt"),
             Catch::Contains("root: no gradient x input to compare with"));
  config["task"] = {{"type", "matrix"}};
  const json matrix = measure(folder.path(), config);
  CHECK_FALSE(matrix.contains("gradient_input"));
  CHECK(matrix["distances"][0][1].get<double>() == Approx(list["distances"][1].get<double>()));
}

TEST_CASE("reference samples that are not finite are named") {
  const TemporaryFolder folder;
  at::Tensor images = at::rand({4, 1, 8, 8});
  images[2][0][3][3] = std::nan("");
  const fs::path data = folder / "data.safetensors";
  write_safetensors(data, {{"images", images}, {"labels", at::zeros({4}, at::kLong)}});
  json config = family().config();
  config["reference"] = {{"baseline", "shuffle"},
                         {"data", {{"format", "tensors"}, {"path", data.string()}}}};
  check_failure(modelgif_dist({"--config", write_config(folder / "gif.json", config), "--out",
                               (folder / "out").string(), "--quiet"}),
                "modelgif-dist", 3, {"data.safetensors", "sample 2", "not finite"});
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
  refused(3, {"flat-norm.pt", "sample 0 alone", "eval mode"},
          archive("flat-norm.pt",
                  "assert x.size(0) > 1, 'Expected more than 1 value per channel when training'\n"
                  "return torch.matmul((x - x.mean(0)).flatten(1), self.w.t())"));
  refused(3, {"scalar.pt", "no row for each"},
          archive("scalar.pt", "return (x * self.w.sum()).sum()"));
  refused(3, {"none.pt"}, {{"models", {(folder / "none.pt").string()}}});
  refused(2, {"task.victim", "did you mean \"victim\"?"},
          {{"task", {{"type", "select"}, {"victim", "victm"}, {"independents", {"other0"}}}}});
  refused(2, {"task.groups", "needs it"},
          {{"task", {{"type", "ownership"}, {"victim", "victim"}, {"independents", {"other0"}}}}});
  const auto parts = [](const char* type, const json& more) {
    json task = {{"type", type}, {"victim", "victim"}, {"independents", {"other0"}}};
    task.update(more);
    return json{{"models", family().config()["models"]}, {"task", task}};
  };
  const auto group = [](const char* name, const json& models) {
    return json{{"name", name}, {"models", models}};
  };
  refused(2, {"task.groups", "\"g\" stands there twice"},
          parts("ownership", {{"groups", {group("g", {"tuned0"}), group("g", {"tuned1"})}}}));
  refused(2, {"task.groups", "\"tuned0\" stands there twice"},
          parts("ownership", {{"groups", {group("g", {"tuned0", "tuned0"})}}}));
  refused(2, {"task.independents", "\"other0\" stands there twice"},
          parts("select", {{"surrogates", {"tuned0"}}, {"independents", {"other0", "other0"}}}));
  refused(2, {"task.surrogates", "\"other0\" is also"},
          parts("select", {{"surrogates", {"other0"}}}));
  refused(2, {"task.surrogates", "\"victim\" is also"},
          parts("select", {{"surrogates", {"victim"}}}));
  refused(2, {"reference.baseline", "unknown baseline"}, {{"reference", {{"baseline", "one"}}}});
  refused(2, {"field.subset", "keeps none"}, {{"field", {{"steps", 1}, {"subset", "odd"}}}});
  refused(2, {"task.affinity", "2 x 2"},
          {{"task", {{"type", "relatedness"}, {"affinity", {{1.0}}}}}});
  const fs::path text = write_bytes(folder / "a.safetensors", "no field");
  check_failure(modelgif_dist({"distance", text.string(), text.string(), "--quiet"}),
                "modelgif-dist", 3, {"a.safetensors"});
  check_failure(modelgif_dist({"field", "x.pt", "--quiet"}), "modelgif-dist", 2, {"--out"});
}
