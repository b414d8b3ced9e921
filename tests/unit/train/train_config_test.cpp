#include "weightsmith/train/train_config.h"

#include <catch2/catch.hpp>
#include <fstream>
#include <nlohmann/json.hpp>

#include "support/expect_error.h"
#include "weightsmith/config/fields.h"

namespace weightsmith {
namespace {

TrainConfig parse(const nlohmann::json& json) {
  const std::filesystem::path base = "/base";
  TrainConfig config;
  from_config(ConfigNode{json, "", base}, config);
  return config;
}

nlohmann::json example() {
  return nlohmann::json::parse(R"({
    "model": {"builtin": "resnet20", "options": {"outputs": 10}},
    "data": {"train": {"split": "train"}, "test": {"split": "test"}, "validation": 0.1, "draw": "independent"},
    "augmentations": [["random_crop", "horizontal_flip"], ["random_crop", "rotation"], []],
    "method": {"type": "lookaround", "heads": 3, "k": 5},
    "optimizer": {"type": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
    "schedule": {"type": "cosine", "warmup_epochs": 1, "min_lr": 1e-5},
    "epochs": 200, "batch_size": 128, "objective": {"type": "cross_entropy"},
    "checkpoint": {"every_epochs": 1, "keep": 2}, "out": "runs/resnet20"})");
}

nlohmann::json read_schema(const std::string& name) {
  std::ifstream in(std::string(WEIGHTSMITH_SOURCE_DIR) + "/configs/schema/" + name +
                   ".schema.json");
  REQUIRE(in);
  return nlohmann::json::parse(in);
}

TEST_CASE("the documented configuration is read and survives writing", "[train]") {
  const TrainConfig config = parse(example());
  config.validate();
  CHECK(config.augmentations.size() == 3);
  CHECK(config.augmentations[1][1].name == Augmentation::Name::kRotation);
  CHECK(config.data.draw == DrawMode::kIndependent);
  CHECK(config.out == "/base/runs/resnet20");
  const nlohmann::json written = to_config(config);
  CHECK(to_config(parse(written)) == written);
}

TEST_CASE("every documented default is the struct's", "[train]") {
  const nlohmann::json schema = read_schema("lookaround-train");
  const nlohmann::json data_schema = read_schema("common")["definitions"]["data"];
  const nlohmann::json defaults = to_config(TrainConfig{});
  for (const char* section : {"method", "optimizer", "schedule", "checkpoint", "data"})
    for (const auto& [key, property] : schema["properties"][section]["properties"].items())
      if (property.contains("default")) {
        INFO(section << "." << key);
        CHECK(property["default"] == defaults[section][key]);
      }
  for (const auto& [key, property] : schema["properties"].items()) {
    INFO(key);
    const bool optional = key == "distillation" || key == "flatness";  // without one there is none
    CHECK((defaults.contains(key) || optional));
    if (property.contains("default")) CHECK(property["default"] == defaults[key]);
  }
  for (const auto& [key, value] : defaults.items()) {
    INFO(key);
    CHECK(schema["properties"].contains(key));
  }
  const nlohmann::json flatness = to_config(FlatnessConfig{});
  const nlohmann::json flatness_schema = schema["properties"]["flatness"]["properties"];
  CHECK(flatness.size() == flatness_schema.size());
  for (const auto& [key, property] : flatness_schema.items()) {
    INFO("flatness " << key);
    CHECK(property["default"] == flatness[key]);
  }
  const nlohmann::json data_defaults = to_config(DataConfig{});
  for (const auto& [key, property] : data_schema["properties"].items())
    if (property.contains("default")) {
      INFO("data " << key);
      CHECK(property["default"] == data_defaults[key]);
    }
  for (const auto& [key, value] : data_defaults.items()) {
    INFO("data " << key);
    CHECK(data_schema["properties"].contains(key));
  }
}

TEST_CASE("a teacher's documented defaults are the struct's", "[train]") {
  const nlohmann::json schema = read_schema("lookaround-train")["properties"]["distillation"];
  const nlohmann::json defaults = to_config(DistillationConfig{});
  for (const auto& [key, property] : schema["properties"].items()) {
    INFO(key);
    if (property.contains("default")) CHECK(property["default"] == defaults[key]);
  }
  for (const auto& [key, value] : defaults.items()) CHECK(schema["properties"].contains(key));
}

TEST_CASE("compared methods take what they do not say from the method", "[train]") {
  nlohmann::json json = example();
  json["compare"] = {"swa", {{"type", "lookaround"}, {"k", 1}, {"name", "every-round"}}};
  const TrainConfig config = parse(json);
  config.validate();
  CHECK(config.compare[0].name == "swa");
  CHECK(config.compared_method(0).type == MethodConfig::Type::kSwa);
  CHECK(config.compared_method(0).k == 5);
  CHECK(config.compare[1].name == "every-round");
  CHECK(config.compared_method(1).k == 1);
  CHECK(config.seeds == std::vector<std::int64_t>{0, 1, 2});
  const nlohmann::json written = to_config(config);
  CHECK(to_config(parse(written)) == written);
}

TEST_CASE("every shipped configuration is valid", "[train]") {
  int seen = 0;
  const std::string folder = std::string(WEIGHTSMITH_SOURCE_DIR) + "/configs/lookaround-train";
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    INFO(entry.path());
    std::ifstream in(entry.path());
    // Configurations may hold comments.
    const nlohmann::json json = nlohmann::json::parse(in, nullptr, true, true);
    parse(json).validate();
    ++seen;
  }
  CHECK(seen >= 1);
}

TEST_CASE("configurations that contradict themselves are refused by key", "[train]") {
  const auto refused = [](const char* pointer, const nlohmann::json& value) {
    nlohmann::json json = example();
    json[nlohmann::json::json_pointer(pointer)] = value;
    return testing::error_of(ErrorKind::kConfig, [&] { parse(json).validate(); });
  };
  CHECK_THAT(refused("/method/heads", 2), Catch::Contains("3 pipelines for 2 heads"));
  CHECK_THAT(refused("/method/k", 0), Catch::Contains("method.k"));
  CHECK_THAT(refused("/optimizer/lr", 0), Catch::Contains("optimizer.lr"));
  CHECK_THAT(refused("/optimizer/momentum", 1), Catch::Contains("optimizer.momentum"));
  CHECK_THAT(refused("/optimizer", {{"nesterov", true}, {"momentum", 0}}),
             Catch::Contains("optimizer.nesterov"));
  CHECK_THAT(refused("/optimizer/type", "adagrad"),
             Catch::Contains("known values: sgd, adam, adamw"));
  CHECK_THAT(refused("/optimizer/beta2", 1), Catch::Contains("optimizer.beta2"));
  CHECK_THAT(refused("/optimizer/clip_norm", 0), Catch::Contains("optimizer.clip_norm"));
  CHECK_THAT(refused("/optimizer/accumulate", 0), Catch::Contains("optimizer.accumulate"));
  const auto group = [](const char* key, const nlohmann::json& value) {
    nlohmann::json json{{"parameters", {"*"}}};
    json[key] = value;
    return nlohmann::json::array({json});
  };
  CHECK_THAT(refused("/optimizer/groups", group("parameters", nlohmann::json::array())),
             Catch::Contains("optimizer.groups[0].parameters"));
  CHECK_THAT(refused("/optimizer/groups", group("lr_factor", 0)),
             Catch::Contains("optimizer.groups[0].lr_factor"));
  CHECK_THAT(refused("/optimizer/groups", group("weight_decay", -1)),
             Catch::Contains("optimizer.groups[0].weight_decay"));
  CHECK_THAT(refused("/method/batch_norm_scores", {"shared", "shared"}),
             Catch::Contains("method.batch_norm_scores"));
  CHECK_THAT(refused("/method/batch_norm_scores", nlohmann::json::array({"auto"})),
             Catch::Contains("method.batch_norm_scores"));
  CHECK_THAT(refused("/method", {{"type", "swa"}, {"start_epoch", 200}}),
             Catch::Contains("method.start_epoch"));
  CHECK_THAT(refused("/method/alpha", 0), Catch::Contains("method.alpha"));
  CHECK_THAT(refused("/method/decay", 1), Catch::Contains("method.decay"));
  CHECK_THAT(refused("/method/r", 0.9), Catch::Contains("method.r"));
  CHECK_THAT(refused("/schedule/type", "multi_step"), Catch::Contains("schedule.milestones"));
  CHECK_THAT(refused("/schedule/milestones", {60, 30}), Catch::Contains("schedule.milestones"));
  CHECK_THAT(refused("/schedule/gamma", 0), Catch::Contains("schedule.gamma"));
  CHECK_THAT(refused("/schedule/peak", 1), Catch::Contains("schedule.peak"));
  CHECK_THAT(refused("/schedule/warmup_epochs", 201), Catch::Contains("schedule.warmup_epochs"));
  CHECK_THAT(refused("/schedule/min_lr", 0.2), Catch::Contains("schedule.min_lr"));
  CHECK_THAT(refused("/data/validation", 1), Catch::Contains("data.validation"));
  CHECK_THAT(refused("/data/test/limit", 0), Catch::Contains("data.test.limit"));
  CHECK_THAT(refused("/epochs", 0), Catch::Contains("epochs"));
  CHECK_THAT(
      refused("/precision", "half"),
      Catch::Contains("precision") && Catch::Contains("known values: float32, bfloat16, float16"));
  CHECK_THAT(refused("/augment_on", "gpu"),
             Catch::Contains("augment_on") && Catch::Contains("known values: auto, cpu, device"));
  CHECK_THAT(refused("/out", ""), Catch::Contains("--out"));
  CHECK_THAT(refused("/model", nlohmann::json::object()), Catch::Contains("model"));
  CHECK_THAT(refused("/augmentations/0/0", "random_corp"), Catch::Contains("augmentations[0][0]"));
  CHECK_THAT(refused("/distillation", {{"teacher", {{"builtin", "resnet20"}}}}),
             Catch::Contains("distillation.teacher"));
  CHECK_THAT(refused("/distillation", {{"teacher", "t.pt"}, {"weight", 0}}),
             Catch::Contains("distillation.weight"));
  CHECK_THAT(refused("/distillation", {{"teacher", "t.pt"}, {"temperature", 0}}),
             Catch::Contains("distillation.temperature"));
  nlohmann::json swad = example();
  swad["method"]["type"] = "swad";
  parse(swad).validate();
  swad["data"].erase("validation");
  testing::expect_error(ErrorKind::kConfig, {"data.validation", "swad"},
                        [&] { parse(swad).validate(); });
  CHECK_THAT(refused("/batchsize", 3), Catch::Contains("did you mean \"batch_size\""));
}

}  // namespace
}  // namespace weightsmith
