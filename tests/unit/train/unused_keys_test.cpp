#include "weightsmith/train/unused_keys.h"

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>
#include <set>

#include "support/expect_error.h"
#include "support/temporary_folder.h"
#include "unit/train/tiny_training.h"
#include "weightsmith/config/fields.h"
#include "weightsmith/core/progress.h"
#include "weightsmith/train/comparison.h"
#include "weightsmith/train/trainer.h"

namespace weightsmith {
namespace {

TrainConfig config_of(const nlohmann::json& json, TrainConfig config = {}) {
  const std::filesystem::path base = "/base";
  from_config(ConfigNode{json, "", base}, config);
  return config;
}

/// The keys that are warned of: what stands before " has".
std::set<std::string> unused(const nlohmann::json& json) {
  std::set<std::string> keys;
  for (const std::string& warning : unused_key_warnings(config_of(json)))
    CHECK(keys.insert(warning.substr(0, warning.find(" has no effect"))).second);
  return keys;
}

using Keys = std::set<std::string>;

struct WarningList final : Progress {
  void begin(std::string_view, std::int64_t, std::string_view) override {}
  void update(std::int64_t, std::string_view) override {}
  void end() override {}
  void warn(std::string_view message) override { all.emplace_back(message); }
  std::vector<std::string> all;
};

TEST_CASE("keys of another type are warned of with their owners and a remedy", "[train]") {
  const auto warnings = unused_key_warnings(
      config_of({{"method", {{"type", "sgd"}, {"k", 5}}}, {"schedule", {{"type", "constant"}}}}));
  REQUIRE(warnings.size() == 1);
  CHECK(warnings[0] ==
        "method.k has no effect with method.type sgd: it is a key of lookaround or lookahead "
        "(remove it, or change the type)");
}

TEST_CASE("each type is warned of the keys that it does not use", "[train]") {
  const nlohmann::json method = {
      {"heads", 2}, {"k", 3},     {"alpha", 0.7}, {"decay", 0.9}, {"start_epoch", 2},
      {"every", 2}, {"lr", 0.01}, {"n_s", 2},     {"r", 1.5},     {"batch_norm", "recompute"}};
  const std::map<std::string, Keys> used = {{"sgd", {}},
                                            {"lookaround", {"heads", "k", "batch_norm"}},
                                            {"lookahead", {"k", "alpha", "batch_norm"}},
                                            {"swa", {"start_epoch", "every", "lr", "batch_norm"}},
                                            {"swad", {"n_s", "r", "batch_norm"}},
                                            {"ema", {"decay", "batch_norm"}}};
  for (const auto& [type, keys] : used) {
    INFO(type);
    nlohmann::json json = method;
    json["type"] = type;
    Keys expected;
    for (const auto& [key, value] : method.items())
      if (keys.count(key) == 0) expected.insert("method." + key);
    CHECK(unused({{"method", json}}) == expected);
  }

  const nlohmann::json adam = {{"type", "adam"}, {"momentum", 0.5}, {"beta1", 0.8}};
  CHECK(unused({{"optimizer", adam}}) == Keys{"optimizer.momentum"});
  CHECK(unused({{"optimizer", {{"momentum", 0.5}, {"epsilon", 1e-6}, {"lr", 0.2}}}}) ==
        Keys{"optimizer.epsilon"});
  const nlohmann::json steps = {
      {"min_lr", 0.01}, {"milestones", {1}}, {"gamma", 0.5}, {"peak", 0.5}};
  const std::map<std::string, Keys> scheduled = {
      {"constant", {"schedule.min_lr", "schedule.milestones", "schedule.gamma", "schedule.peak"}},
      {"cosine", {"schedule.milestones", "schedule.gamma", "schedule.peak"}},
      {"multi_step", {"schedule.min_lr", "schedule.peak"}},
      {"one_cycle", {"schedule.milestones", "schedule.gamma"}}};
  for (const auto& [type, keys] : scheduled) {
    INFO(type);
    nlohmann::json json = steps;
    json["type"] = type;
    CHECK(unused({{"schedule", json}}) == keys);
  }
}

TEST_CASE("what a comparison uses of the method is not warned of", "[train]") {
  nlohmann::json json = {{"method", {{"heads", 3}, {"k", 4}, {"alpha", 0.7}}},
                         {"compare", {"sgd", "lookahead"}}};
  CHECK(unused(json) == Keys{"method.heads"});
  json["compare"] = {"sgd", "lookaround"};
  CHECK(unused(json) == Keys{"method.alpha"});
  json["compare"] = {{{"type", "swa"}, {"k", 2}, {"every", 2}},
                     {{"type", "ema"}, {"lr", nullptr}},
                     {{"type", "lookaround"}, {"k", 2}, {"decay", 0.5}}};
  CHECK(unused(json) == Keys{"method.alpha", "compare[0].k", "compare[2].decay"});

  json["compare"][1]["kk"] = 2;
  testing::expect_error(ErrorKind::kConfig, {"compare[1].kk", "unknown key"},
                        [&] { unused_key_warnings(config_of(json)); });
}

TEST_CASE("epochs of annealing without a rate to anneal to are warned of", "[train]") {
  nlohmann::json swa = {{"type", "swa"}, {"anneal_epochs", 4}};
  const auto warnings = unused_key_warnings(config_of({{"method", swa}}));
  REQUIRE(warnings.size() == 1);
  CHECK(warnings[0] ==
        "method.anneal_epochs has no effect without method.lr: it is over how many epochs swa gets "
        "to that rate (set method.lr, or remove it)");
  swa["lr"] = 0.01;
  CHECK(unused({{"method", swa}}) == Keys{});
  swa["lr"] = nullptr;
  CHECK(unused({{"method", swa}}) == Keys{"method.anneal_epochs"});
  CHECK(unused({{"method", {{"type", "swa"}}}}) == Keys{});

  // Of another type: told of once, as a key of swa.
  CHECK(unused({{"method", {{"type", "ema"}, {"anneal_epochs", 4}}}}) ==
        Keys{"method.anneal_epochs"});

  const nlohmann::json fast = {{"type", "swa"}, {"lr", 0.01}, {"name", "fast"}};
  nlohmann::json json = {{"method", {{"anneal_epochs", 4}}}, {"compare", {"sgd", "swa"}}};
  CHECK(unused(json) == Keys{"method.anneal_epochs"});
  json["compare"] = {"sgd", "swa", fast};
  CHECK(unused(json) == Keys{});
  json["method"]["lr"] = 0.02;
  json["compare"] = {"sgd", "swa"};
  CHECK(unused(json) == Keys{});
  json.erase("method");
  json["compare"] = {fast, {{"type", "swa"}, {"anneal_epochs", 2}}};
  CHECK(unused(json) == Keys{"compare[1].anneal_epochs"});
}

TEST_CASE("a configuration that spells out everything is not warned of defaults", "[train]") {
  testing::TemporaryFolder folder;
  TrainConfig config = testing::tiny_training(folder / "out");
  config.method = {};
  config.method.type = MethodConfig::Type::kSgd;
  nlohmann::json json = to_config(config);
  CHECK(unused(json) == Keys{});
  json["method"]["k"] = 6;
  json["optimizer"]["beta1"] = 0.7;
  CHECK(unused(json) == Keys{"method.k", "optimizer.beta1"});
}

TEST_CASE("keys without effect are not held against a configuration", "[train]") {
  testing::TemporaryFolder folder;
  const nlohmann::json json = {
      {"method", {{"type", "sgd"}}},
      {"optimizer", {{"type", "adam"}, {"lr", 1e-6}, {"nesterov", true}, {"momentum", 0}}},
      {"schedule", {{"type", "constant"}, {"min_lr", 1e-3}}}};
  TrainConfig config = config_of(json, testing::tiny_training(folder / "out"));
  CHECK_NOTHROW(config.validate());
  config.schedule.type = ScheduleConfig::Type::kCosine;
  testing::expect_error(ErrorKind::kConfig, {"schedule.min_lr"}, [&] { config.validate(); });
  config.schedule.type = ScheduleConfig::Type::kConstant;
  config.optimizer.type = OptimizerConfig::Type::kSgd;
  testing::expect_error(ErrorKind::kConfig, {"optimizer.nesterov"}, [&] { config.validate(); });
}

TEST_CASE("runs, comparisons and their plans say which keys have no effect, once", "[train]") {
  testing::TemporaryFolder folder;
  TrainConfig config = config_of({{"method", {{"type", "sgd"}, {"heads", 2}}}},
                                 testing::tiny_training(folder / "run"));
  config.epochs = 1;
  const nlohmann::json expected = {
      "method.heads has no effect with method.type sgd: it is a key of lookaround (remove it, or "
      "change the type)"};
  CHECK(training_plan(config, {})["warnings"] == expected);
  WarningList progress;
  train(config, {}, progress);
  CHECK(nlohmann::json(progress.all) == expected);

  config.compare = {{"sgd", {{"type", "sgd"}}}, {"fast", {{"type", "lookahead"}, {"decay", 0.5}}}};
  config.seeds = {0, 1};
  config.out = folder / "compared";
  const nlohmann::json plan = comparison_plan(config, {});
  CHECK(plan["warnings"].size() == 2);
  for (const auto& [name, method] : plan["methods"].items())
    CHECK_FALSE(method.contains("warnings"));
  progress.all.clear();
  compare_methods(config, {}, progress, [](const auto&) {});
  CHECK(nlohmann::json(progress.all) == plan["warnings"]);
  CHECK_THAT(progress.all[0], Catch::Contains("method.heads") && Catch::Contains("lookaround"));
  CHECK_THAT(progress.all[1], Catch::Contains("compare[1].decay") && Catch::Contains("ema"));
}

}  // namespace
}  // namespace weightsmith
