// mudsc-merge explain: the groups it finds, the file it writes, and the proof's verdict.
#include <ATen/ATen.h>

#include <algorithm>
#include <catch2/catch.hpp>

#include "support/files.h"
#include "support/networks.h"
#include "support/temporary_folder.h"
#include "tools.h"

using namespace weightsmith;
using namespace weightsmith::testing;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

const std::string kInput = "2x1x8x8";  // two of the digits

std::vector<std::string> arguments_for(const fs::path& model, std::vector<std::string> more = {}) {
  std::vector<std::string> arguments{"explain", model.string(), "--input", kInput, "--quiet"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

json explain(const fs::path& model, std::vector<std::string> more = {}) {
  more.emplace_back("--json");
  return summary_of(mudsc_merge(arguments_for(model, std::move(more))));
}

std::vector<std::string> names_of(const json& groups) {
  std::vector<std::string> names;
  for (const json& group : groups) names.push_back(group.at("name"));
  return names;
}

/// "fc1.weight@0" for every member of a group, in order.
std::vector<std::string> axes_of(const json& group) {
  std::vector<std::string> axes;
  for (const json& member : group.at("members"))
    axes.push_back(member.at("parameter").get<std::string>() + "@" + member.at("axis").dump());
  return axes;
}

json read_json(const fs::path& path) { return json::parse(read_bytes(path)); }

}  // namespace

TEST_CASE("explain --json tells groups, units, what is pinned, and the proof") {
  const TemporaryFolder folder;
  const json found = explain(save_mlp(folder / "mlp.pt", 1));
  REQUIRE(names_of(found["groups"]) == std::vector<std::string>{"fc1", "fc2"});
  const json& first = found["groups"][0];
  CHECK(first["units"] == 8);
  CHECK(first["blocks"] == 1);
  CHECK(first["tap"] == "fc2.weight/input");
  CHECK(axes_of(first) == std::vector<std::string>{"fc1.weight@0", "fc1.bias@0", "fc2.weight@1"});
  CHECK(axes_of(found["groups"][1]) ==
        std::vector<std::string>{"fc2.weight@0", "fc2.bias@0", "fc3.weight@1"});
  CHECK(found["units"] == json{{"free", 16}, {"pinned", 0}, {"outputs", 10}});
  CHECK(found["pinned"] == json::array());
  CHECK(found["cuts"] == json{"fc1", "fc2"});
  CHECK(found["rigid"] == json::array());
  const json& proof = found["proof"];
  CHECK(proof["precision"] == "float64");
  CHECK(proof["failed"] == json::array());
  CHECK(proof["max_relative_change"] < 1e-12);
  CHECK(proof["negative_control"] > 1e-4);
  CHECK(proof["tolerance"] == 1e-10);
}

TEST_CASE("explain without --json prints a table for people and a short summary") {
  const TemporaryFolder folder;
  const fs::path model = save_mlp(folder / "mlp.pt", 2);
  const ProgramResult result = mudsc_merge({"explain", model.string(), "--input", kInput});
  const json summary = summary_of(result);
  CHECK(summary["groups"] == 2);
  CHECK(summary["units"]["free"] == 16);
  CHECK_THAT(result.err, Catch::Contains("fc1.weight@0, fc1.bias@0, fc2.weight@1"));
  CHECK_THAT(result.err, Catch::Contains("of 16 hidden units 16 are free (100.0 %), 0 pinned"));
}

TEST_CASE("the graph says what is known of a builtin: residuals and norms in one group") {
  const TemporaryFolder folder;
  const json found =
      explain(save_builtin(folder / "net.pt", "resnet20",
                           {{"depth", 8}, {"width", 0.25}, {"channels", 1}, {"norm", "batch"}}, 3),
              {"--quick"});
  CHECK(found["units"]["pinned"] == 0);
  CHECK(found["proof"]["failed"] == json::array());
  // The stem and the first block's output are added.
  const std::vector<std::string> axes = axes_of(found["groups"][0]);
  for (const char* axis : {"conv1.weight@0", "bn1.running_mean@0", "layer1.0.conv1.weight@1",
                           "layer1.0.conv2.weight@0"}) {
    INFO(axis);
    CHECK(std::find(axes.begin(), axes.end(), axis) != axes.end());
  }
}

TEST_CASE("what --out writes can be given back, to explain and to a merge") {
  const TemporaryFolder folder;
  const fs::path a = save_mlp(folder / "a.pt", 4);
  const fs::path b = save_mlp(folder / "b.pt", 5);
  const std::string file = (folder / "groups.json").string();
  const json found = explain(a, {"--out", file});
  CHECK(read_json(file) == found);
  CHECK(explain(b, {"--groups", file})["groups"] == found["groups"]);

  json config = plain_merge(a, b);
  config["method"] = "align";
  config["space"] = "weight";
  config["groups"] = file;
  config["inputs"] = json::array({kInput});
  config["out"] = (folder / "out").string();
  const json summary =
      summary_of(mudsc_merge({"--config", write_config(folder / "merge.json", config), "--quiet"}));
  CHECK(summary["variants"].size() == 1);
  CHECK(names_of(read_json(folder / "out" / "groups.json")["groups"]) ==
        std::vector<std::string>{"fc1", "fc2"});
}

TEST_CASE("a copy that --permuted writes computes the same and is merged back exactly") {
  const TemporaryFolder folder;
  const fs::path model =
      save_builtin(folder / "net.pt", "resnet20",
                   {{"depth", 8}, {"width", 0.5}, {"channels", 1}, {"norm", "batch"}}, 6);
  const fs::path copy = folder / "copy.pt";
  explain(model, {"--quick", "--permuted", copy.string()});
  ScriptModel first = load_archive(model);
  ScriptModel second = load_archive(copy);
  CHECK_FALSE(
      at::equal(first.state_dict().at("conv1.weight"), second.state_dict().at("conv1.weight")));
  const at::Tensor x = at::rand({2, 1, 8, 8});
  const at::Tensor wanted = first.forward(x);
  CHECK((second.forward(x) - wanted).abs().max().item<double>() <
        1e-5 * wanted.abs().max().item<double>());

  json config = plain_merge(model, copy);
  config["method"] = "align";
  config["space"] = "weight";
  config["inputs"] = json::array({kInput});
  config["normalization"] = {{"mode", "none"}};
  config["iterations"] = {{"start", "propagate"}};
  config["out"] = (folder / "out").string();
  summary_of(mudsc_merge({"--config", write_config(folder / "merge.json", config), "--quiet"}));
  const TensorMap merged = load_archive(folder / "out" / "merged.pt").state_dict();
  for (const auto& [name, tensor] : first.state_dict()) {
    INFO(name);
    CHECK(at::equal(tensor, merged.at(name)));
  }
}

TEST_CASE("archives of any float type are explained in float32, and permuted in their own") {
  const TemporaryFolder folder;
  const fs::path path = save_mlp(folder / "net.pt", 1);
  const json wanted = explain(path);
  for (const at::ScalarType type : {at::kHalf, at::kBFloat16, at::kDouble}) {
    ScriptModel model = load_archive(path);
    model.module().to(type);
    const fs::path other = folder / (std::string(at::toString(type)) + ".pt");
    model.save(other);
    INFO(other);
    const fs::path copy = folder / "copy.pt";
    CHECK(explain(other, {"--permuted", copy.string()})["groups"] == wanted["groups"]);
    const TensorMap permuted = load_archive(copy).state_dict();
    const at::Tensor& weight = permuted.at("fc1.weight");
    CHECK(weight.scalar_type() == type);
    const at::Tensor before = model.state_dict().at("fc1.weight");
    CHECK_FALSE(at::equal(weight, before));
    CHECK(at::equal(std::get<0>(weight.to(at::kFloat).flatten().sort()),
                    std::get<0>(before.to(at::kFloat).flatten().sort())));
  }
}

TEST_CASE("a group that changes the outputs is named, pinned in what is written, and ends with 5") {
  const TemporaryFolder folder;
  const fs::path model = save_mlp(folder / "mlp.pt", 6);
  json wrong = explain(model);
  wrong["groups"][0]["members"].erase(2);  // fc2.weight still reads the units in the old order
  const std::string file = write_config(folder / "wrong.json", wrong);
  const std::string out = (folder / "right.json").string();

  const ProgramResult result =
      mudsc_merge(arguments_for(model, {"--groups", file, "--json", "--out", out}));
  INFO(result.err);
  CHECK(result.exit_code == 5);
  CHECK_THAT(result.err, Catch::Contains("permuting changes the outputs"));
  CHECK_THAT(result.err, Catch::Contains("fc1"));
  CHECK_THAT(result.err, Catch::Contains("right.json holds the groups without these"));
  const json printed = json::parse(result.out, nullptr, /*allow_exceptions=*/false);
  REQUIRE(printed.is_object());
  CHECK(printed["proof"]["failed"] == json::array({"fc1"}));
  CHECK(printed["proof"]["max_relative_change"] > 1e-4);
  CHECK(names_of(printed["groups"]) == std::vector<std::string>{"fc2"});
  REQUIRE(printed["pinned"].size() == 1);
  CHECK(printed["pinned"][0]["where"] == "fc1");
  CHECK(printed["pinned"][0]["units"] == 8);
  CHECK(printed["units"]["free"] == 8);
  CHECK(printed["units"]["pinned"] == 8);
  // What is left holds.
  CHECK(read_json(out) == printed);
  CHECK(explain(model, {"--groups", out})["proof"]["failed"] == json::array());
  // Whoever writes nothing is told how to.
  CHECK_THAT(mudsc_merge(arguments_for(model, {"--groups", file})).err,
             Catch::Contains("--out FILE"));
}

TEST_CASE("a group that fails counts the hidden units that it moved, and its blocks' contents") {
  // The scale is read as a whole, so its order matters, and the groups do not say so.
  const TemporaryFolder folder;
  const fs::path path = folder / "shuffle.pt";
  make_network({{"a.weight", {8, 1, 1, 1}}, {"b.weight", {3, 2, 1, 1}}},
               "h = torch.pixel_shuffle(torch.conv2d(x, self.a.weight), 2)\n"
               "return torch.conv2d(torch.relu(h), self.b.weight)\n")
      .save(path.string());
  json groups = explain(path);
  CHECK(groups["units"] == json{{"free", 8}, {"pinned", 0}, {"outputs", 3}});
  groups["groups"][0]["members"].erase(1);
  const ProgramResult result = mudsc_merge(
      arguments_for(path, {"--groups", write_config(folder / "wrong.json", groups), "--json"}));
  CHECK(result.exit_code == 5);
  const json printed = json::parse(result.out, nullptr, /*allow_exceptions=*/false);
  REQUIRE(printed.is_object());
  CHECK(printed["groups"] == json::array());
  CHECK(printed["units"]["free"] == 0);
}

TEST_CASE("explain says of a network without groups that there is nothing to permute") {
  const TemporaryFolder folder;
  const fs::path path = folder / "linear.pt";
  make_network({{"a.weight", {3, 8}}}, "return torch.linear(x.flatten(2)[:, 0, :8], self.a.weight)")
      .save(path.string());
  const ProgramResult result = mudsc_merge({"explain", path.string(), "--input", kInput});
  const json summary = summary_of(result);
  CHECK(summary["groups"] == 0);
  CHECK(summary["units"] == json{{"free", 0}, {"pinned", 0}, {"outputs", 3}});
  CHECK_THAT(result.err, Catch::Contains("nothing to permute"));
  CHECK_THAT(result.err, !Catch::Contains("inf"));
}

TEST_CASE("a merge with a wrong group file ends with 5 before it writes anything") {
  const TemporaryFolder folder;
  const fs::path model = save_mlp(folder / "mlp.pt", 7);
  json wrong = explain(model);
  wrong["groups"][0]["members"].erase(2);
  json config = plain_merge(model, save_mlp(folder / "other.pt", 8));
  config["method"] = "align";
  config["space"] = "weight";
  config["groups"] = write_config(folder / "wrong.json", wrong);
  config["inputs"] = json::array({kInput});
  const std::string file = write_config(folder / "merge.json", config);
  const fs::path out = folder / "out";
  check_failure(mudsc_merge({"--config", file, "--out", out.string(), "--quiet"}), "mudsc-merge", 5,
                {"mlp.pt", "fc1", "verify"});
  CHECK(files_under(out).empty());
  // Whoever asks for it gets the groups as they are.
  summary_of(mudsc_merge({"--config", file, "--out", out.string(), "--no-verify", "--quiet"}));
  CHECK(read_json(out / "config.json")["verify"] == false);
}

TEST_CASE("a network that compares two inputs of one shape gets two different ones") {
  const TemporaryFolder folder;
  const fs::path path = folder / "siamese.pt";
  make_network({{"a.weight", {6, 4}}, {"b.weight", {2, 6}}},
               "def forward(self, x, y):\n"
               "    h = torch.linear(x, self.a.weight) - torch.linear(y, self.a.weight)\n"
               "    return torch.linear(torch.abs(h), self.b.weight)\n")
      .save(path.string());
  const json found = summary_of(mudsc_merge(
      {"explain", path.string(), "--input", "3x4", "--input", "3x4", "--json", "--quiet"}));
  CHECK(found["units"]["free"] == 6);
  CHECK(found["proof"]["negative_control"] > 1e-4);
}

TEST_CASE("a constant that another model does not share moves with its units") {
  const TemporaryFolder folder;
  const auto save = [&](const std::string& name, std::uint64_t seed) {
    at::manual_seed(seed);
    make_network({{"a.weight", {6, 8}}, {"b.weight", {3, 6}}},
                 "h = torch.tanh(torch.linear(x.flatten(2)[:, 0, :8], self.a.weight))\n"
                 "return torch.linear(h * self.scale, self.b.weight)\n",
                 {{"scale", at::rand({6})}})
        .save((folder / name).string());
    return folder / name;
  };
  const fs::path first = save("first.pt", 1);
  const fs::path second = save("second.pt", 2);
  const json alone = explain(first, {"--with", first.string()});
  CHECK(alone["units"] == json{{"free", 0}, {"pinned", 6}, {"outputs", 3}});
  CHECK(alone["pinned"][0]["where"] == "aten::mul");
  CHECK(alone == explain(first));
  const json together = explain(first, {"--with", second.string()});
  CHECK(together["units"] == json{{"free", 6}, {"pinned", 0}, {"outputs", 3}});
  CHECK(axes_of(together["groups"][0]) ==
        std::vector<std::string>{"a.weight@0", "scale@0", "b.weight@1"});
}

TEST_CASE("explain refuses what it cannot run") {
  const TemporaryFolder folder;
  const std::string model = save_mlp(folder / "mlp.pt", 9).string();
  const auto refuse = [](int code, const std::vector<std::string>& arguments,
                         const std::vector<std::string>& parts) {
    std::vector<std::string> all{"explain", "--quiet"};
    all.insert(all.end(), arguments.begin(), arguments.end());
    check_failure(mudsc_merge(all), "mudsc-merge", code, parts);
  };
  refuse(2, {model, "--input", "2xabc"}, {"--input", "2xabc", "2x3x224x224"});
  refuse(2, {model}, {"--input is required"});
  refuse(2, {"--input", kInput}, {"MODEL is required"});
  refuse(3, {(folder / "none.pt").string(), "--input", kInput}, {"none.pt", "no such file"});
  refuse(3, {model, "--input", "2x1x9x9"}, {"mlp.pt", "fc1"});
  refuse(3, {model, "--input", kInput, "--groups", (folder / "none.json").string()}, {"none.json"});
}
