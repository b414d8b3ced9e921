// What the tools say of models that cannot be used.
#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <limits>

#include "support/archives.h"
#include "support/files.h"
#include "support/pickles.h"
#include "support/temporary_folder.h"
#include "tools.h"
#include "weightsmith/model/script_model.h"
#include "weightsmith/tensor/tensor_map.h"

using namespace weightsmith;
using namespace weightsmith::testing;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

/// Merges a sound network with `second`, which must fail and leave nothing half-written behind.
void check_refused(const TemporaryFolder& folder, const fs::path& second, int code,
                   std::vector<std::string> parts, std::vector<std::string> more = {}) {
  INFO(second);
  const std::string file =
      write_config(folder / "merge.json", plain_merge(save_mlp(folder / "good.pt", 1), second));
  const std::string out = (folder / "out").string();
  std::vector<std::string> arguments{"--config", file, "--out", out, "--quiet"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  check_failure(mudsc_merge(arguments), "mudsc-merge", code, parts);
  check_nothing_half_written(out);
}

/// A state dict as torch.save writes it.
fs::path save_state_dict(const fs::path& path) {
  using namespace pickle;
  const std::string weight = tensor(storage("FloatStorage", "0", 6), 0, {2, 3}, {3, 1});
  return write_archive(path, {{"data.pkl", document(dict({{"fc1.weight", weight}}))},
                              {"data/0", std::string(24, '\0')}});
}

/// A network that none of our builtins made; its units are those of `a` and `b`.
fs::path save_foreign(const fs::path& path, at::ScalarType type = at::kFloat,
                      const std::string& activation = "relu") {
  torch::jit::Module net("Net");
  net.register_parameter("a", at::rand({6, 64}).to(type), false);
  net.register_parameter("b", at::rand({10, 6}).to(type), false);
  net.define("def forward(self, x):\n    return torch." + activation +
             "(x.flatten(1).mm(self.a.t())).mm(self.b.t())\n");
  net.save(path.string());
  return path;
}

}  // namespace

TEST_CASE("a model file that is no network ends with 3 and the file's name") {
  const TemporaryFolder folder;
  const std::string whole = read_bytes(save_mlp(folder / "whole.pt", 2));

  check_refused(folder, folder / "none.pt", 3, {"none.pt", "no such file"});
  check_refused(folder, folder.path(), 3, {folder.path().string(), "not a regular file"});
  check_refused(folder, write_bytes(folder / "empty.pt", ""), 3, {"empty.pt", "empty"});
  check_refused(folder, write_bytes(folder / "text.pt", "weights = 1\n"), 3,
                {"text.pt", "text", "torch.jit.save"});
  check_refused(folder, write_bytes(folder / "short.pt", whole.substr(0, whole.size() / 2)), 3,
                {"short.pt", "cut short"});
  check_refused(folder, save_state_dict(folder / "state.pt"), 3,
                {"state.pt", "torch.save", "\"weights\""});

  std::string flipped = whole;
  // More bytes than any padding between two records has.
  for (std::size_t i = 0; i < 200; ++i) flipped[flipped.size() / 2 + i] ^= 0x10;
  check_refused(folder, write_bytes(folder / "flipped.pt", flipped), 3, {"flipped.pt"});

  const fs::path weights = folder / "weights.safetensors";
  load_archive(folder / "whole.pt");
  write_bytes(weights, std::string("\x02\0\0\0\0\0\0\0{}", 10));
  check_refused(folder, weights, 3, {"weights.safetensors", "TorchScript"});
}

TEST_CASE("networks of different architecture are told apart") {
  const TemporaryFolder folder;
  check_refused(folder, save_builtin(folder / "wide.pt", "mlp", {{"hidden", {8, 9}}}, 1), 3,
                {"wide.pt", "good.pt", "fc2.weight", "architecture"});
  check_refused(folder, save_builtin(folder / "conv.pt", "convnet", {{"width", 4}}, 1), 3,
                {"conv.pt", "good.pt", "fc1.bias: missing"});
}

TEST_CASE("weights that are not finite end with 5") {
  const TemporaryFolder folder;
  for (const float value :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    const ScriptModel model = load_archive(save_mlp(folder / "ok.pt", 3));
    const at::NoGradGuard no_grad;
    model.state_dict().at("fc2.weight")[3][4].fill_(value);
    model.save(folder / "broken.pt");
    check_refused(folder, folder / "broken.pt", 5, {"broken.pt", "fc2.weight", "NaN or infinite"});
  }
}

TEST_CASE(
    "a network whose units are not known asks for an input to run, and takes a group file that "
    "fits") {
  const TemporaryFolder folder;
  const json config = plain_merge(save_foreign(folder / "a.pt"), save_foreign(folder / "b.pt"));
  const std::string file = write_config(folder / "merge.json", config);
  const std::string out = (folder / "out").string();
  const auto merge = [&](const std::string& groups) {
    return mudsc_merge({"--config", file, "--out", out, "--quiet", "--overwrite", "--set",
                        "method=align", "--set", "space=weight", "--set", "groups=" + groups});
  };
  check_failure(merge("auto"), "mudsc-merge", 2, {"a.pt", "unit groups", "inputs", "2x3x224x224"});

  const auto groups = [&](const json& content) {
    return write_config(folder / "groups.json", content);
  };
  const auto one = [](int units, const char* parameter) {
    return json{
        {"groups",
         {{{"name", "hidden"},
           {"units", units},
           {"members",
            {{{"parameter", parameter}, {"axis", 0}}, {{"parameter", "b"}, {"axis", 1}}}}}}}};
  };
  check_failure(merge(groups(one(4, "a"))), "mudsc-merge", 3, {"groups.json", "hidden", "4"});
  check_failure(merge(groups(one(6, "c"))), "mudsc-merge", 3, {"groups.json", "hidden", "c"});
  check_failure(merge(groups({{"group", 1}})), "mudsc-merge", 3, {"groups.json", "group"});
  check_failure(merge(write_bytes(folder / "groups.json", "{").string()), "mudsc-merge", 3,
                {"groups.json: not JSON: parse error at line 1"});
  check_failure(merge((folder / "absent.json").string()), "mudsc-merge", 3, {"absent.json"});
  check_nothing_half_written(out);
  summary_of(merge(groups(one(6, "a"))));
}

TEST_CASE("networks of one shape that compute something else are not merged") {
  const TemporaryFolder folder;
  const auto check = [&](const fs::path& first, const fs::path& second,
                         const std::vector<std::string>& parts) {
    const std::string file = write_config(folder / "merge.json", plain_merge(first, second));
    const std::string out = (folder / "out").string();
    check_failure(mudsc_merge({"--config", file, "--out", out, "--quiet"}), "mudsc-merge", 3,
                  parts);
    CHECK_FALSE(fs::exists(out));
  };
  const fs::path relu = save_foreign(folder / "relu.pt");
  check(relu, save_foreign(folder / "tanh.pt", at::kFloat, "tanh"),
        {"tanh.pt", "relu.pt", "aten::tanh, there aten::relu", "\"weights\""});
  check(relu, save_foreign(folder / "half.pt", at::kHalf), {"half.pt", "a: Half, there Float"});
  const fs::path complex = save_foreign(folder / "complex.pt", at::kComplexFloat);
  check(complex, complex, {"complex.pt", "a is CPUComplexFloat"});
}

TEST_CASE("the plain average asks for no unit groups") {
  const TemporaryFolder folder;
  const fs::path a = save_foreign(folder / "a.pt");
  const fs::path b = save_foreign(folder / "b.pt");
  json config = plain_merge(a, b);
  config.erase(
      "normalization");  // without batch norm there is nothing to reset, and no data to miss
  const std::string file = write_config(folder / "merge.json", config);
  const fs::path out = folder / "out";
  summary_of(mudsc_merge({"--config", file, "--out", out.string(), "--quiet"}));
  const TensorMap merged = load_archive(out / "merged.pt").state_dict();
  const TensorMap first = load_archive(a).state_dict();
  const TensorMap second = load_archive(b).state_dict();
  for (const auto& [name, tensor] : merged)
    CHECK(at::allclose(tensor, (first.at(name) + second.at(name)) / 2));
  CHECK(json::parse(read_bytes(out / "groups.json"))["groups"].empty());
}

TEST_CASE("a dry run sends samples through models and taps") {
  const TemporaryFolder folder;
  json config = plain_merge(save_foreign(folder / "a.pt"), save_foreign(folder / "b.pt"));
  config["method"] = "align";
  config["space"] = "activation";
  config["activations"] = {{"data", {{"split", "train"}, {"limit", 20}}}};
  config["groups"] = "groups.json";
  const std::string file = write_config(folder / "merge.json", config);
  const auto dry_run = [&](const json& tap, std::vector<std::string> more = {}) {
    write_config(folder / "groups.json",
                 {{"groups",
                   {{{"name", "hidden"},
                     {"units", 6},
                     {"tap", tap},
                     {"members",
                      {{{"parameter", "a"}, {"axis", 0}}, {{"parameter", "b"}, {"axis", 1}}}}}}}});
    more.insert(more.end(),
                {"--config", file, "--out", (folder / "out").string(), "--dry-run", "--quiet"});
    return mudsc_merge(more);
  };
  CHECK(summary_of(dry_run("b/input"))["activation_samples"] == 20);
  const std::string group = (folder / "groups.json").string() + ": group \"hidden\"";
  check_failure(dry_run("c/input"), "mudsc-merge", 3, {group, "a.pt", "no tap \"c/input\""});
  check_failure(dry_run("b/output"), "mudsc-merge", 3, {group, "tap \"b/output\"", "[2, 10]"});
  check_failure(dry_run("b/input", {"--set", "activations.data.resize=9"}), "mudsc-merge", 3,
                {"activations.data: digits (train)", "[1, 9, 9]", "a.pt", "81"});
  const json set = {{{"name", "all"}, {"data", {{"split", "test"}, {"resize", 7}}}}};
  check_failure(dry_run("b/input", {"--set", "evaluation.sets=" + set.dump()}), "mudsc-merge", 3,
                {"evaluation.sets[0].data: digits (test)", "[1, 7, 7]", "a.pt", "49"});
  CHECK_FALSE(fs::exists(folder / "out"));
}

TEST_CASE("resetting batch norms asks for data where there are some") {
  const TemporaryFolder folder;
  const json small = {{"width", 4}};
  json config = plain_merge(save_builtin(folder / "a.pt", "convnet", small, 1),
                            save_builtin(folder / "b.pt", "convnet", small, 2));
  config.erase("normalization");
  const std::string file = write_config(folder / "merge.json", config);
  const std::string out = (folder / "out").string();
  check_failure(mudsc_merge({"--config", file, "--out", out, "--quiet"}), "mudsc-merge", 2,
                {"normalization.data", "batch norms", "normalization.mode"});
  CHECK_FALSE(fs::exists(out));
}

TEST_CASE("the trainer refuses a model file as well") {
  const TemporaryFolder folder;
  json config = small_training();
  config["model"] = "none.pt";
  const std::string out = (folder / "out").string();
  const std::string file = write_config(folder / "train.json", config);
  check_failure(lookaround_train({"--config", file, "--out", out, "--quiet"}), "lookaround-train",
                3, {(folder / "none.pt").string()});
  check_nothing_half_written(out);
}

TEST_CASE("a network of which nothing is trained is refused") {
  const TemporaryFolder folder;
  json config = small_training();
  config["freeze"] = {"*"};
  const std::string out = (folder / "out").string();
  const std::string file = write_config(folder / "train.json", config);
  check_failure(lookaround_train({"--config", file, "--out", out, "--quiet"}), "lookaround-train",
                3, {"mlp", "no parameter to train", "freeze"});
  check_nothing_half_written(out);
}
