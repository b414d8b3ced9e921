#include "weightsmith/model/network_parts.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/jit/serialization/import.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "support/builtin_cases.h"
#include "support/expect_error.h"
#include "support/networks.h"
#include "support/python.h"
#include "support/temporary_folder.h"
#include "weightsmith/model/builtin.h"
#include "weightsmith/model/graph_runner.h"
#include "weightsmith/model/script_model.h"

using namespace weightsmith;
using testing::make_network;
using torch::jit::Module;

namespace {

bool contains(const std::vector<std::string>& list, const std::string& item) {
  return std::find(list.begin(), list.end(), item) != list.end();
}

void refuse(const Module& network, const std::string& until, std::vector<std::string> parts) {
  parts.push_back("net: cannot be cut behind \"" + until + "\"");
  testing::expect_error(ErrorKind::kInput, parts, [&] { cut_network(network, "net", until); });
}

/// Two children, `a` and `b`, that multiply by a matrix of their own.
Module pair_of_layers(const std::string& forward, const std::string& child = "return x @ self.w") {
  Module net("Net");
  for (const char* name : {"a", "b"}) {
    Module part(std::string("Layer_") + name);
    part.register_attribute("training", c10::BoolType::get(), false);
    part.register_parameter("w", at::randn({4, 4}), false);
    part.define("def forward(self, x):\n    " + child + "\n");
    net.register_module(name, part);
  }
  net.register_attribute("training", c10::BoolType::get(), false);
  net.define(forward);
  return net;
}

/// A saved copy, read again.
Module reloaded(const Module& module, const testing::TemporaryFolder& folder) {
  ScriptModel(module, "net").save(folder / "net.pt");
  return torch::jit::load((folder / "net.pt").string());
}

}  // namespace

TEST_CASE("a builtin is the head of its trunk at every cut", "[network_parts]") {
  const at::NoGradGuard no_grad;
  const testing::TemporaryFolder folder;
  std::size_t cuts = 0;
  for (const auto& c : testing::builtin_cases()) {
    const Module network = build_builtin(c.name, c.options, 3);
    at::manual_seed(1);
    testing::randomise_in_double(network);
    const at::Tensor x = at::randn(c.input, at::kDouble);
    const at::Tensor expected = GraphRunner(network, "net").run({x}).toTensor();
    for (const std::string& until : possible_cuts(network, "net")) {
      INFO(c.describe() << " " << until);
      const NetworkParts parts = cut_network(network, "net", until);
      const auto run = [](const Module& part, const at::Tensor& input) {
        return GraphRunner(part, "part").run({input}).toTensor();
      };
      CHECK(at::equal(run(parts.head, run(parts.trunk, x)), expected));
      // Every tensor that is used is on one side, under its name and not copied.
      const TensorMap whole = testing::state_of(network);
      std::size_t found = 0;
      for (const Module& part : {parts.trunk, parts.head})
        for (const auto& [name, tensor] : testing::state_of(part)) {
          CHECK(whole.at(name).is_same(tensor));
          ++found;
        }
      CHECK(found == whole.size());
      ++cuts;
    }
  }
  CHECK(cuts > 100);

  const Module resnet = build_builtin("resnet20", {{"depth", 8}, {"width", 0.25}}, 1);
  const auto possible = possible_cuts(resnet, "net");
  // The shortcut of a block crosses every cut inside it; behind fc there is nothing left.
  CHECK(possible == std::vector<std::string>{"conv1", "bn1", "layer1", "layer1.0", "layer2",
                                             "layer2.0", "layer3", "layer3.0"});
}

TEST_CASE("parts joined again are one archive with a result a head", "[network_parts]") {
  const at::NoGradGuard no_grad;
  const testing::TemporaryFolder folder;
  at::manual_seed(2);
  const Module network = build_builtin("resnet20", {{"depth", 8}, {"width", 0.25}}, 1);
  testing::randomise_in_double(network);
  const at::Tensor x = at::randn({2, 3, 8, 8}, at::kDouble);
  for (const char* until : {"bn1", "layer1", "layer3.0"}) {  // behind bn1 the head works in place
    INFO(until);
    const NetworkParts parts = cut_network(network, "net", until);
    const at::Tensor expected = network.deepcopy().forward({x}).toTensor();
    const at::Tensor units = at::randperm(parts.trunk.deepcopy().forward({x}).toTensor().size(1));
    const Selection order{1, units};
    const Selection back{1, units.argsort()};
    Module joined = join_network(
        parts.trunk,
        {{parts.head, {}}, {parts.head, {order}}, {parts.head, {order, back}}, {parts.head, {}}});
    for (Module module : {joined, reloaded(joined, folder)}) {
      const auto results = module.forward({x}).toTuple()->elements();
      REQUIRE(results.size() == 4);
      CHECK(at::equal(results[0].toTensor(), expected));
      CHECK_FALSE(at::allclose(results[1].toTensor(), expected));
      CHECK(at::equal(results[3].toTensor(), expected));
      module = module.deepcopy();
      module.train();  // reaches every module
      CHECK_FALSE(at::allclose(module.forward({x}).toTuple()->elements()[0].toTensor(), expected));
    }
    Module single = reloaded(join_network(parts.trunk, {parts.head, {}}), folder);
    CHECK(at::equal(single.forward({x}).toTensor(), expected));
  }
}

TEST_CASE("a cut that more than one value crosses is refused", "[network_parts]") {
  at::manual_seed(3);
  const auto layers = [](const std::string& body) {
    return pair_of_layers("def forward(self, x):\n    " + body + "\n");
  };
  refuse(layers("y = self.a.forward(x)\n    return self.b.forward(y) + x"), "a",
         {"also reads the network's input", "no submodule that it could be cut behind"});
  refuse(layers("z = torch.relu(x)\n    y = self.a.forward(z)\n    return self.b.forward(y) + z"),
         "a", {"also reads a result of aten::relu"});
  refuse(layers("n = x.size(0)\n    return self.b.forward(self.a.forward(x)).view(n, 4)"), "a",
         {"also reads a result of aten::size"});
  refuse(layers("return self.b.forward(self.a.forward(self.a.forward(x)))"), "a",
         {"calls it more than once"});
  refuse(
      layers("if bool(x.sum() > 0):\n        x = self.a.forward(x)\n    return self.b.forward(x)"),
      "a", {"in a loop or under a condition"});
  refuse(layers("return self.b.forward(self.a.forward(x))"), "c",
         {"does not call a submodule of this name", "it can be cut behind a"});
  refuse(layers("return self.b.forward(self.a.forward(x))"), "b", {"no parameter is left behind"});
  refuse(pair_of_layers("def forward(self, x):\n    y, z = self.a.forward(x)\n    return y @ "
                        "self.b.w + z\n",
                        "return x @ self.w, x"),
         "a", {"it returns (Tensor, Tensor)"});
  const Module counting = pair_of_layers(
      "def forward(self, x):\n    y = self.a.forward(x)\n    return self.b.forward(y) * "
      "self.a.w.sum() + self.a.w\n",
      "self.w = self.w + 1.0\n    return x @ self.w");
  refuse(counting, "a", {"reads a.w, which is set before"});
}

TEST_CASE("constants and attributes may be used on both sides", "[network_parts]") {
  const at::NoGradGuard no_grad;
  at::manual_seed(4);
  const testing::TemporaryFolder folder;
  Module network = pair_of_layers(R"(def forward(self, x, scale: Optional[Tensor] = None):
    both = self.a.w + self.b.w
    sizes = [2, 2]
    if scale is not None:
        x = x * scale
    for i in range(3):
        if i != 1:
            x = x @ both
    y = self.a.forward(x)
    for i in range(2):
        y = y @ both
        if bool(y.sum() > 0):
            y = y + self.b.w.sum()
    return self.b.forward(y).reshape(sizes + [-1]), both
)");
  const at::Tensor x = at::randn({3, 4});
  const at::Tensor scale = at::rand({4});
  const NetworkParts parts = cut_network(network, "net", "a");
  for (const Module& joined : {join_network(parts.trunk, {parts.head, {}}),
                               reloaded(join_network(parts.trunk, {parts.head, {}}), folder)}) {
    Module module = joined;
    for (const c10::IValue& second : {c10::IValue(scale), c10::IValue()}) {
      const auto expected = network.forward({x, second}).toTuple()->elements();
      const auto found = module.forward({x, second}).toTuple()->elements();
      REQUIRE(found.size() == 2);
      for (int i = 0; i < 2; ++i) CHECK(at::equal(found[i].toTensor(), expected[i].toTensor()));
    }
  }
}

TEST_CASE("a probe weighs what the trunk returns and moves no node", "[network_parts]") {
  const at::NoGradGuard no_grad;
  at::manual_seed(5);
  const Module network = build_builtin("convnet", {{"width", 4}}, 1);
  const Module trunk = cut_network(network, "net", "bn2").trunk;
  const at::Tensor x = at::randn({3, 1, 8, 8});
  const at::Tensor result = trunk.deepcopy().forward({x}).toTensor();
  const at::Tensor weight = at::randn(result.sizes().slice(1));
  const ProbedNetwork probed = add_probe(trunk, "net", weight);
  CHECK(probed.network.attr(probed.parameter).toTensor().is_same(weight));
  const at::Tensor found = Module(probed.network).forward({x}).toTensor();
  CHECK(at::allclose(found, (result * weight).flatten(1).sum(1), 1e-4, 1e-5));
  const FlatGraph before(trunk, "net");
  const FlatGraph after(probed.network, "net");
  for (std::size_t i = 0; i < before.nodes().size(); ++i)
    if (before.nodes()[i]->kind() != c10::prim::Constant)
      CHECK(before.nodes()[i]->kind() == after.nodes()[i]->kind());
}

TEST_CASE("networks made in Python are cut and joined for Python", "[network_parts]") {
  if (!testing::python_has_torch()) {
    WARN("skipped: no Python with torch");
    return;
  }
  const at::NoGradGuard no_grad;
  const testing::TemporaryFolder folder;
  const bool exported = testing::run_python(folder.path(), R"(
import torch
from torch import nn
torch.manual_seed(0)

class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c)
        self.act = nn.ReLU(inplace=True)
    def forward(self, x):
        return self.act(self.bn(self.conv(x)) + x)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(True))
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.fc = nn.Linear(8, 5)
    def forward(self, x):
        return self.fc(torch.flatten(self.blocks(self.stem(x)).mean([2, 3]), 1))

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True)
        self.blocks = nn.ModuleList([layer, nn.TransformerEncoderLayer(16, 2, 24, 0.0, batch_first=True)])
        self.fc = nn.Linear(16, 3)
    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean(1))

for name, net, x in [("conv", Net(), torch.randn(2, 1, 8, 8)), ("tokens", Tokens(), torch.randn(2, 5, 6))]:
    net.eval()
    for p in net.state_dict().values():
        if p.dtype.is_floating_point: p.copy_(torch.rand_like(p) + (0.1 if name == "conv" else -0.5))
    torch.jit.script(net).save(f"{name}-script.pt")
    torch.jit.trace(net, x, check_trace=False).save(f"{name}-trace.pt")
    with torch.no_grad():
        torch.save([x, net(x)], f"{name}-data.pt")
)");
  INFO(testing::python_log(folder.path()));
  REQUIRE(exported);
  for (const std::string name : {"conv", "tokens"})
    for (const std::string way : {"script", "trace"}) {
      INFO(name << " " << way);
      const Module network = torch::jit::load((folder / (name + "-" + way + ".pt")).string());
      const auto possible = possible_cuts(network, "net");
      CHECK(contains(possible, "blocks.0"));
      CHECK_FALSE(contains(possible, "blocks.0.conv"));
      CHECK_FALSE(contains(possible, "blocks.0.linear1"));
      for (std::size_t i = 0; i < possible.size(); ++i) {
        INFO(possible[i]);
        const NetworkParts parts = cut_network(network, "net", possible[i]);
        ScriptModel(join_network(parts.trunk, {{parts.head, {}}, {parts.head, {}}}), "net")
            .save(folder / (name + "-" + way + "-" + std::to_string(i) + ".joined"));
      }
    }
  const bool same = testing::run_python(folder.path(), R"(
import glob, torch
files = glob.glob("*.joined")
assert len(files) >= 12, files
for file in files:
    x, expected = torch.load(file.split("-")[0] + "-data.pt")
    net = torch.jit.load(file)
    with torch.no_grad():
        results = net(x)
    assert isinstance(results, tuple) and len(results) == 2, file
    for result in results:
        assert torch.allclose(result, expected, atol=1e-5), (file, (result - expected).abs().max())
    net.train()
    net(x)[0].sum().backward()
)");
  INFO(testing::python_log(folder.path()));
  CHECK(same);
}
