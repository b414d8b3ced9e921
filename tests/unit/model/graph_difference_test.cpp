#include "weightsmith/model/graph_difference.h"

#include <ATen/Functions.h>
#include <torch/csrc/jit/serialization/import.h>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "support/builtin_cases.h"
#include "support/python.h"
#include "support/temporary_folder.h"
#include "weightsmith/model/builtin.h"

using namespace weightsmith;
using torch::jit::Module;

namespace {

/// What differs between two networks; "" for nothing.
std::string difference(const Module& a, const Module& b) {
  return graph_difference(FlatGraph(a, "a"), FlatGraph(b, "b")).value_or("");
}

/// A network with parameters v and w, a buffer and some attributes.
Module network(const std::string& body, double slope = 0.5, const std::string& name = "Net") {
  Module module(name);
  module.register_parameter("v", at::rand({4, 4}), false);
  module.register_parameter("w", at::rand({4, 4}), false);
  module.register_buffer("mean", at::rand({4}));
  module.register_attribute("slope", c10::FloatType::get(), slope);
  module.register_attribute("calls", c10::IntType::get(), 0);
  module.register_attribute("training", c10::BoolType::get(), true);
  module.register_attribute("table", c10::TensorType::get(), at::full({2}, slope));
  module.define("def forward(self, x):\n" + body);
  module.train(false);
  return module;
}

void check_differs(const std::string& body, const std::string& other, const std::string& part) {
  INFO(body << other);
  CHECK(difference(network(body), network(body)).empty());
  CHECK_THAT(difference(network(body), network(other)), Catch::Contains(part));
  CHECK_FALSE(difference(network(other), network(body)).empty());
}

/// Runs a script that saves networks in the folder; false where Python has no torch.
bool made_in_python(const std::filesystem::path& folder, const std::string& script) {
  if (!testing::python_has_torch()) {
    WARN("python3 has no torch: networks made in Python are not compared");
    return false;
  }
  const bool made = testing::run_python(folder, script);
  INFO(testing::python_log(folder));
  REQUIRE(made);
  return true;
}

}  // namespace

TEST_CASE("builtin networks compare equal when their options are", "[graph_difference]") {
  const auto cases = testing::builtin_cases();
  for (const auto& c : cases) {
    INFO(c.describe());
    const Module module = build_builtin(c.name, c.options, 1);
    CHECK(difference(module, build_builtin(c.name, c.options, 2)).empty());
  }
  const auto groups = [](int count) {
    return build_builtin("convnet", {{"width", 8}, {"norm", "group"}, {"groups", count}}, 1);
  };
  // The same tensors, other groups.
  CHECK_THAT(difference(groups(4), groups(2)),
             Catch::Contains("aten::group_norm: num_groups is 4, there 2"));
}

TEST_CASE("operators, constants, wiring and length are compared", "[graph_difference]") {
  check_differs("    return x.mm(self.w).relu()\n", "    return x.mm(self.w).tanh()\n",
                "aten::relu, there aten::tanh");
  check_differs("    return x * 2.0\n", "    return x * 3.0\n", "aten::mul: other is 2., there 3.");
  check_differs("    return x.mm(self.v).mm(self.w)\n", "    return x.mm(self.w).mm(self.v)\n",
                "aten::mm: mat2 is self.v, there self.w");
  check_differs("    y = x.relu()\n    return y + x\n", "    y = x.relu()\n    return y + y\n",
                "aten::add: other is an input, there the result of aten::relu");
  check_differs("    return x.relu()\n", "    return x.relu().relu()\n",
                "nothing more, there aten::relu");
  const auto choose = [](const std::string& one, const std::string& other) {
    return "    a = x.relu()\n    b = x.tanh()\n    if x.size(0) > 1:\n        y = " + one +
           "\n    else:\n        y = " + other + "\n    return y\n";
  };
  check_differs(choose("a", "b"), choose("b", "a"),
                "result is the result of aten::relu, there the result of aten::tanh");
  check_differs("    return x.sum([0, 1])\n", "    return x.sum([0])\n",
                "prim::ListConstruct: 2 inputs, there 1");
  check_differs("    if x.size(0) > 1:\n        x = x.relu()\n    return x\n",
                "    if x.size(0) > 1:\n        x = x.tanh()\n    return x\n",
                "aten::relu, there aten::tanh");
}

TEST_CASE("attributes count by value, and what merging sees by name", "[graph_difference]") {
  const std::string body = "    return x * self.slope\n";
  CHECK(difference(network(body), network(body, 0.5, "Other")).empty());
  CHECK_THAT(difference(network(body), network(body, 0.25)),
             Catch::Contains("aten::mul: other is 0.5, there 0.25"));
  // A scripted attribute and the number that a trace would leave.
  CHECK(difference(network(body), network("    return x * 0.5\n")).empty());
  // Parameters and buffers hold other values in every network; other tensors are constants.
  CHECK(difference(network("    return x + self.mean\n"), network("    return x + self.mean\n"))
            .empty());
  const std::string table = "    return x + self.table[0]\n";
  CHECK(difference(network(table), network(table)).empty());
  CHECK_FALSE(difference(network(table), network(table, 0.25)).empty());
  // An attribute that the network itself changes is no constant.
  const std::string counter = "    self.calls += 1\n    return x * self.calls\n";
  Module used = network(counter);
  used.forward({at::rand({2, 4})});
  CHECK(difference(network(counter), used).empty());
}

TEST_CASE("what acts in training alone may differ", "[graph_difference]") {
  const auto dropout = [](const std::string& p, const std::string& training) {
    return network("    return torch.dropout(x, " + p + ", " + training + ")\n");
  };
  CHECK(difference(dropout("0.5", "self.training"), dropout("0.1", "self.training")).empty());
  CHECK(difference(dropout("0.5", "self.training"), dropout("0.5", "False")).empty());
  CHECK_THAT(difference(dropout("0.5", "self.training"), dropout("0.5", "True")),
             Catch::Contains("aten::dropout: train is"));
  const auto norm = [](const std::string& momentum, const std::string& eps) {
    return network(
        "    return torch.batch_norm(x, None, None, self.mean, self.mean, self.training, " +
        momentum + ", " + eps + ", True)\n");
  };
  CHECK(difference(norm("0.1", "1e-5"), norm("0.01", "1e-5")).empty());
  CHECK_THAT(difference(norm("0.1", "1e-5"), norm("0.1", "1e-3")),
             Catch::Contains("aten::batch_norm: eps"));
  // The same number elsewhere is not excused.
  CHECK_FALSE(difference(network("    return torch.dropout(x, 0.5, False) * 0.5\n"),
                         network("    return torch.dropout(x, 0.5, False) * 0.25\n"))
                  .empty());
}

TEST_CASE("networks of Python compare equal when scripted or traced alike", "[graph_difference]") {
  const testing::TemporaryFolder folder;
  if (!made_in_python(folder.path(), R"(
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, p=0.5, momentum=0.1, activation=nn.ReLU):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, momentum=momentum), activation())
        self.dropout = nn.Dropout(p)
        self.fc = nn.Linear(4, 3)
    def forward(self, x):
        x = self.layers(x).mean((2, 3))
        return self.fc(self.dropout(x))
x = torch.rand(2, 1, 8, 8)
for i in (0, 1):
    torch.jit.script(Net()).save(f"script{i}.pt")
    torch.jit.trace(Net().eval(), x).save(f"trace{i}.pt")
torch.jit.trace(Net().train(), x, check_trace=False).save("trained.pt")
torch.jit.script(Net(p=0.1, momentum=0.01)).save("regularised.pt")
torch.jit.script(Net(activation=nn.Tanh)).save("tanh.pt")
torch.jit.trace(Net(activation=nn.Tanh).eval(), x).save("trace_tanh.pt")
)"))
    return;
  const auto load = [&](const std::string& name) {
    Module module = torch::jit::load((folder / (name + ".pt")).string());
    module.train(false);
    return module;
  };
  CHECK(difference(load("script0"), load("script1")).empty());
  CHECK(difference(load("trace0"), load("trace1")).empty());
  CHECK(difference(load("script0"), load("regularised")).empty());
  CHECK_THAT(difference(load("script0"), load("tanh")),
             Catch::Contains("layers.2: prim::If, there layers.2: aten::tanh"));
  CHECK_THAT(difference(load("trace0"), load("trace_tanh")),
             Catch::Contains("layers.2: aten::relu, there layers.2: aten::tanh"));
  CHECK_FALSE(difference(load("script0"), load("trace0")).empty());
  CHECK_THAT(difference(load("trace0"), load("trained")), Catch::Contains("layers.1: "));
}

TEST_CASE("a network that may warn is the same after it was loaded and saved",
          "[graph_difference]") {
  const testing::TemporaryFolder folder;
  if (!made_in_python(folder.path(), R"(
import torch, warnings
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)
    def forward(self, x):
        if x.size(0) > 7:
            warnings.warn("many samples")
        if x.size(0) > 8:
            warnings.warn("very many samples")
        return self.fc(x)
torch.jit.script(Net()).save("net.pt")
torch.jit.load("net.pt").save("again.pt")
)"))
    return;
  Module net = torch::jit::load((folder / "net.pt").string());
  net.save((folder / "saved.pt").string());
  for (const char* name : {"net.pt", "again.pt", "saved.pt"}) {
    INFO(name);
    CHECK(difference(net, torch::jit::load((folder / name).string())).empty());
  }
}

TEST_CASE("recurrent layers with other weights compare equal, with other sizes not",
          "[graph_difference]") {
  const testing::TemporaryFolder folder;
  if (!made_in_python(folder.path(), R"(
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.rnn = nn.GRU(4, 6, layers, batch_first=True)
    def forward(self, x):
        return self.rnn(x)[0]
for name, layers in ("a", 1), ("b", 1), ("deep", 2):
    torch.jit.script(Net(layers)).save(name + ".pt")
)"))
    return;
  const auto load = [&](const char* name) { return torch::jit::load((folder / name).string()); };
  CHECK(difference(load("a.pt"), load("b.pt")).empty());
  CHECK_FALSE(difference(load("a.pt"), load("deep.pt")).empty());
}
