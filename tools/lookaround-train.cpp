// lookaround-train: train a network with Lookaround, or with the methods it is compared with.
//
//   lookaround-train --config configs/lookaround-train/digits.json --set method.type=sgd --out
//   runs/sgd
//
// Zhang, Liu, Song, Zhu, Xu, Song: "Lookaround Optimizer: k steps around, 1 step average", NeurIPS
// 2023.

#include "common/tool.h"
#include "weightsmith/core/atomic_file.h"
#include "weightsmith/model/jit_runtime.h"
#include "weightsmith/train/comparison.h"
#include "weightsmith/train/train_config.h"
#include "weightsmith/train/trainer.h"

namespace weightsmith {
namespace {

/// What is measured of a run, and the methods and seeds of a comparison, can be added when all is
/// done: finished trainings are taken as they are.
bool extends(nlohmann::json finished, nlohmann::json config) {
  const auto compares = [](const nlohmann::json& c) { return !c.at("compare").empty(); };
  if (!finished.contains("compare") || compares(finished) != compares(config)) return false;
  for (nlohmann::json* json : {&finished, &config})
    for (const char* key : {"flatness", "compare", "seeds"}) json->erase(key);
  return finished == config;
}

const ToolAbout kAbout{
    "lookaround-train",
    "Trains a network with Lookaround: several networks start from one point, each takes k steps "
    "on its own\n"
    "augmentation of the same samples, then they are averaged; repeat (Zhang et al., \"Lookaround "
    "Optimizer: k steps\n"
    "around, 1 step average\", NeurIPS 2023). Also trains with SGD, SWA, SWAD, Lookahead and EMA "
    "at "
    "equal compute.",
    "lookaround-train --config train.json --set method.heads=3 --out runs/lookaround",
    {},
    extends};

nlohmann::json compare(const TrainConfig& config, const TrainOptions& options, Run& run) {
  nlohmann::json comparison = compare_methods(config, options, run.progress(),
                                              [&run](const auto& path) { run.wrote(path); });
  run.show(read_text(config.out / "comparison.md"));
  return comparison;
}

nlohmann::json train_network(const TrainConfig& config, Run& run) {
  keep_freed_memory();
  TrainOptions options;
  options.device = run.settings().device;
  options.resume = run.settings().resume;
  options.overwrite = run.settings().overwrite;
  options.trust = run.settings().trust;
  const bool compares = !config.compare.empty();
  if (run.settings().dry_run)
    return compares ? comparison_plan(config, options) : training_plan(config, options);
  options.on_start = [&run](const RunInputs& inputs) {
    if (!run.started()) run.start();
    run.record().add_inputs(inputs);
  };
  if (compares) return compare(config, options, run);
  const TrainResult result = train(config, options, run.progress());
  for (const auto& path : {result.model, result.weights, result.metrics, result.curves})
    run.wrote(path);
  if (result.best) run.wrote(result.best->model);
  run.record().set("images_per_s", result.images_per_s);
  run.show(train_result_table(result));
  return train_result_json(result, config);
}

}  // namespace
}  // namespace weightsmith

int main(int argc, char** argv) {
  using namespace weightsmith;
  return run_tool<TrainConfig>(argc, argv, kAbout, train_network);
}
