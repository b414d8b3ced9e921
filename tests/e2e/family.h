#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "support/temporary_folder.h"
#include "tools.h"

namespace weightsmith::testing {

/// Networks of the digits: one victim, three copies of it that were trained on, and five networks
/// of other seeds.
struct Family {
  Family() {
    train("victim", {}, 1, 12, 0.1);
    for (int i = 0; i < 3; ++i)
      train("tuned" + std::to_string(i), folder / "victim" / "model.pt", 10 + i, 4, 0.02);
    for (int i = 0; i < 5; ++i) train("other" + std::to_string(i), {}, 20 + i, 12, 0.1);
  }
  void train(const std::string& name, const std::filesystem::path& start, int seed, int epochs,
             double lr) {
    nlohmann::json config = small_training();
    config["model"] = {{"builtin", "mlp"}, {"options", {{"hidden", {24, 16}}}}};
    if (!start.empty()) config["model"]["weights"] = start.string();
    config["data"]["train"]["limit"] = 600;
    // Copies see other samples than the victim did.
    config["data"]["train"]["subset_seed"] = start.empty() ? 0 : seed;
    config["epochs"] = epochs;
    config["optimizer"] = {{"lr", lr}};
    config["method"] = {{"type", "sgd"}};
    config["augmentations"] = nlohmann::json::array({nlohmann::json::array()});
    config["seed"] = seed;
    const std::string file = write_config(folder / (name + ".json"), config);
    summary_of(lookaround_train({"--config", file, "--out", (folder / name).string(), "--quiet"}));
  }
  nlohmann::json models() const {
    nlohmann::json list = nlohmann::json::array();
    for (const std::string name :
         {"victim", "tuned0", "tuned1", "tuned2", "other0", "other1", "other2", "other3", "other4"})
      list.push_back({{"name", name}, {"script", (folder / name / "model.pt").string()}});
    return list;
  }
  nlohmann::json config() const {
    return {{"models", models()},
            {"reference", {{"data", {{"split", "test"}, {"limit", 64}}}}},
            {"field", {{"steps", 8}}},
            {"cache", (folder / "fields").string()}};
  }
  TemporaryFolder folder;
};

inline const Family& family() {
  static const Family made;
  return made;
}

/// Runs modelgif-dist on a configuration, with results in `folder`/out; returns its summary.
inline nlohmann::json measure(const std::filesystem::path& folder, const nlohmann::json& config,
                              const std::vector<std::string>& more = {}) {
  std::filesystem::create_directories(folder);
  std::vector<std::string> arguments{"--config", write_config(folder / "gif.json", config),
                                     "--out",    (folder / "out").string(),
                                     "--quiet",  "--overwrite"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return summary_of(modelgif_dist(arguments));
}

}  // namespace weightsmith::testing
