#include "weightsmith/train/comparison.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "support/expect_error.h"
#include "support/temporary_folder.h"
#include "unit/train/trainer_runs.h"
#include "weightsmith/core/atomic_file.h"
#include "weightsmith/core/progress.h"
#include "weightsmith/core/stop.h"
#include "weightsmith/tensor/safetensors.h"
#include "weightsmith/train/checkpoint.h"
#include "weightsmith/train/train_data.h"

namespace weightsmith {
namespace {

TrainConfig comparison_config(const std::filesystem::path& out) {
  TrainConfig config = testing::tiny_training(out);
  config.augmentations = {{{Augmentation::Name::kRandomCrop}}, {}};
  config.method.heads = 2;
  config.compare = {{"sgd", {{"type", "sgd"}}},
                    {"lookaround", {{"type", "lookaround"}}},
                    {"fast", {{"type", "lookahead"}, {"alpha", 1.0}}}};
  config.seeds = {3, 1, 7};
  return config;
}

void ignore(const std::filesystem::path&) {}

TEST_CASE("methods are compared over seeds at equal compute", "[train]") {
  testing::TemporaryFolder folder;
  const TrainConfig config = comparison_config(folder / "out");
  NoProgress progress;
  std::set<std::filesystem::path> files;
  int starts = 0;
  TrainOptions options;
  options.on_start = [&](const auto&) {
    CHECK_FALSE(std::filesystem::exists(config.out / "comparison.json"));
    ++starts;
  };
  const nlohmann::json result =
      compare_methods(config, options, progress, [&](const auto& path) { files.insert(path); });
  CHECK(starts == 9);
  CHECK(result == nlohmann::json::parse(read_text(config.out / "comparison.json")));
  CHECK(result["runs"] == 9);
  CHECK(result["reused"] == 0);
  CHECK(result["scored_on"] == "test");
  CHECK(result["compute"]["gradient_evaluations"] == 3 * 4 * 2);
  REQUIRE(result["methods"].size() == 3);

  // Figures are those of the runs, and of single runs with the same configuration.
  for (std::size_t m = 0; m < 3; ++m) {
    const auto& method = result["methods"][m];
    double sum = 0;
    for (std::size_t s = 0; s < 3; ++s) {
      TrainConfig single = config;
      single.method = config.compared_method(m);
      single.seed = config.seeds[s];
      single.out = folder / "single";
      TrainOptions anew;
      anew.overwrite = true;
      const double accuracy = train(single, anew, progress).test->accuracy;
      CHECK(method["accuracies"][s] == accuracy);
      sum += accuracy;
    }
    CHECK(method["accuracy"]["mean"].get<double>() == Approx(sum / 3));
    CHECK(method.contains("against_first") == (m > 0));
  }
  double squares = 0;
  const std::vector<double> sgd = result["methods"][0]["accuracies"];
  const double mean = (sgd[0] + sgd[1] + sgd[2]) / 3;
  for (const double a : sgd) squares += (a - mean) * (a - mean);
  CHECK(result["methods"][0]["accuracy"]["deviation"].get<double>() ==
        Approx(std::sqrt(squares / 2)));

  // With α = 1 Lookahead is its base optimiser: the streams were the same, to the bit.
  CHECK(result["methods"][2]["accuracies"] == result["methods"][0]["accuracies"]);
  CHECK(result["methods"][2]["against_first"]["mean_difference"] == 0);
  CHECK(result["methods"][2]["against_first"]["p"].is_null());
  CHECK(read_text(config.out / "comparison.csv").starts_with("method,seed,accuracy"));
  CHECK_THAT(read_text(config.out / "comparison.md"),
             Catch::Contains("24 gradient evaluations") && Catch::Contains("| lookaround"));
  CHECK(files.count(config.out / "fast" / "seed-7" / "model.pt") == 1);
  for (const auto& file : files) CHECK(std::filesystem::exists(file));
  CHECK(checkpoints_in(config.out / "sgd" / "seed-3").empty());

  testing::expect_error(ErrorKind::kConfig, {"seed-3", "--overwrite"},
                        [&] { compare_methods(config, {}, progress, ignore); });
}

TEST_CASE("a comparison says whether streams show the same samples", "[train]") {
  testing::TemporaryFolder folder;
  TrainConfig config = comparison_config(folder / "out");
  config.compare = {{"sgd", {{"type", "sgd"}}}, {"plain", {{"type", "lookahead"}, {"alpha", 1.0}}}};
  config.seeds = {1};
  config.epochs = 1;
  NoProgress progress;
  const auto said = [&] {
    const std::string samples = compare_methods(config, {}, progress, ignore)["compute"]["samples"];
    CHECK_THAT(samples, Catch::Contains("the same augmented samples in the same order"));
    CHECK_THAT(read_text(config.out / "comparison.md"),
               Catch::Contains(samples.substr(std::string("runs of one seed see ").size())));
    return samples;
  };
  CHECK_THAT(said(), !Catch::Contains("each stream"));
  config.data.draw = DrawMode::kIndependent;
  config.out = folder / "independent";
  CHECK_THAT(said(), Catch::Contains("another one in each stream"));
  // Methods are compared on the same streams all the same.
  const nlohmann::json result =
      nlohmann::json::parse(read_text(config.out / "comparison.json"))["methods"];
  CHECK(result[0]["accuracies"] == result[1]["accuracies"]);
  CHECK(result[0]["loss"]["mean"].get<double>() == Approx(result[1]["loss"]["mean"].get<double>()));
}

TEST_CASE("networks of all seeds together are scored as an ensemble", "[train]") {
  testing::TemporaryFolder folder;
  TrainConfig config = comparison_config(folder / "out");
  config.compare.pop_back();
  config.seeds = {3, 1};
  NoProgress progress;
  const nlohmann::json result = compare_methods(config, {}, progress, ignore);
  const TrainData data = load_train_data(config.data, 3);
  for (const auto& method : result["methods"]) {
    std::vector<ScriptModel> networks;
    for (const char* seed : {"seed-3", "seed-1"}) {
      ModelRef ref;
      ref.script = config.out / method["name"].get<std::string>() / seed / "model.pt";
      networks.push_back(ScriptModel::load(ref, {}));
    }
    std::int64_t correct = 0;
    for (std::int64_t i = 0; i < data.test->size(); ++i) {
      const at::NoGradGuard no_grad;
      const at::Tensor image = normalised_batch(*data.test, i, 1);
      const at::Tensor both =
          networks[0].forward(image).softmax(1) + networks[1].forward(image).softmax(1);
      correct += both.argmax(1).item<std::int64_t>() == data.test->labels[i].item<std::int64_t>();
    }
    CHECK(method["ensemble"]["accuracy"] == static_cast<double>(correct) / 40);
    CHECK_FALSE(method.contains("flatness"));
  }
  config.out = folder / "one";
  config.seeds = {3};
  CHECK_FALSE(compare_methods(config, {}, progress, ignore)["methods"][0].contains("ensemble"));
}

TEST_CASE("flatness is measured with a run, or afterwards without training again", "[train]") {
  testing::TemporaryFolder folder;
  TrainConfig config = comparison_config(folder / "with");
  config.compare.pop_back();
  config.seeds = {3};
  config.freeze = {"*.bias"};
  config.flatness.emplace();
  config.flatness->directions = 2;
  config.flatness->ascent_steps = 2;
  config.flatness->power_iterations = 3;
  NoProgress progress;
  const nlohmann::json with = compare_methods(config, {}, progress, ignore);
  const auto& flatness = with["methods"][1]["flatness"];
  CHECK(flatness["worst_loss"] > flatness["loss"]);
  CHECK(flatness["top_eigenvalue"] > 0);
  CHECK_THAT(read_text(config.out / "comparison.md"), Catch::Contains("top eigenvalue"));

  const auto measured = config.flatness;
  config.out = folder / "without";
  config.flatness.reset();
  compare_methods(config, {}, progress, ignore);
  config.flatness = measured;
  TrainOptions options;
  options.resume = true;
  const nlohmann::json after = compare_methods(config, options, progress, ignore);
  CHECK(after["reused"] == 2);
  CHECK(after["methods"] == with["methods"]);
  // Another radius is another measurement, the same one is not repeated.
  config.flatness->worst_radius = 0.1;
  const nlohmann::json other = compare_methods(config, options, progress, ignore);
  CHECK(other["methods"][1]["flatness"]["worst_loss"] > flatness["worst_loss"]);
  CHECK(compare_methods(config, options, progress, ignore) == other);
}

TEST_CASE("a comparison stopped and resumed comes to the same figures", "[train]") {
  testing::TemporaryFolder folder;
  TrainConfig config = comparison_config(folder / "whole");
  config.seeds = {3, 1};
  NoProgress progress;
  nlohmann::json whole = compare_methods(config, {}, progress, ignore);
  config.out = folder / "stopped";
  TrainOptions options;
  bool done = false;
  int stops = 0;
  nlohmann::json pieces;
  while (!done) {
    testing::StopAt stopping(23);
    try {
      pieces = compare_methods(config, options, stopping, ignore);
      done = true;
    } catch (const Interrupted&) {
      ++stops;
      options.resume = true;
    }
    request_stop(0);
    REQUIRE(stops < 20);
  }
  CHECK(stops >= 3);
  CHECK(pieces["reused"] > 0);
  pieces.erase("reused");
  whole.erase("reused");
  CHECK(pieces == whole);
  CHECK(read_text(folder / "stopped" / "comparison.svg") ==
        read_text(folder / "whole" / "comparison.svg"));
  // One whose configuration has changed is not taken for the other.
  config.compare[1].overrides["k"] = 3;
  std::filesystem::remove_all(config.out / "lookaround");
  CHECK(compare_methods(config, options, progress, ignore)["reused"] == 4);
  // A version that knew no such list left it as it is by default.
  const auto file = config.out / "sgd" / "seed-1" / "results.json";
  nlohmann::json older = nlohmann::json::parse(read_text(file));
  REQUIRE(older["config"]["optimizer"].erase("groups") == 1);
  write_text_atomically(file, older.dump());
  CHECK(compare_methods(config, options, progress, ignore)["reused"] == 6);
  config.compare[1].overrides["k"] = 4;
  CHECK(compare_methods(config, options, progress, ignore)["reused"] == 4);
}

TEST_CASE("comparisons that make no sense are refused", "[train]") {
  testing::TemporaryFolder folder;
  const auto refused = [&](const std::function<void(TrainConfig&)>& change) {
    TrainConfig config = comparison_config(folder / "out");
    change(config);
    return testing::error_of(ErrorKind::kConfig, [&] { config.validate(); });
  };
  CHECK_THAT(refused([](TrainConfig& c) { c.seeds = {1, 1}; }), Catch::Contains("seeds"));
  CHECK_THAT(refused([](TrainConfig& c) { c.seeds.clear(); }), Catch::Contains("seeds"));
  CHECK_THAT(refused([](TrainConfig& c) { c.compare[2].name = "sgd"; }),
             Catch::Contains("compare[2]") && Catch::Contains("\"sgd\""));
  CHECK_THAT(refused([](TrainConfig& c) { c.compare[2].name = "a/b"; }),
             Catch::Contains("compare[2]"));
  CHECK_THAT(refused([](TrainConfig& c) { c.data.test.reset(); }), Catch::Contains("data.test"));
  CHECK_THAT(refused([](TrainConfig& c) { c.compare[0].overrides["type"] = "swad"; }),
             Catch::Contains("data.validation"));
  CHECK_THAT(refused([](TrainConfig& c) { c.compare[1].overrides["hads"] = 3; }),
             Catch::Contains("compare[1]") && Catch::Contains("\"heads\""));
  CHECK_FALSE(std::filesystem::exists(folder / "out"));
}

}  // namespace
}  // namespace weightsmith
