#include "weightsmith/model/taps.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>
#include <torch/csrc/jit/ir/ir.h>
#include <torch/csrc/jit/serialization/import.h>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "support/builtin_cases.h"
#include "support/expect_error.h"
#include "support/python.h"
#include "support/temporary_folder.h"
#include "weightsmith/core/error.h"
#include "weightsmith/graph/unit_groups.h"
#include "weightsmith/model/builtin.h"

using namespace weightsmith;
using torch::jit::Module;

namespace {

/// What each tap saw, copied at once, in the order seen.
std::vector<std::vector<at::Tensor>> observe(const Module& module,
                                             const std::vector<std::string>& taps,
                                             std::vector<c10::IValue> inputs,
                                             GraphRunnerOptions options = {}) {
  std::vector<std::vector<at::Tensor>> seen(taps.size());
  const TapSet set(module, taps, "net", options);
  set.run(std::move(inputs),
          [&](std::size_t tap, const at::Tensor& value) { seen[tap].push_back(value.clone()); });
  return seen;
}

Module make(const std::string& source) {
  Module module("Net");
  module.register_parameter("w", at::randn({4, 4}), false);
  module.register_parameter("b", at::randn({4}), false);
  module.register_parameter("unused", at::randn({4}), false);
  module.register_buffer("scale", at::rand({4}));
  module.define(source);
  return module;
}

}  // namespace

TEST_CASE("taps see values before later in-place operations", "[taps]") {
  at::NoGradGuard no_grad;
  at::manual_seed(0);
  const Module module = build_builtin("convnet", {{"width", 4}}, 1);
  testing::randomise_in_double(module);
  const TensorMap s = testing::state_of(module);
  const at::Tensor x = at::randn({5, 1, 8, 8}, at::kDouble);
  const at::Tensor conv1 = at::conv2d(x, s.at("conv1.weight"), {}, 1, 1);
  const at::Tensor bn1 =
      at::batch_norm(conv1, s.at("bn1.weight"), s.at("bn1.bias"), s.at("bn1.running_mean"),
                     s.at("bn1.running_var"), false, 0.1, 1e-5, false);
  const auto seen =
      observe(module,
              {"conv1.weight/input", "conv1.weight/output", "bn1.running_mean/input",
               "bn1.weight/output", "conv2.weight/input", "conv1/input", "bn1/output", "fc/output"},
              {x});
  for (const auto& values : seen) REQUIRE(values.size() == 1);
  CHECK(at::equal(seen[0][0], x));
  CHECK(at::allclose(seen[1][0], conv1));
  CHECK(at::allclose(seen[2][0], conv1));
  CHECK(at::allclose(seen[3][0], bn1));  // relu_ comes after
  CHECK((seen[3][0] < 0).any().item<bool>());
  CHECK(at::allclose(seen[4][0], bn1.relu()));
  CHECK(at::equal(seen[5][0], x));
  CHECK(at::allclose(seen[6][0], bn1));
  Module copy = module;
  CHECK(at::allclose(seen[7][0], copy.forward({x}).toTensor()));
}

TEST_CASE("the taps of builtin groups give the group's units", "[taps]") {
  at::NoGradGuard no_grad;
  for (const auto& c : testing::builtin_cases()) {
    INFO(c.describe());
    const Module module = build_builtin(c.name, c.options, 0);
    std::vector<std::string> taps;
    const UnitGroups groups = builtin_unit_groups(c.name, c.options);
    for (const UnitGroup& group : groups.groups)
      for (const UnitTap& tap : group.taps) taps.push_back(tap.at);
    const auto seen = observe(module, taps, {at::randn(c.input)});
    for (std::size_t i = 0; i < taps.size(); ++i) {
      REQUIRE(seen[i].size() == 1);
      CHECK(seen[i][0].size(1) == groups.groups[i].units);
    }
  }
}

TEST_CASE("transposed, sliced and cast parameters stand for themselves", "[taps]") {
  at::NoGradGuard no_grad;
  at::manual_seed(0);
  const at::Tensor x = at::randn({3, 4});
  const Module module = make(R"(def forward(self, x):
    top = self.w.t()[:, 0:2].contiguous()
    y = torch.matmul(x * 2.0, top)
    z = torch.cat([self.b.unsqueeze(0), x.relu()], 0)
    return y, z, torch.add(z, self.scale)
)");
  const TensorMap s = testing::state_of(module);
  const auto seen = observe(
      module, {"w/input", "w/output", "b/input", "b/output", "scale/input", "scale/output"}, {x});
  const at::Tensor z = at::cat({s.at("b").unsqueeze(0), x.relu()});
  REQUIRE(seen[0].size() == 1);
  CHECK(at::equal(seen[0][0], x * 2));
  CHECK(at::allclose(seen[1][0], at::matmul(x * 2, s.at("w").t().slice(1, 0, 2))));
  CHECK(at::equal(seen[2][0], x.relu()));
  CHECK(at::equal(seen[3][0], z));
  CHECK(at::equal(seen[4][0], z));
  CHECK(at::equal(seen[5][0], z + s.at("scale")));
}

TEST_CASE("parameters used several times are observed at each use", "[taps]") {
  at::NoGradGuard no_grad;
  const at::Tensor x = at::randn({2, 4});
  Module module = make(R"(def forward(self, x):
    for i in range(3):
        x = torch.tanh(torch.matmul(x, self.w))
    return x
)");
  at::Tensor value = x;
  const auto seen = observe(module, {"w/input", "w/input"}, {x});
  REQUIRE(seen[0].size() == 3);
  REQUIRE(seen[1].size() == 3);
  for (int i = 0; i < 3; ++i) {
    CHECK(at::allclose(seen[0][i], value));
    value = at::tanh(at::matmul(value, testing::state_of(module).at("w")));
  }

  Module shared("Shared");
  const at::Tensor weight = at::randn({4, 4});
  shared.register_parameter("first", weight, false);
  shared.register_parameter("second", weight, false);
  shared.define(
      "def forward(self, x):\n    return torch.matmul(torch.matmul(x, self.first), "
      "self.second)\n");
  CHECK(observe(shared, {"second/input"}, {x})[0].size() == 2);
}

TEST_CASE("submodule boundaries and nodes are taps", "[taps]") {
  at::NoGradGuard no_grad;
  at::manual_seed(0);
  Module module = build_builtin("resnet20", {{"depth", 14}, {"width", 0.5}}, 1);
  const at::Tensor x = at::randn({2, 3, 8, 8});
  const TapSet probe(module, {}, "net");
  const FlatGraph& graph = probe.runner().graph();
  std::size_t add = 0;  // the first shortcut's sum
  while (graph.nodes()[add]->kind() != c10::aten::add_ || graph.module_of(add) != "layer1.0") ++add;
  const std::string node = fmt::format("#{}", add);
  const auto seen =
      observe(module,
              {"layer1/input", "layer1.0/output", "layer1.1/input", "layer1/output",
               "layer2.0/input", node + "/input.1", node + "/output", node + "/input"},
              {x});
  CHECK(at::equal(seen[1][0], seen[2][0]));
  CHECK(at::equal(seen[3][0], seen[4][0]));
  CHECK(at::equal(seen[5][0], seen[0][0]));  // the shortcut of the first block is its input
  CHECK(at::equal(seen[6][0], seen[7][0] + seen[5][0]));
  CHECK(at::equal(seen[1][0], seen[6][0].relu()));
}

TEST_CASE("taps give back the network's result and work with gradients", "[taps]") {
  Module module = build_builtin("mlp", {{"inputs", 6}, {"hidden", {5}}}, 1);
  const at::Tensor x = at::randn({3, 6});
  at::Tensor hidden;
  const TapSet set(module, {"fc2.weight/input"}, "net");
  const at::Tensor out =
      set.run({x}, [&](std::size_t, const at::Tensor& v) { hidden = v; }).toTensor();
  CHECK(at::equal(out, module.forward({x}).toTensor()));
  CHECK(hidden.requires_grad());
  out.sum().backward();
  const TensorMap s = testing::state_of(module);
  CHECK(at::allclose(s.at("fc2.weight").grad(), hidden.detach().sum(0).expand({10, 5})));
}

TEST_CASE("unknown and unreached taps are named", "[taps]") {
  using Catch::Contains;
  const Module module = build_builtin("convnet", {{"width", 4}}, 1);
  const auto refuse = [&](const std::string& tap) {
    return testing::error_of(ErrorKind::kInput, [&] { TapSet(module, {tap}, "net.pt"); });
  };
  CHECK_THAT(refuse("conv1.wieght/input"), Contains("net.pt") && Contains("conv1.wieght/input") &&
                                               Contains("did you mean \"conv1.weight/input\"?"));
  CHECK_THAT(refuse("conv1.weight"), Contains("no tap \"conv1.weight\""));
  CHECK_THAT(refuse("conv1.weight/side"), Contains("no tap"));
  CHECK_THAT(refuse("#100000/output"), Contains("nodes"));
  CHECK_THAT(refuse("#x/output"), Contains("no tap"));
  CHECK_THAT(refuse("#1/output.77"), Contains("outputs") || Contains("constant"));
  const Module unused = make("def forward(self, x):\n    return torch.matmul(x, self.w)\n");
  CHECK_THAT(testing::error_of(ErrorKind::kInput,
                               [&] {
                                 observe(unused, {"unused/input"}, {at::randn({2, 4})});
                               }),
             Contains("\"unused/input\" was not reached"));
  // With what asks for them.
  testing::expect_error(ErrorKind::kInput,
                        {"g.json: group \"b\": net.pt: ", "no tap \"none/input\""}, [&] {
                          TapSet(module, {"conv1.weight/input", "none/input"}, "net.pt", {},
                                 {"g.json: group \"a\"", "g.json: group \"b\""});
                        });
  testing::expect_error(ErrorKind::kInput, {"group \"a\": net: ", "was not reached"}, [&] {
    TapSet(unused, {"unused/input"}, "net", {}, {"group \"a\""})
        .run({at::randn({2, 4})}, [](std::size_t, const at::Tensor&) {});
  });
  const std::vector<std::string> known = list_taps(FlatGraph(module, "net"));
  CHECK(std::count(known.begin(), known.end(), "bn1.running_var/input") == 1);
  CHECK(std::count(known.begin(), known.end(), "conv4/output") == 1);
}

TEST_CASE("taps agree with hooks in Python", "[taps]") {
  if (!testing::python_has_torch()) {
    WARN("skipped: " << testing::python() << " cannot import torch");
    return;
  }
  const testing::TemporaryFolder folder;
  const bool exported = testing::run_python(folder.path(), R"(
import torch
from torch import nn
torch.manual_seed(0)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm = nn.LayerNorm(6)
        self.fc = nn.Linear(6, 4)
    def forward(self, x):
        y = self.layers(x).flatten(2).transpose(1, 2)
        z = y + self.attention(y, y, y, need_weights=False)[0]
        return self.fc(self.norm(z).mean(1))
net = Net().eval()
x = torch.randn(2, 3, 6, 6)
seen = {}
net.layers[1].register_forward_hook(lambda m, i, o: seen.__setitem__("bn", (i[0].clone(), o.clone())))
net.norm.register_forward_hook(lambda m, i, o: seen.__setitem__("norm", (i[0].clone(), o.clone())))
net.fc.register_forward_hook(lambda m, i, o: seen.__setitem__("fc", (i[0].clone(), o.clone())))
out = net(x)
class Holder(nn.Module):
    def __init__(self, tensors):
        super().__init__()
        for k, v in tensors.items():
            self.register_buffer(k, v)
holder = Holder({"x": x, "bn_in": seen["bn"][0], "bn_out": seen["bn"][1],
                 "norm_in": seen["norm"][0], "fc_in": seen["fc"][0], "out": out.detach()})
torch.jit.script(holder).save("expected.pt")
for handle in [net.layers[1], net.norm, net.fc]:
    handle._forward_hooks.clear()
torch.jit.script(net).save("scripted.pt")
torch.jit.trace(net, (x,), check_trace=False).save("traced.pt")
)");
  INFO(testing::python_log(folder.path()));
  REQUIRE(exported);
  at::NoGradGuard no_grad;
  const TensorMap expected =
      testing::state_of(torch::jit::load((folder.path() / "expected.pt").string()));
  for (const char* file : {"scripted.pt", "traced.pt"}) {
    INFO(file);
    const Module module = torch::jit::load((folder.path() / file).string());
    const auto seen =
        observe(module,
                {"layers.1.weight/input", "layers.1.running_var/output", "layers.1/output",
                 "norm.weight/input", "norm/input", "fc.weight/input", "fc/output"},
                {expected.at("x")});
    // Training mode, where Python's batch norm also counts batches, and overridden tracing.
    Module training = module.deepcopy();
    training.train();
    GraphRunnerOptions options;
    options.batch_norm_training = true;
    const auto batch =
        observe(training, {"layers.1.running_mean/input"}, {expected.at("x")}, options);
    REQUIRE(batch[0].size() == 1);
    CHECK(at::allclose(batch[0][0], expected.at("bn_in")));
    CHECK(at::allclose(testing::state_of(training).at("layers.1.running_mean"),
                       0.1 * batch[0][0].mean({0, 2, 3}), 1e-4, 1e-6));

    CHECK(at::allclose(seen[0][0], expected.at("bn_in")));
    CHECK(at::allclose(seen[1][0], expected.at("bn_out")));
    CHECK(at::allclose(seen[2][0], expected.at("bn_out")));
    CHECK(at::allclose(seen[3][0], expected.at("norm_in"), 1e-4, 1e-6));
    CHECK(at::allclose(seen[4][0], expected.at("norm_in"), 1e-4, 1e-6));
    CHECK(at::allclose(seen[5][0], expected.at("fc_in"), 1e-4, 1e-6));
    CHECK(at::allclose(seen[6][0], expected.at("out"), 1e-4, 1e-6));
  }
}
