#include "weightsmith/merge/merge_config.h"

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "support/expect_error.h"
#include "weightsmith/config/config_file.h"
#include "weightsmith/distance/gif_config.h"
#include "weightsmith/train/train_config.h"

namespace weightsmith {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::expect_error;

/// Every default that the schema states, against what the struct writes.
template <class Config>
void check_defaults(const std::string& tool, const Config& config) {
  const json written = to_config(config);
  const json stated = schema_defaults(tool_schema(tool)).flatten();
  for (const auto& [pointer, value] : stated.items()) {
    const json::json_pointer at(pointer);
    CAPTURE(tool, pointer);
    // Optional parts that are not there have no defaults to compare.
    if (!written.contains(at.parent_pointer())) continue;
    // Empty text and lists are written as they are, or left out.
    if (!written.contains(at)) {
      CHECK((value.empty() || value == ""));
      continue;
    }
    // Flattening shows an empty list as null.
    CHECK((written.at(at) == value || (value.is_null() && written.at(at).empty())));
  }
}

TEST_CASE("structs and schemas state the same defaults", "[config]") {
  check_defaults("mudsc-merge", MergeConfig{});
  check_defaults("lookaround-train", TrainConfig{});
  check_defaults("modelgif-dist", GifConfig{});
}

template <class Config>
void check_file(const fs::path& path, const std::string& tool) {
  CAPTURE(path);
  const json raw = read_json(path);
  validate_schema(raw, tool_schema(tool));
  const fs::path base = path.parent_path();
  Config config;
  from_config(ConfigNode{raw, "", base}, config);
  config.validate();
  // What --print-config prints replays the run.
  const json resolved = to_config(config);
  validate_schema(resolved, tool_schema(tool));
  Config again;
  from_config(ConfigNode{resolved, "", base}, again);
  CHECK(to_config(again) == resolved);
}

TEST_CASE("every shipped configuration is valid", "[config]") {
  const fs::path configs = fs::path(WEIGHTSMITH_SOURCE_DIR) / "configs";
  int files = 0;
  for (const auto& entry : fs::directory_iterator(configs / "mudsc-merge")) {
    check_file<MergeConfig>(entry.path(), "mudsc-merge");
    ++files;
  }
  for (const auto& entry : fs::directory_iterator(configs / "lookaround-train")) {
    check_file<TrainConfig>(entry.path(), "lookaround-train");
    ++files;
  }
  for (const auto& entry : fs::directory_iterator(configs / "modelgif-dist")) {
    check_file<GifConfig>(entry.path(), "modelgif-dist");
    ++files;
  }
  CHECK(files >= 5);
}

MergeConfig read(const json& raw) {
  const fs::path base = "/";
  MergeConfig config;
  from_config(ConfigNode{raw, "", base}, config);
  config.validate();
  return config;
}

TEST_CASE("rules between keys name the key", "[config]") {
  const json models = {"a.pt", "b.pt"};
  expect_error(ErrorKind::kConfig, {"models", "at least 2"}, [&] { read({{"models", {"a.pt"}}}); });
  expect_error(ErrorKind::kConfig, {"activations.data", "set space to weight"}, [&] {
    read({{"models", models}, {"space", "dual"}});
  });
  expect_error(ErrorKind::kConfig, {"compare", "listed twice"}, [&] {
    read({{"models", models},
          {"normalization", {{"mode", "none"}}},
          {"compare", {{{"method", "average"}}, {{"method", "average"}, {"space", "weight"}}}}});
  });
  // Whether batch-norm statistics need data is known when the networks are.
  CHECK_NOTHROW(read({{"models", models}, {"space", "weight"}}));
}

TEST_CASE("a variant knows what it needs", "[config]") {
  const auto variant = [](MergeMethod method, MergeSpace space) {
    return MergeVariant{method, space, 0.5};
  };
  CHECK_FALSE(variant(MergeMethod::kAverage, MergeSpace::kDual).matches_units());
  CHECK_FALSE(variant(MergeMethod::kAverage, MergeSpace::kDual).uses_activations());
  CHECK(variant(MergeMethod::kAlign, MergeSpace::kWeight).matches_units());
  CHECK_FALSE(variant(MergeMethod::kAlign, MergeSpace::kWeight).uses_activations());
  CHECK(variant(MergeMethod::kZip, MergeSpace::kActivation).uses_activations());
  CHECK(variant(MergeMethod::kZip, MergeSpace::kDual).uses_activations());
}

TEST_CASE("a variant's label names its folder", "[config]") {
  CHECK(MergeVariant{MergeMethod::kAverage, MergeSpace::kDual, 0.5}.label() == "average");
  CHECK(MergeVariant{MergeMethod::kAlign, MergeSpace::kWeight, 0.5}.label() == "align-weight");
  CHECK(MergeVariant{MergeMethod::kZip, MergeSpace::kDual, 0.3}.label() == "zip-dual-0.3");
}

TEST_CASE("a list of balances is one variant with a candidate each", "[config]") {
  VariantConfig variant{MergeMethod::kZip, MergeSpace::kDual, {0.25, 0.5}};
  CHECK(variant.label() == "zip-dual");
  REQUIRE(variant.candidates().size() == 2);
  CHECK(variant.candidates()[1].label() == "zip-dual-0.5");
  variant.space = MergeSpace::kActivation;  // balance has no effect: nothing to choose
  CHECK(variant.candidates().size() == 1);
  CHECK(variant.label() == "zip-activation");
  variant = {MergeMethod::kAlign, MergeSpace::kDual, {0.3}};
  CHECK(variant.label() == "align-dual-0.3");
}

TEST_CASE("the example of a sweep in the interface is valid", "[config]") {
  const MergeConfig config = read({{"models", {"a.pt", "b.pt"}},
                                   {"balance", {0.1, 0.5, 0.9}},
                                   {"select_on", "joint"},
                                   {"activations", {{"data", {{"split", "train"}}}}},
                                   {"evaluation",
                                    {{"sets",
                                      {{{"name", "joint"}, {"data", {{"split", "test"}}}},
                                       {{"name", "a"}, {"data", {{"split", "test"}}}}}}}}});
  CHECK(config.candidates().size() == 3);
  // Chosen on the training split, judged on the test split.
  REQUIRE(config.selection_set() != nullptr);
  CHECK(config.selection_set()->selection_data()->split == DataConfig::Split::kTrain);
  CHECK(to_config(config)["balance"] == json({0.1, 0.5, 0.9}));
}

TEST_CASE("rules of sweeps, shares and landscapes name the key", "[config]") {
  const auto refused = [](const std::vector<std::string>& parts, const json& change) {
    json raw = {{"models", {"a.pt", "b.pt"}},
                {"activations", {{"data", {{"split", "train"}}}}},
                {"evaluation", {{"sets", {{{"name", "joint"}, {"data", {{"split", "test"}}}}}}}}};
    raw.merge_patch(change);
    expect_error(ErrorKind::kConfig, parts, [&] { read(raw); });
  };
  refused({"balance", "empty"}, {{"balance", json::array()}});
  refused({"balance", "1.5"}, {{"balance", {0.5, 1.5}}});
  refused({"balance", "twice"}, {{"balance", {0.5, 0.5}}});
  refused({"compare[0].balance", "twice"}, {{"compare", {{{"balance", {0.5, 0.5}}}}}});
  refused({"compare", "zip-dual", "listed twice"},
          {{"compare", {{{"balance", {0.1, 0.5}}}, {{"balance", {0.2, 0.5}}}}}});
  refused({"select_on", "jiont", "known: similarity, joint"}, {{"select_on", "jiont"}});
  const json file = {{"format", "tensors"}, {"path", "/t.safetensors"}};
  refused({"select_on", "no training split", "selection"},
          {{"select_on", "t"}, {"evaluation", {{"sets", {{{"name", "t"}, {"data", file}}}}}}});
  refused({"evaluation.sets", "similarity"},
          {{"evaluation", {{"sets", {{{"name", "similarity"}, {"data", file}}}}}}});
  refused({"evaluation.sets", "task_average"},
          {{"evaluation", {{"sets", {{{"name", "task_average"}, {"data", file}}}}}}});
  refused({"share", "3 shares for 2 models"}, {{"share", {0.2, 0.3, 0.5}}});
  refused({"share", "not positive"}, {{"share", {1, 0}}});
  refused({"matching", "compare"},
          {{"matching", "m.safetensors"}, {"compare", {{{"method", "average"}}}}});
  refused({"landscape.plane", "zip"}, {{"landscape", {{"plane", 5}}}});
  refused({"landscape.plane", "average"}, {{"method", "average"}, {"landscape", {{"plane", 5}}}});
  refused({"landscape.margin", "1000"},
          {{"method", "align"}, {"landscape", {{"plane", 5}, {"margin", 1e300}}}});
  refused({"landscape.plane", "4 models"},
          {{"method", "align"}, {"models", {"a", "b", "c", "d"}}, {"landscape", {{"plane", 5}}}});
  refused({"landscape.line", "3 points"}, {{"landscape", {{"line", 2}}}});
  refused({"landscape.sets", "jiont"}, {{"landscape", {{"sets", {"jiont"}}}}});
  refused({"landscape", "evaluation.sets"},
          {{"evaluation", {{"sets", json::array()}}}, {"landscape", json::object()}});
  const json image = {{"name", "image"},
                      {"objective", {{"type", "regression"}, {"target", "image"}}},
                      {"data", {{"split", "test"}}}};
  refused({"landscape", "all sets are regressions"},
          {{"evaluation", {{"sets", {image}}}}, {"landscape", json::object()}});
  const json both{{{"name", "joint"}, {"data", {{"split", "test"}}}}, image};
  refused({"landscape.sets", "\"image\" is a regression"},
          {{"evaluation", {{"sets", both}}}, {"landscape", {{"sets", {"image"}}}}});
  // Not named, it is left out.
  CHECK_NOTHROW(read({{"models", {"a.pt", "b.pt"}},
                      {"activations", {{"data", {{"split", "train"}}}}},
                      {"evaluation", {{"sets", both}}},
                      {"landscape", json::object()}}));
}

TEST_CASE("models whose names make reports ambiguous are refused", "[config]") {
  const auto with = [](const json& change) {
    json raw = {{"models", {"/a/best.pt", "/b/best.pt"}},
                {"activations", {{"data", {{"split", "train"}}}}},
                {"evaluation", {{"sets", {{{"name", "joint"}, {"data", {{"split", "test"}}}}}}}}};
    raw.merge_patch(change);
    return read(raw);
  };
  const auto refused = [&](const std::vector<std::string>& parts, const json& change) {
    const MergeConfig config = with(change);
    expect_error(ErrorKind::kConfig, parts, [&] { config.require_names_apart(); });
  };
  refused({"models: models[0] (/a/best.pt) and models[1] (/b/best.pt) are both called \"best\"",
           "scores", R"({"name": ..., "script": ...})"},
          json::object());
  refused({"models[1] (mlp) and models[2] (mlp)", "\"mlp\""},
          {{"models", {"/a/best.pt", {{"builtin", "mlp"}}, {{"builtin", "mlp"}}}}});
  const json unscored = {{"evaluation", {{"originals", false}}}};
  json lines = unscored;
  lines["landscape"] = {{"line", 3}};
  refused({"both called \"best\"", "scores"}, lines);
  json heads = unscored;
  heads["partial"] = {{"until", "fc1"}};
  refused({"both called \"best\"", "heads"}, heads);
  // Nothing is told apart by a name, or the names differ.
  json no_lines = unscored;
  no_lines["landscape"] = {{"line", 0}, {"plane", 0}};
  for (const json& free : {unscored, no_lines, json{{"evaluation", {{"sets", json::array()}}}},
                           json{{"models", {"/a/model.pt", "/b/model.pt"}}}})
    CHECK_NOTHROW(with(free).require_names_apart());
}

TEST_CASE("shares are normalised, and equal where none are given", "[config]") {
  MergeConfig config = read({{"models", {"a.pt", "b.pt"}},
                             {"space", "weight"},
                             {"share", {3, 1}},
                             {"normalization", {{"mode", "none"}}}});
  CHECK(config.shares() == std::vector<double>{0.75, 0.25});
  config.share = {1e308, 1e308};
  CHECK(config.shares() == std::vector<double>{0.5, 0.5});
  config.share.clear();
  CHECK(config.shares() == std::vector<double>{0.5, 0.5});
}

}  // namespace
}  // namespace weightsmith
