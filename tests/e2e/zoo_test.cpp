// scripts/export_zoo.py on checkpoints of the published layouts, filled with random numbers.
#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <cstdlib>

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

const fs::path kScript = fs::path(WEIGHTSMITH_SOURCE_DIR) / "scripts" / "export_zoo.py";
const fs::path kConfigs = fs::path(WEIGHTSMITH_SOURCE_DIR) / "configs" / "modelgif-dist";

bool python_can(const std::string& statement) {
  return std::system((python() + " -c '" + statement + "' > /dev/null 2>&1").c_str()) == 0;
}

void run_python_or_fail(const fs::path& folder, const std::string& script) {
  const bool passed = run_python(folder, script);
  INFO(python_log(folder));
  REQUIRE(passed);
}

ProgramResult export_zoo(const std::vector<std::string>& arguments) {
  std::vector<std::string> all{kScript.string()};
  all.insert(all.end(), arguments.begin(), arguments.end());
  return run_program(python(), all);
}

/// Runs modelgif-dist on a configuration, with `samples` random images of `side` pixels as
/// reference.
json measure(const fs::path& folder, const fs::path& config, int side) {
  at::manual_seed(1);
  write_safetensors(
      folder / "images.safetensors",
      {{"images", at::randn({3, 3, side, side})}, {"labels", at::tensor({1, 5, 9}, at::kLong)}},
      {{"classes", "10"}});
  const json data{{"format", "tensors"}, {"path", (folder / "images.safetensors").string()}};
  return summary_of(modelgif_dist({"--config", config.string(), "--out",
                                   (folder / "distances").string(), "--quiet", "--set",
                                   "reference.data=" + data.dump(), "--set", "field.steps=2"}));
}

}  // namespace

TEST_CASE("encoders of Taskonomy's tasks") {
  if (!python_has_torch()) {
    WARN("skipped: " << python() << " has no torch");
    return;
  }
  const TemporaryFolder folder;
  // What a published checkpoint holds, written down name by name; and what the network computes.
  run_python_or_fail(folder.path(), R"(
import pickle, torch
from torch.nn import functional as f
def layout():
    def norm(name, width):
        for kind in ('weight', 'bias', 'running_mean', 'running_var'):
            yield f'{name}.{kind}', [width]
        yield f'{name}.num_batches_tracked', []
    yield 'conv1.weight', [64, 3, 7, 7]
    yield from norm('bn1', 64)
    inputs = 64
    for layer, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
        for block in range(blocks):
            at = f'layer{layer}.{block}'
            yield f'{at}.conv1.weight', [width, inputs, 1, 1]
            yield from norm(f'{at}.bn1', width)
            yield f'{at}.conv2.weight', [width, width, 3, 3]
            yield from norm(f'{at}.bn2', width)
            yield f'{at}.conv3.weight', [4 * width, width, 1, 1]
            yield from norm(f'{at}.bn3', 4 * width)
            if block == 0:
                yield f'{at}.downsample.0.weight', [4 * width, inputs, 1, 1]
                yield from norm(f'{at}.downsample.1', 4 * width)
            inputs = 4 * width
    yield 'compress1.weight', [8, 2048, 3, 3]
    yield from norm('compress_bn', 8)
def checkpoint(seed):
    torch.manual_seed(seed)
    state = {}
    for name, shape in layout():
        if name.endswith('num_batches_tracked'): state[name] = torch.tensor(7)
        elif name.endswith('running_var') or len(shape) == 1 and name.endswith('weight'): state[name] = torch.rand(shape) + .5
        elif len(shape) == 1: state[name] = torch.randn(shape) * .1
        else: state[name] = torch.randn(shape) / (shape[1] * shape[2] * shape[3]) ** .5
    return state
def compute(state, x, normalised):
    def norm(name, x):
        return f.batch_norm(x, *(state[f'{name}.{k}'] for k in ('running_mean', 'running_var', 'weight', 'bias')))
    def conv(name, x, stride=1, padding=0): return f.conv2d(x, state[name + '.weight'], None, stride, padding)
    x = f.relu(norm('bn1', conv('conv1', f.pad(x, (3, 3, 3, 3)), 2)))
    x = f.max_pool2d(x, 3, 2, 0, ceil_mode=True)
    for layer, (blocks, last) in enumerate(((3, 2), (4, 2), (6, 1), (3, 1)), 1):
        for block in range(blocks):
            at, stride = f'layer{layer}.{block}', last if block == blocks - 1 else 1
            y = f.relu(norm(at + '.bn1', conv(at + '.conv1', x)))
            y = f.relu(norm(at + '.bn2', conv(at + '.conv2', y, stride, 1)))
            y = norm(at + '.bn3', conv(at + '.conv3', y))
            if block == 0: x = norm(at + '.downsample.1', conv(at + '.downsample.0', x))
            x = f.relu(y + x[:, :, ::stride, ::stride])
    x = f.relu(norm('compress_bn', conv('compress1', x, 1, 1)))
    return f.group_norm(x, 8) if normalised else x
x = torch.randn(2, 3, 64, 64)
assert compute(checkpoint(0), torch.randn(1, 3, 256, 256), False).shape == (1, 8, 16, 16)
wanted = {}
for seed, (task, file, normalised) in enumerate((('normal', 'normal_encoder-f5e2c7', False),
                                                ('room_layout', 'room_layout_encoder', True))):
    state = checkpoint(seed)
    torch.save({'epoch': 3, 'arch': 'resnet', 'state_dict': state}, file + '.pth')
    wanted[task] = (state, compute(state, x, normalised), normalised)
torch.save((x, wanted), 'wanted')
import numpy
old = ('rgb2sfnorm', 'room_layout')
pickle.dump({f'{a}__{b}': numpy.float64(a == b) for a in old for b in old}, open('affinities.pkl', 'wb'), protocol=2)
)");
  const auto model = [](const std::string& task, const std::string& script) {
    return json{{"name", task}, {"script", "zoo/" + script}, {"weights", task + "_encoder.pth"}};
  };
  json config = json::parse(read_bytes(kConfigs / "taskonomy.json"), nullptr, true, true);
  // As the shipped configuration has them, but for the folders.
  json models = json::array();
  for (const json& shipped : config["models"]) {
    const std::string task = shipped["name"];
    CHECK(fs::path(shipped["weights"].get<std::string>()).filename() == task + "_encoder.pth");
    if (task == "normal" || task == "room_layout" || task == "curvature")
      models.push_back(model(task, fs::path(shipped["script"].get<std::string>()).filename()));
  }
  REQUIRE(models.size() == 3);
  config["models"] = models;
  write_bytes(folder / "zoo.json", "// with a comment\n" + config.dump());
  const fs::path made = folder / "made" / "zoo.json";
  const ProgramResult exported = export_zoo({(folder / "zoo.json").string(), made.string(),
                                             "--affinities", (folder / "affinities.pkl").string()});
  INFO(exported.err);
  REQUIRE(exported.exit_code == 0);
  CHECK_THAT(exported.out, Catch::StartsWith("2 models"));
  CHECK_THAT(exported.err, Catch::Contains("left out curvature: no "));
  const json ready = json::parse(read_bytes(made));
  CHECK(ready["task"]["affinity"] == json({{1.0, 0.0}, {0.0, 1.0}}));
  run_python_or_fail(folder.path(), R"(
import torch
x, wanted = torch.load('wanted')
for task, (state, y, normalised) in wanted.items():
    network = torch.jit.load('zoo/taskonomy_encoder' + '_normalised' * normalised + '.pt')
    network.load_state_dict(state)
    found = network(x)
    assert found.shape == y.shape == (2, 8, 4, 4), found.shape
    assert (found - y).abs().max() < 1e-4 * y.abs().max(), (task, (found - y).abs().max())
)");
  const json summary = measure(folder.path(), made, 64);
  CHECK(summary["models"][0]["name"] == "normal");
  CHECK(summary["models"][1]["name"] == "room_layout");
  CHECK(summary["distances"][0][1].get<double>() > 0.1);
  CHECK(summary["spearman_mean"].get<double>() == Approx(-1));
}

TEST_CASE("SAC's networks: weights, whole pruned networks, and some that are missing") {
  if (!python_can("import torch, torchvision")) {
    WARN("skipped: " << python() << " has no torchvision");
    return;
  }
  const TemporaryFolder folder;
  run_python_or_fail(folder.path(), R"(
import os, pickle, torch, torchvision
from torch import nn
from torch.nn.utils import prune
torch.manual_seed(0)
os.makedirs('zoo')
for name in ('vgg_model', 'student_model_1_15'):
    torch.save(torchvision.models.mobilenet_v2(num_classes=10).state_dict(), name + '.pth')
torch.save(torchvision.models.resnet18(num_classes=10).state_dict(), 'clean_model_5.pth')
# Pruned networks were saved whole, with masks, and with hooks of a class of the program's own.
class FeatureHook:
    def __init__(self, module): self.hook = module.register_forward_hook(self.take)
    def take(self, module, given, output): self.output = output
def small():
    return nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, 2), nn.ReLU(), nn.Flatten(),
                         nn.Linear(4 * 7 * 7, 10))
network = small()
network[1].running_mean.normal_()
for module in network:
    if isinstance(module, nn.Conv2d):
        FeatureHook(module)
        prune.identity(module, 'weight')
        module.weight_mask[1] = 0
network.eval()
x = torch.randn(2, 3, 32, 32)
y = network(x)
for module in network:
    for hook in module._forward_hooks.values(): hook.__self__.output = hook.__self__.output.detach()
    if isinstance(module, nn.Conv2d): module.weight = module.weight.detach()
torch.save(network, 'prune_model_0.pth')
torch.save(network, 'prune_model_1.pth')
torch.save((x, y.detach()), 'wanted')
torch.jit.script(small().eval()).save('zoo/small.pt')
class Bad:
    def __reduce__(self): return os.system, ('touch called; : torch.nn.modules',)
torch.save(Bad(), 'bad.pth')
)");
  const auto model = [](const std::string& name, const std::string& script,
                        const std::string& weights) {
    return json{{"name", name}, {"script", "zoo/" + script}, {"weights", weights}};
  };
  json config = {{"models",
                  {model("victim", "mobilenet_v2.pt", "vgg_model.pth"),
                   model("labels 15", "mobilenet_v2.pt", "student_model_1_15.pth"),
                   model("labels 16", "mobilenet_v2.pt", "student_model_1_16.pth"),
                   model("pruned 0", "small.pt", "prune_model_0.pth"),
                   model("pruned 1", "small.pt", "prune_model_1.pth"),
                   model("kd 0", "densenet121.pt", "student_model_kd_10.pth"),
                   model("independent 5", "resnet18.pt", "clean_model_5.pth")}},
                 {"reference", {{"data", {{"format", "cifar10"}, {"path", "cifar"}}}}},
                 {"task",
                  {{"type", "ownership"},
                   {"victim", "victim"},
                   {"groups",
                    {{{"name", "labels"}, {"models", {"labels 15", "labels 16"}}},
                     {{"name", "pruned"}, {"models", {"pruned 0", "pruned 1"}}},
                     {{"name", "probabilities"}, {"models", {"kd 0"}}}}},
                   {"independents", {"independent 5"}}}}};
  const fs::path file = folder / "sac.json", made = folder / "made.json";
  write_config(file, config);
  const ProgramResult exported = export_zoo({file.string(), made.string()});
  INFO(exported.err);
  REQUIRE(exported.exit_code == 0);
  CHECK_THAT(exported.out, Catch::StartsWith("5 models"));
  CHECK_THAT(exported.err, Catch::Contains("left out labels 16: no "));
  CHECK_THAT(exported.err, Catch::Contains("left out kd 0: no "));
  const json ready = json::parse(read_bytes(made));
  CHECK(ready["task"]["groups"] ==
        json({{{"name", "labels"}, {"models", {"labels 15"}}},
              {{"name", "pruned"}, {"models", {"pruned 0", "pruned 1"}}}}));
  run_python_or_fail(folder.path(), R"(
import torch
x, y = torch.load('wanted')
for i in range(2):
    network = torch.jit.load('zoo/small.pt')
    network.load_state_dict(torch.load(f'zoo/prune_model_{i}-weights.pth'))
    assert (network(x) - y).abs().max() < 1e-6
    assert network.state_dict()['0.weight'][1].abs().max() == 0
)");
  const json summary = measure(folder.path(), made, 32);
  CHECK(summary["groups"].size() == 2);
  CHECK(summary["groups"][1]["models"][0]["distance"] ==
        summary["groups"][1]["models"][1]["distance"]);

  // A pickle that would run a program is read without running it, and is no network.
  config["models"] = {model("victim", "small.pt", "bad.pth")};
  write_config(file, config);
  const ProgramResult bad = export_zoo({file.string(), (folder / "bad.json").string()});
  CHECK(bad.exit_code == 3);
  CHECK_THAT(bad.err, Catch::Contains("bad.pth"));
  CHECK_FALSE(fs::exists(folder / "called"));
  CHECK_FALSE(fs::exists(folder / "bad.json"));

  // Without the victim there is nothing to judge.
  config["models"] = {model("victim", "mobilenet_v2.pt", "none.pth"),
                      model("labels 15", "mobilenet_v2.pt", "student_model_1_15.pth")};
  write_config(file, config);
  const ProgramResult none = export_zoo({file.string(), (folder / "none.json").string()});
  CHECK(none.exit_code == 0);
  CHECK_THAT(none.out, Catch::StartsWith("skipped: without the victim"));
  CHECK_FALSE(fs::exists(folder / "none.json"));

  // The networks that the shipped configurations name exist.
  std::string check = "import torchvision\n";
  for (const char* name : {"sac.json", "sac-cifar10c.json", "sac-cifar100.json"})
    for (const json& shipped :
         json::parse(read_bytes(kConfigs / name), nullptr, true, true)["models"])
      check += "torchvision.models." +
               fs::path(shipped["script"].get<std::string>()).stem().string() + "\n";
  run_python_or_fail(folder.path(), check);
}

TEST_CASE("without downloads the shipped configurations are skipped with a message") {
  const TemporaryFolder folder;
  for (const char* name :
       {"taskonomy.json", "sac.json", "sac-cifar10c.json", "sac-cifar100.json"}) {
    fs::create_directories(folder / "configs" / "modelgif-dist");
    const fs::path copy = folder / "configs" / "modelgif-dist" / name;
    fs::copy_file(kConfigs / name, copy);
    const ProgramResult result = export_zoo({copy.string(), (folder / "made.json").string()});
    INFO(result.err);
    CHECK(result.exit_code == 0);
    CHECK_THAT(result.out, Catch::StartsWith("skipped: none of the checkpoints is there"));
    CHECK_FALSE(fs::exists(folder / "made.json"));
  }
}
