#include "weightsmith/model/graph_runner.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/jit/ir/ir.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/csrc/jit/serialization/import.h>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>
#include <set>

#include "support/builtin_cases.h"
#include "support/expect_error.h"
#include "support/python.h"
#include "support/temporary_folder.h"
#include "weightsmith/core/error.h"
#include "weightsmith/model/builtin.h"

using namespace weightsmith;
using c10::IValue;
using torch::jit::Module;

namespace {

/// Equal in structure and in every bit, NaN included.
bool same(const IValue& a, const IValue& b) {
  if (a.isTensor() && b.isTensor())
    return a.toTensor().scalar_type() == b.toTensor().scalar_type() &&
           at::equal(a.toTensor().nan_to_num(123), b.toTensor().nan_to_num(123));
  if (a.isTuple() && b.isTuple()) {
    const auto& x = a.toTupleRef().elements();
    const auto& y = b.toTupleRef().elements();
    if (x.size() != y.size()) return false;
    for (std::size_t i = 0; i < x.size(); ++i)
      if (!same(x[i], y[i])) return false;
    return true;
  }
  if (a.isList() && b.isList()) {
    if (a.toList().size() != b.toList().size()) return false;
    for (std::size_t i = 0; i < a.toList().size(); ++i)
      if (!same(a.toList().get(i), b.toList().get(i))) return false;
    return true;
  }
  if (a.isGenericDict() && b.isGenericDict()) {
    if (a.toGenericDict().size() != b.toGenericDict().size()) return false;
    for (const auto& item : a.toGenericDict())
      if (!same(item.value(), b.toGenericDict().at(item.key()))) return false;
    return true;
  }
  return a.type()->isSubtypeOf(*b.type()) && a == b;
}

/// Sum of squares of every tensor in a result that has a gradient.
at::Tensor sum_of(const IValue& value) {
  if (value.isTensor())
    return value.toTensor().requires_grad() ? value.toTensor().square().sum() : at::zeros({});
  at::Tensor sum = at::zeros({});
  if (value.isTuple())
    for (const IValue& item : value.toTupleRef().elements()) sum = sum + sum_of(item);
  if (value.isList())
    for (const IValue& item : value.toListRef()) sum = sum + sum_of(item);
  if (value.isGenericDict())
    for (const auto& item : value.toGenericDict()) sum = sum + sum_of(item.value());
  return sum;
}

TensorMap take_gradients(Module& module) {
  TensorMap gradients;
  for (auto item : module.named_parameters()) {
    if (item.value.grad().defined()) gradients[item.name] = item.value.grad().clone();
    item.value.mutable_grad() = at::Tensor();
  }
  return gradients;
}

/// The executor may rewrite a graph after its first runs; the comparison is with the plain one.
struct PlainExecutor {
  PlainExecutor() { torch::jit::setGraphExecutorOptimize(false); }
  ~PlainExecutor() { torch::jit::setGraphExecutorOptimize(true); }
};

/// Outputs and gradients of the runner are those of Module::forward, bit for bit. Networks that
/// change their buffers run on copies.
void check_like_forward(const Module& original, const std::vector<IValue>& inputs) {
  const PlainExecutor plain;
  GraphRunnerOptions options;
  options.is_grad_enabled.reset();
  {
    at::NoGradGuard no_grad;
    Module ours = original.deepcopy();
    Module theirs = original.deepcopy();
    const GraphRunner runner(ours, "net", options);
    for (int repeat = 0; repeat < 2; ++repeat) {
      at::manual_seed(5);
      const IValue expected = theirs.forward(inputs);
      at::manual_seed(5);
      CHECK(same(runner.run(inputs), expected));
    }
    const TensorMap a = testing::state_of(ours);
    for (const auto& [name, tensor] : testing::state_of(theirs))
      CHECK(at::equal(tensor, a.at(name)));
  }
  Module module = original.deepcopy();
  for (auto item : module.named_parameters()) {
    at::NoGradGuard no_grad;
    item.value.detach_();
    item.value.requires_grad_(true);
  }
  Module copy = module.deepcopy();
  for (auto item : copy.named_parameters()) {
    at::NoGradGuard no_grad;
    item.value.detach_();
    item.value.requires_grad_(true);
  }
  at::manual_seed(5);
  const at::Tensor expected = sum_of(module.forward(inputs));
  at::manual_seed(5);
  const at::Tensor found = sum_of(GraphRunner(copy, "net", options).run(inputs));
  CHECK(at::equal(found, expected));
  if (!expected.requires_grad()) return;
  expected.backward();
  found.backward();
  const TensorMap gradients = take_gradients(module);
  const TensorMap ours = take_gradients(copy);
  CHECK(gradients.size() == ours.size());
  for (const auto& [name, gradient] : gradients) {
    INFO(name);
    CHECK(at::equal(gradient, ours.at(name)));
  }
}

Module make(const std::string& source) {
  Module module("Net");
  module.register_parameter("w", at::randn({4, 4}).set_requires_grad(true), false);
  module.register_parameter("b", at::randn({4}).set_requires_grad(true), false);
  module.register_buffer("count", at::zeros({}, at::kLong));
  module.define(source);
  return module;
}

}  // namespace

TEST_CASE("the runner equals forward on every builtin", "[graph_runner]") {
  at::manual_seed(1);
  for (const auto& c : testing::all_builtin_cases()) {
    INFO(c.describe());
    Module module = build_builtin(c.name, c.options, 3);
    const at::Tensor input = at::randn(c.input);
    check_like_forward(module, {input});
    module.train();
    check_like_forward(module, {input});
  }
}

TEST_CASE("the runner equals forward on awkward networks", "[graph_runner]") {
  at::manual_seed(1);
  const at::Tensor x = at::randn({3, 4});
  const std::vector<std::string> sources{
      // in-place operations on values and on views
      R"(def forward(self, x):
    y = torch.matmul(x, self.w)
    y.add_(1.0)
    z = y[:, 1:3]
    z.mul_(2.0)
    y += self.b
    self.count.add_(1)
    return y, z
)",
      // control flow that depends on values, early return, nested loops
      R"(def forward(self, x):
    y = x
    i = 0
    while bool(y.abs().sum() < 1000.0) and i < 20:
        for j in range(int(x.size(0))):
            if j % 2 == 0:
                y = y + torch.matmul(x, self.w) * float(j)
            else:
                y = y * 1.5
        i += 1
    if i > 5:
        return y
    return -y
)",
      // dictionaries, tuples, lists, strings
      R"(def forward(self, x):
    d = {"a": x, "b": torch.matmul(x, self.w)}
    d["c"] = d["a"] + d["b"]
    values = [v * 2.0 for v in d.values()]
    values.append(x)
    a, b = torch.chunk(values[1], 2, 1)
    t = (a, b, "text {}".format(len(values)), [1, 2, 3])
    first, second, third, fourth = t
    return d, values, (first, second), third, t[0:2]
)",
      // shared parameters and attributes written
      R"(def forward(self, x):
    self.count = self.count + 1
    y = torch.matmul(torch.matmul(x, self.w), self.w.t())
    assert int(self.count) >= 1, "count"
    return torch.softmax(y + self.b, 1), int(self.count)
)",
      // optional values, isinstance, comprehension, random numbers
      R"(def forward(self, x, mask: Optional[Tensor] = None, p: float = 0.5):
    y = torch.dropout(torch.matmul(x, self.w), p, True)
    if mask is not None:
        y = y * mask
    parts = [y[:, i] for i in range(4)]
    stacked = torch.stack(parts, 1) + torch.rand_like(x)
    return torch.einsum("bi,ij->bj", [stacked, self.w])
)",
      R"(def forward(self, x):
    return x
)"};
  for (const std::string& source : sources) {
    INFO(source);
    check_like_forward(make(source), {x});
  }
  check_like_forward(make(sources[4]), {x, at::ones({3, 4}) * 2, 0.1});
}

TEST_CASE("helper functions, methods and submodules are inlined", "[graph_runner]") {
  at::manual_seed(1);
  Module inner = make(R"(def scale(self, x, k: float):
    return x * k
def forward(self, x, k: float = 3.0):
    return self.scale(torch.matmul(x, self.w), k)
)");
  Module outer("Outer");
  outer.register_attribute("training", c10::BoolType::get(), true);
  outer.register_module("inner", inner);
  outer.define(R"(def forward(self, x):
    y = self.inner.forward(x)
    return self.inner.forward(y, 0.5) + self.inner.scale(x, 2.0)
)");
  check_like_forward(outer, {at::randn({2, 4})});
  const FlatGraph graph(outer, "net");
  CHECK(graph.called_modules() == std::vector<std::string>{"inner"});
  std::size_t matmuls = 0;
  for (std::size_t i = 0; i < graph.nodes().size(); ++i)
    if (graph.describe(i) == "inner: aten::matmul") ++matmuls;
  CHECK(matmuls == 2);
}

TEST_CASE("an observer sees every node with its values", "[graph_runner]") {
  struct Counter : NodeObserver {
    std::set<std::size_t> before_nodes, after_nodes;
    std::size_t additions = 0;
    const FlatGraph* graph = nullptr;
    void before(std::size_t n, std::vector<IValue>& inputs) override {
      before_nodes.insert(n);
      // Replace what the network adds.
      if (graph->nodes()[n]->kind() == c10::aten::mul) inputs.at(1) = at::full({}, 10.0);
    }
    void after(std::size_t n, const std::vector<IValue>& inputs,
               const std::vector<IValue>& outputs) override {
      after_nodes.insert(n);
      if (graph->nodes()[n]->kind() != c10::aten::add_) return;
      ++additions;
      CHECK(inputs.at(0).toTensor().is_same(outputs.at(0).toTensor()));
    }
  } counter;
  const Module module = make(R"(def forward(self, x):
    y = x * self.b
    for i in range(3):
        y.add_(1.0)
    return y
)");
  const GraphRunner runner(module, "net");
  counter.graph = &runner.graph();
  const at::Tensor x = at::randn({3, 4});
  CHECK(at::allclose(runner.run({x}, &counter).toTensor(), x * 10 + 3));
  CHECK(counter.additions == 3);
  CHECK(std::includes(counter.after_nodes.begin(), counter.after_nodes.end(),
                      counter.before_nodes.begin(), counter.before_nodes.end()));
}

TEST_CASE("values are freed after their last use", "[graph_runner]") {
  // Each value dies once the next is made, so at most two of the chain are alive at any node.
  struct Watcher : NodeObserver {
    std::vector<c10::weak_intrusive_ptr<c10::TensorImpl>> made;
    std::size_t most_alive = 0;
    void after(std::size_t, const std::vector<IValue>&,
               const std::vector<IValue>& outputs) override {
      for (const IValue& value : outputs)
        if (value.isTensor()) made.emplace_back(value.toTensor().getIntrusivePtr());
      std::set<const c10::TensorImpl*> alive;
      for (const auto& tensor : made)
        if (!tensor.expired()) alive.insert(tensor._unsafe_get_target());
      most_alive = std::max(most_alive, alive.size());
    }
  } watcher;
  at::NoGradGuard no_grad;
  const Module module = make(R"(def forward(self, x):
    a = x + 1.0
    for i in range(4):
        b = a * 2.0
        if i > 1:
            a = b + 1.0
        else:
            a = b - 1.0
    c = a + 1.0
    d = c + 1.0
    e = d + 1.0
    return e
)");
  GraphRunner(module, "net").run({at::zeros({2})}, &watcher);
  CHECK(watcher.made.size() >= 12);
  CHECK(watcher.most_alive == 2);
}

TEST_CASE("options answer for the network", "[graph_runner]") {
  at::NoGradGuard no_grad;
  const Module module = make("def forward(self, x):\n    return torch.is_grad_enabled()\n");
  const at::Tensor x = at::zeros({1});
  CHECK(GraphRunner(module, "net").run({x}).toBool());
  GraphRunnerOptions options;
  options.is_grad_enabled.reset();
  CHECK_FALSE(GraphRunner(module, "net", options).run({x}).toBool());

  Module net = build_builtin("convnet", {{"width", 4}}, 0);  // in eval mode
  const at::Tensor images = at::randn({6, 1, 8, 8});
  options.batch_norm_training = true;
  const at::Tensor ours = GraphRunner(net.deepcopy(), "net", options).run({images}).toTensor();
  CHECK_FALSE(at::equal(ours, net.forward({images}).toTensor()));
  net.train();
  CHECK(at::equal(ours, net.forward({images}).toTensor()));
}

TEST_CASE("failures name the model, the submodule and the operator", "[graph_runner]") {
  using Catch::Contains;
  const at::Tensor x = at::randn({3, 5});
  const auto run = [&](const std::string& source) {
    const GraphRunner runner(make(source), "net.pt");
    return testing::error_of(ErrorKind::kInput, [&] { runner.run({x}); });
  };
  CHECK_THAT(run("def forward(self, x):\n    return torch.matmul(x, self.w)\n"),
             Contains("net.pt: aten::matmul") && Contains("inputs of the shape"));
  CHECK_THAT(run("def forward(self, x):\n    return torch.matmul(x.to(15), x.t())\n"),  // bfloat16
             Contains("net.pt: aten::matmul") && Contains("the type of its parameters"));
  CHECK_THAT(run(R"(def forward(self, x):
    assert x.size(0) <= 2, "batches of two at most"
    return x
)"),
             Contains("batches of two at most"));
  const Module resnet = build_builtin("resnet20", {{"depth", 8}}, 0);
  CHECK_THAT(testing::error_of(ErrorKind::kInput,
                               [&] {
                                 GraphRunner(resnet, "r").run({at::randn({1, 4, 8, 8})});
                               }),
             Contains("r: conv1: aten::conv2d"));
  const GraphRunner runner(make("def forward(self, x):\n    return x\n"), "net.pt");
  CHECK_THAT(testing::error_of(ErrorKind::kInput, [&] { runner.run({}); }), Contains("net.pt"));
  CHECK_THAT(testing::error_of(ErrorKind::kInput, [&] { runner.run({1}); }), Contains("net.pt"));
  CHECK_THAT(testing::error_of(ErrorKind::kInput, [] { GraphRunner(Module("Empty"), "e.pt"); }),
             Contains("no forward method"));
}

TEST_CASE("operators that touch files are refused unless trusted", "[graph_runner]") {
  const Module module = make(R"(def forward(self, x):
    torch.save(x, "/nonexistent-folder/x.pt")
    return x
)");
  CHECK_THAT(testing::error_of(ErrorKind::kInput, [&] { GraphRunner(module, "net.pt"); }),
             Catch::Contains("aten::save") && Catch::Contains("--trust"));
  GraphRunnerOptions options;
  options.trust = true;
  CHECK_NOTHROW(GraphRunner(module, "net.pt", options));
  CHECK(is_allowed_operator("aten::conv2d"));
  CHECK_FALSE(is_allowed_operator("quantized::linear"));
  CHECK_FALSE(is_allowed_operator("prim::rpc_async"));
}

TEST_CASE("the runner equals forward on networks exported from Python", "[graph_runner]") {
  if (!testing::python_has_torch()) {
    WARN("skipped: " << testing::python() << " cannot import torch");
    return;
  }
  const testing::TemporaryFolder folder;
  const bool exported = testing::run_python(folder.path(), R"(
import torch
from torch import nn
from typing import Dict, List, NamedTuple, Optional, Tuple
torch.manual_seed(0)

class Pair(NamedTuple):
    a: torch.Tensor
    b: torch.Tensor

class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1, groups=2)
        self.bn = nn.BatchNorm2d(c)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.3)
    def forward(self, x):
        return x + self.drop(self.act(self.bn(self.conv(x))))

class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.blocks = nn.ModuleList([Block(8), Block(8)])
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(nn.functional.hardswish(x))

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.lstm = nn.LSTM(16, 8, 2, bidirectional=True, batch_first=True)
        self.gru = nn.GRUCell(16, 4)
    def forward(self, x):
        y = self.encoder(self.embed(x))
        y = self.attention(y, y, y)[0]
        y, state = self.lstm(y)
        h = self.gru(y[:, 0])
        for t in range(1, y.size(1)):
            h = self.gru(y[:, t], h)
        return h, state[0]

class Structures(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight
    def forward(self, x, y, options: Optional[Dict[str, torch.Tensor]] = None):
        p = Pair(self.a(x), self.b(y))
        out: Dict[str, torch.Tensor] = {"sum": p.a + p.b}
        if options is not None:
            for k, v in options.items():
                out[k] = v * 2
        rest: List[torch.Tensor] = []
        while len(rest) < 3:
            rest.append(p.b.mul_(1.5))
        return p, out, rest

x = torch.randn(2, 3, 9, 9)
t = torch.randint(0, 20, (2, 6))
for name, net, args, scripts in [("images", Images(), (x,), True), ("tokens", Tokens(), (t,), True)]:
    for mode in ["eval", "train"]:
        net.train(mode == "train")
        torch.jit.script(net).save(name + "-scripted-" + mode + ".pt")
        torch.jit.trace(net, args, check_trace=False).save(name + "-traced-" + mode + ".pt")
torch.jit.script(Structures()).save("structures.pt")

class Picky(nn.Module):
    def forward(self, x):
        if x.size(0) > 1:
            raise ValueError("batch of {}".format(x.size(0)))
        return x
torch.jit.script(Picky()).save("picky.pt")

class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
    def forward(self, x):
        with torch.no_grad():
            y = self.a(x)
            if x.size(1) != 4:
                raise ValueError("four values a sample")
        return self.b(y) + x
torch.jit.script(Detached()).save("detached.pt")

@torch.jit.script
class Item:
    def __init__(self, value: int):
        self.value = value
    def __lt__(self, other: "Item") -> bool:
        return self.value < other.value
class Sorts(nn.Module):
    def forward(self, x):
        items = [Item(3), Item(2)]
        items.sort()
        return x * items[0].value
torch.jit.script(Sorts()).save("sorts.pt")
)");
  INFO(testing::python_log(folder.path()));
  REQUIRE(exported);
  at::manual_seed(2);
  const at::Tensor images = at::randn({2, 3, 9, 9});
  const at::Tensor tokens = at::randint(20, {2, 6}, at::kLong);
  for (const char* kind : {"scripted", "traced"}) {
    for (const char* mode : {"eval", "train"}) {
      for (const std::string name : {"images", "tokens"}) {
        const std::string file = name + "-" + kind + "-" + mode + ".pt";
        INFO(file);
        const Module module = torch::jit::load((folder.path() / file).string());
        check_like_forward(module, {name == "images" ? images : tokens});
      }
    }
  }
  const Module structures = torch::jit::load((folder.path() / "structures.pt").string());
  check_like_forward(structures, {at::randn({2, 4}), at::randn({2, 4})});

  const Module picky = torch::jit::load((folder.path() / "picky.pt").string());
  CHECK_THAT(
      testing::error_of(ErrorKind::kInput, [&] { GraphRunner(picky, "picky.pt").run({images}); }),
      Catch::Contains("picky.pt") && Catch::Contains("batch of 2"));

  // torch.no_grad() is entered and left, and left too when the network fails inside.
  const Module detached = torch::jit::load((folder.path() / "detached.pt").string());
  check_like_forward(detached, {at::randn({2, 4})});
  const GraphRunner runner(detached, "detached.pt");
  CHECK_THAT(testing::error_of(ErrorKind::kInput,
                               [&] {
                                 runner.run({at::randn({2, 5})});
                               }),
             Catch::Contains("detached.pt: a: aten::linear"));
  CHECK(at::GradMode::is_enabled());

  // Sorting objects calls their own comparison, which could hold any operator.
  const Module sorts = torch::jit::load((folder.path() / "sorts.pt").string());
  CHECK_THAT(testing::error_of(ErrorKind::kInput, [&] { GraphRunner(sorts, "sorts.pt"); }),
             Catch::Contains("aten::sort"));
  GraphRunnerOptions trusting;
  trusting.trust = true;
  CHECK(at::equal(GraphRunner(sorts, "sorts.pt", trusting).run({images}).toTensor(), images * 2));

  // A network traced in eval mode ignores train(); the runner can still move its batch norms.
  at::NoGradGuard no_grad;
  Module traced = torch::jit::load((folder.path() / "images-traced-eval.pt").string());
  traced.train();
  const auto mean = [&] {
    return testing::state_of(traced).at("blocks.0.bn.running_mean").clone();
  };
  const at::Tensor before = mean();
  traced.forward({images});
  CHECK(at::equal(mean(), before));
  GraphRunnerOptions options;
  options.batch_norm_training = true;
  GraphRunner(traced, "traced", options).run({images});
  CHECK_FALSE(at::equal(mean(), before));
}
