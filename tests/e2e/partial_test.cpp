// mudsc-merge up to a submodule: a shared trunk and a head a model.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <catch2/catch.hpp>

#include "support/files.h"
#include "support/python.h"
#include "support/temporary_folder.h"
#include "tools.h"
#include "weightsmith/tensor/safetensors.h"

using namespace weightsmith;
using namespace weightsmith::testing;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

const json kNet = {{"depth", 8}, {"width", 0.5}, {"channels", 1}};

/// Two networks, each with two sets of digits: its own half, and all ten for both.
json partial_merge(const TemporaryFolder& folder, const std::string& until) {
  json config = {{"models", json::array()},
                 {"partial", {{"until", until}}},
                 {"activations", {{"data", {{"split", "train"}, {"limit", 100}}}}}};
  for (const int i : {0, 1}) {
    const std::string name = i == 0 ? "low" : "high";
    const auto path = save_builtin(folder / (name + "-net.pt"), "resnet20", kNet, i + 1);
    config["models"].push_back({{"name", name}, {"script", path.string()}});
    config["evaluation"]["sets"].push_back(
        {{"name", name},
         {"data", {{"split", "test"}, {"classes", i == 0 ? json{0, 1, 2} : json{7, 8, 9}}}},
         {"candidates", "data"},
         {"head", name}});
  }
  config["evaluation"]["sets"].push_back(
      {{"name", "joint"}, {"data", {{"split", "test"}, {"limit", 100}}}});
  return config;
}

ProgramResult merge(const TemporaryFolder& folder, const json& config,
                    std::vector<std::string> more = {}) {
  std::vector<std::string> arguments{"--config", write_config(folder / "merge.json", config),
                                     "--out",    (folder / "out").string(),
                                     "--quiet",  "--overwrite"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return mudsc_merge(arguments);
}

}  // namespace

TEST_CASE("a partial merge is one archive with an output a task") {
  const at::NoGradGuard no_grad;
  const TemporaryFolder folder;
  const json summary = summary_of(merge(folder, partial_merge(folder, "layer2")));
  const json& variant = summary["variants"][0];
  for (const char* set : {"low", "high", "joint", "task_average"})
    CHECK(variant["scores"][set]["samples"].get<int>() > 0);
  // An original answers for its own task alone, and both for all.
  CHECK_FALSE(summary["originals"][0]["scores"].contains("high"));
  CHECK_FALSE(summary["originals"][0]["scores"].contains("task_average"));
  CHECK(summary["originals"][2]["scores"]["high"] == summary["originals"][1]["scores"]["high"]);
  CHECK(summary["originals"][2]["scores"]["task_average"]["samples"] ==
        variant["scores"]["task_average"]["samples"]);

  at::manual_seed(1);
  const at::Tensor x = at::randn({4, 1, 8, 8});
  const ScriptModel merged = load_archive(folder / "out" / "merged.pt");
  const auto outputs = torch::jit::Module(merged.module()).forward({x}).toTuple()->elements();
  REQUIRE(outputs.size() == 2);
  CHECK(merged.metadata()["partial"] == json{{"until", "layer2"}, {"tasks", {"low", "high"}}});
  for (const int i : {0, 1}) {
    const std::string name = i == 0 ? "low" : "high";
    CHECK(variant["tasks"][name] == (folder / "out" / ("task_" + name + ".pt")).string());
    ScriptModel task = load_archive(folder / "out" / ("task_" + name + ".pt"));
    CHECK(at::equal(task.forward(x), outputs[i].toTensor()));
    // The head is the model's own; its running statistics are made anew.
    const TensorMap original = load_archive(folder / (name + "-net.pt")).state_dict();
    const TensorMap state = merged.state_dict();
    const std::string head = "heads." + std::to_string(i) + ".";
    CHECK(at::equal(state.at(head + "fc.weight"), original.at("fc.weight")));
    CHECK(at::equal(state.at(head + "layer3.0.bn1.weight"), original.at("layer3.0.bn1.weight")));
    CHECK_FALSE(at::equal(state.at(head + "layer3.0.bn1.running_mean"),
                          original.at("layer3.0.bn1.running_mean")));
    CHECK(state.count("trunk.layer3.0.bn1.weight") == 0);
    CHECK(state.count(head + "layer2.0.bn1.weight") == 0);
  }
  CHECK(read_safetensors(folder / "out" / "merged.safetensors").tensors.size() ==
        merged.state_dict().size());

  if (!python_has_torch()) {
    WARN("the archive was not opened in Python: it has no torch");
    return;
  }
  write_safetensors(folder / "x.safetensors", {{"x", x}, {"y", outputs[1].toTensor()}}, {});
  const bool same = run_python(folder.path(), R"(
import torch
net = torch.jit.load("out/merged.pt")
x = torch.randn(4, 1, 8, 8)
with torch.no_grad():
    low, high = net(x)
    assert torch.allclose(low, torch.jit.load("out/task_low.pt")(x), atol=1e-5)
    assert torch.allclose(high, torch.jit.load("out/task_high.pt")(x), atol=1e-5)
net.train()
sum(y.square().mean() for y in net(x)).backward()
assert all(p.grad is not None for p in net.parameters())
)");
  INFO(python_log(folder.path()));
  CHECK(same);
}

TEST_CASE("a network and its permuted copy share a trunk that gives both back") {
  const at::NoGradGuard no_grad;
  const TemporaryFolder folder;
  json config = partial_merge(folder, "layer3.0.conv1");
  config.erase("evaluation");
  config["normalization"]["mode"] = "none";
  config["models"][1]["script"] = (folder / "permuted.pt").string();
  const auto original =
      save_builtin(folder / "low-net.pt", "vgg11", {{"width", 0.125}, {"channels", 1}}, 1);
  REQUIRE(mudsc_merge({"explain", original.string(), "--permuted",
                       (folder / "permuted.pt").string(), "--input", "2x1x8x8", "--quiet"})
              .exit_code == 0);
  const at::Tensor x = at::randn({4, 1, 8, 8});
  const at::Tensor expected = load_archive(original).forward(x);
  for (const char* until : {"features.4", "features.12"})
    for (const json& variant :
         {json{{"method", "align"}, {"space", "activation"}},
          json{{"method", "zip"}, {"space", "activation"}, {"zip", {{"b", 0}, {"a", 1}}}}}) {
      INFO(until << " " << variant);
      json own = config;
      own.update(variant);
      own["partial"]["until"] = until;
      summary_of(merge(folder, own));
      ScriptModel merged = load_archive(folder / "out" / "merged.pt");
      const auto outputs = merged.module().forward({x}).toTuple()->elements();
      // Both heads want the units in the order of their own trunk, and get them.
      for (const c10::IValue& output : outputs)
        CHECK(at::allclose(output.toTensor(), expected, 1e-3, 1e-4));
      CHECK(merged.state_dict().count("units.1.1") == 1);
      CHECK_FALSE(at::equal(merged.state_dict().at("heads.0.classifier.weight"),
                            merged.state_dict().at("heads.1.classifier.weight")));
    }
}

TEST_CASE("a sweep over balances judges the heads, and half precision stays") {
  const TemporaryFolder folder;
  json config = partial_merge(folder, "layer1");
  for (json& model : config["models"]) {
    ScriptModel half = load_archive(model["script"].get<std::string>());
    half.module().to(at::kHalf);
    half.save(model["script"].get<std::string>());
  }
  config["balance"] = {0.2, 0.8};
  config["select_on"] = "low";
  config["partial"]["tasks"] = false;
  const json summary = summary_of(merge(folder, config));
  CHECK(summary["variants"][0]["sweep"][0]["selection"]["samples"].get<int>() > 0);
  CHECK_FALSE(summary["variants"][0].contains("tasks"));
  CHECK_FALSE(fs::exists(folder / "out" / "task_low.pt"));
  for (const auto& [name, tensor] : load_archive(folder / "out" / "merged.pt").state_dict())
    if (tensor.is_floating_point()) {
      INFO(name);
      CHECK(tensor.scalar_type() == at::kHalf);
    }
  const json repaired = summary_of(merge(folder, config, {"--set", "normalization.mode=repair"}));
  CHECK(repaired["variants"][0]["scores"].contains("joint"));
}

TEST_CASE("a partial merge that cannot be is refused before anything is written") {
  const TemporaryFolder folder;
  const json config = partial_merge(folder, "layer2");
  const auto refused = [&](json changed, int code, const std::vector<std::string>& parts) {
    check_failure(merge(folder, changed), "mudsc-merge", code, parts);
    CHECK_FALSE(fs::exists(folder / "out"));
  };
  json changed = config;
  changed["partial"]["until"] = "layer2.0.conv1";
  refused(changed, 3,
          {"low-net.pt: cannot be cut behind \"layer2.0.conv1\"", "also reads a result of layer1",
           "it can be cut behind conv1; bn1; layer1; layer1.0; layer2; layer2.0; layer3"});
  changed["partial"]["until"] = "layer9";
  refused(changed, 3, {"does not call a submodule of this name"});
  changed["partial"]["until"] = "";
  refused(changed, 2, {"partial"});
  changed = config;
  changed["models"][1]["name"] = "low";
  refused(changed, 2,
          {"models: models[0] (", "low-net.pt) and models[1] (", "both called \"low\"", "heads"});
  changed = config;
  changed["models"][1]["name"] = "a/b";
  refused(changed, 2, {"models[1] (", "\"a/b\", which cannot be part of a file's name"});
  changed = config;
  changed["evaluation"]["sets"][0]["head"] = "middle";
  refused(changed, 2, {"names the head \"middle\"", "known: low; high"});
  changed.erase("partial");
  refused(changed, 2, {"names a head, but all layers are merged"});
  changed = config;
  changed["landscape"] = json::object();
  refused(changed, 2, {"landscape: there are no networks between models"});
  changed = config;
  changed["groups"] = "groups.json";
  refused(changed, 2, {"groups: a partial merge finds the groups of its trunk"});
  // Trunks must agree, heads need not.
  changed = config;
  changed["models"][1]["script"] = save_builtin(folder / "deep.pt", "resnet20",
                                                {{"depth", 14}, {"width", 0.5}, {"channels", 1}}, 3)
                                       .string();
  refused(changed, 3, {"deep.pt: not of the architecture of"});
}
