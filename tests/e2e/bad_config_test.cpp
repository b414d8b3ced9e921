// What the tools say of configurations and command lines that make no sense: exit code 2, and
// nothing is written.
#include <catch2/catch.hpp>

#include "support/files.h"
#include "support/temporary_folder.h"
#include "tools.h"

using namespace weightsmith;
using namespace weightsmith::testing;
using nlohmann::json;

namespace {

class BadConfig {
 public:
  BadConfig() { write_config(folder_ / "good.json", small_training()); }

  /// Arguments beside --quiet, in a folder with good.json.
  void check(std::vector<std::string> arguments, const std::vector<std::string>& parts) {
    arguments.insert(arguments.begin(), "--quiet");
    ProgramOptions options;
    options.folder = folder_.path();
    const auto before = files_under(folder_.path());
    check_failure(lookaround_train(arguments, options), "lookaround-train", 2, parts);
    CHECK(files_under(folder_.path()) == before);
    CHECK_FALSE(std::filesystem::exists(folder_ / "out"));
  }

  void check_file(const std::string& text, const std::vector<std::string>& parts) {
    INFO(text);
    write_bytes(folder_ / "bad.json", text);
    check({"--config", "bad.json", "--out", "out"}, parts);
  }

  void check_set(const std::string& assignment, const std::vector<std::string>& parts) {
    INFO(assignment);
    check({"--config", "good.json", "--out", "out", "--set", assignment}, parts);
  }

 private:
  TemporaryFolder folder_;
};

}  // namespace

TEST_CASE("a key that is not known is answered with the nearest one") {
  BadConfig bad;
  bad.check_set("epoch=3", {"epoch: unknown key", "did you mean \"epochs\"?"});
  bad.check_set("data.train.limits=3", {"data.train.limits", "\"limit\""});
  bad.check_file(R"({"models": []})", {"models: unknown key", "\"model\""});
}

TEST_CASE("float16 without a GPU is refused") {
  BadConfig bad;
  bad.check({"--config", "good.json", "--out", "out", "--set", "precision=float16", "--set",
             "device=cpu"},
            {"precision: float16", "use bfloat16"});
}

TEST_CASE("a builtin or an option that is not known is answered with the nearest one") {
  const TemporaryFolder folder;
  const std::string file = write_config(folder / "train.json", small_training());
  const std::string out = (folder / "out").string();
  const auto train = [&](const std::string& assignment) {
    return lookaround_train({"--config", file, "--out", out, "--quiet", "--set", assignment});
  };
  check_failure(train("model.options.hiden=[4]"), "lookaround-train", 2, {"hiden", "\"hidden\""});
  check_failure(train("model.builtin=mlpp"), "lookaround-train", 2, {"mlpp", "\"mlp\""});
  check_nothing_half_written(out);
}

TEST_CASE("a value of the wrong type or out of range is shown with what is allowed") {
  BadConfig bad;
  bad.check_set("epochs=\"ten\"", {"epochs", "found \"ten\"", "integer, at least 1"});
  bad.check_set("epochs=0", {"epochs", "found 0", "at least 1"});
  bad.check_set("optimizer.lr=0", {"optimizer.lr", "above 0"});
  bad.check_set("method.type=adam", {"method.type", "\"lookaround\""});
  bad.check_set("data.train.classes=[1,-2]", {"data.train.classes[1]", "found -2"});
  bad.check_set("method.heads=2", {"augmentations", "3 pipelines for 2 heads"});
  bad.check_set("model=5", {"model", "found 5"});
  bad.check_file("{}", {"is missing", "--print-schema"});
  bad.check({"--config", "good.json", "--out", "out", "--threads", "-1"}, {"threads", "found -1"});
  bad.check({"--config", "good.json", "--out", "out", "--seed", "x"}, {"--seed", "x"});
  bad.check({"--config", "good.json", "--out", "out", "--device", "gpu"},
            {"device", "gpu", "cuda"});
}

TEST_CASE("JSON that does not parse is answered with its line") {
  BadConfig bad;
  bad.check_file("{\n  \"epochs\": 3,\n  \"model\" \"mlp\"\n}", {"bad.json", "line 3"});
  bad.check_file("", {"bad.json", "line 1"});
  bad.check_file(std::string("\xff\x00\x01", 3), {"bad.json", "line 1"});
  bad.check_file("[1]", {"bad.json", "must be a JSON object"});
  bad.check_file(R"({"epochs": 1, "epochs": 2})", {"bad.json", "\"epochs\" is given twice"});
  bad.check_file(R"({"optimizer": {"lr": 1, "lr": 2}})", {"\"lr\" is given twice"});
}

TEST_CASE("JSON nested beyond sense is answered") {
  BadConfig bad;
  constexpr std::size_t kDepth = 300'000;
  bad.check_file(R"({"data": )" + std::string(kDepth, '[') + std::string(kDepth, ']') + "}",
                 {"bad.json", "nested more than 100 deep"});
  bad.check_set("data=" + std::string(50'000, '[') + std::string(50'000, ']'),
                {"--set data", "nested more than 100 deep"});
}

TEST_CASE("paths that no JSON file could hold are answered") {
  BadConfig bad;
  bad.check({"--config", "good.json", "--out", "caf\xe9"}, {"out", "UTF-8", "rename"});
  bad.check({"--config", "good.json", "--out", "out", "--set", "model=caf\xe9.pt"},
            {"model", "UTF-8"});
}

TEST_CASE("a command line that makes no sense is answered") {
  BadConfig bad;
  bad.check({}, {"--config: no configuration given", "--help"});
  bad.check({"--config", "none.json", "--out", "out"}, {"none.json", "cannot read"});
  bad.check({"--config", ".", "--out", "out"}, {"cannot read"});
  bad.check({"--config", "good.json"}, {"out", "--out DIR"});
  bad.check({"--config", "good.json", "--out", "out", "--epochs", "3"},
            {"command line", "--epochs"});
  bad.check({"--config"}, {"--config"});
  bad.check_set("epochs", {"--set epochs", "KEY.PATH=JSON"});
  bad.check_set("=3", {"--set =3", "KEY.PATH=JSON"});
  bad.check_set("epochs.x=3", {"epochs.x", "leads nowhere"});
  bad.check_set("augmentations.7=[]", {"augmentations.7", "3 items"});
}
