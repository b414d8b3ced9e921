#include "weightsmith/model/archive_inspection.h"

#include <torch/script.h>

#include <random>

#include "support/archives.h"
#include "support/expect_error.h"
#include "support/files.h"
#include "support/python.h"
#include "support/temporary_folder.h"
#include "weightsmith/model/builtin.h"
#include "weightsmith/model/script_model.h"

using namespace weightsmith;
using testing::expect_error;
using testing::read_bytes;
using testing::write_archive;
using testing::write_bytes;

namespace fs = std::filesystem;

namespace {

torch::jit::Module plain_network() {
  torch::jit::Module net("Net");
  net.register_attribute("training", c10::BoolType::get(), true);
  net.register_parameter("weight", torch::ones({2, 3}), false);
  net.define("def forward(self, x):\n    return torch.relu(torch.linear(x, self.weight))\n");
  return net;
}

/// The plain network with `forward` replaced in the text of its code.
fs::path network_with_code(const fs::path& path, const std::string& from, const std::string& to) {
  plain_network().save(path.string());
  testing::Records records = testing::read_archive(path);
  int replaced = 0;
  for (auto& [name, contents] : records)
    if (name.ends_with(".py"))
      if (const auto at = contents.find(from); at != std::string::npos) {
        contents.replace(at, from.size(), to);
        ++replaced;
      }
  REQUIRE(replaced == 1);
  return write_archive(path, records);
}

ScriptModel load(const fs::path& path, bool trust) {
  ModelRef ref;
  ref.script = path;
  LoadOptions options;
  options.trust = trust;
  return ScriptModel::load(ref, options);
}

}  // namespace

TEST_CASE("code that only computes passes inspection", "[archive_inspection]") {
  for (const char* code : {
           "",
           "class A(Module):\n  weight : Tensor\n  eps : Final[float] = 1.0e-05\n",
           "def f(x: Tensor) -> Tensor:\n  # torch.save(x)\n  return torch.add(x, 1)\n",
           "def f(self: __torch__.a.B, x: Tensor) -> Tensor:\n"
           "  _0 = __torch__.torch.nn.functional.relu\n"
           "  ops.prim.RaiseException(\"never torch.save(x) \\\" ops.c10d.send\")\n"
           "  y = (self.save).forward(annotate(List[int], []), )\n"
           "  return ops.prim.data(torch.mul(y.fork, ops.quantized.add(x, x, 1., 0)))\n",
           "def f(x):\n  z = ops.profiler._record_function_enter(\"a\", None)\n",
       }) {
    INFO(code);
    CHECK(find_unsafe_code(code).empty());
  }
}

TEST_CASE("code that reaches further is refused by name", "[archive_inspection]") {
  const std::vector<std::pair<std::string, std::string>> cases{
      {"torch.save(x, \"f\")", "torch.save"},
      {"y = torch.from_file(\"x\", False, 3)", "torch.from_file"},
      {"y = torch . \\\n    save(x, \"f\")", "torch.save"},
      {"y = (torch.\n save)(x, \"f\")", "torch.save"},
      {"ops.aten.save(x, \"f\")", "torch.save"},
      {"ops.torchvision.nms(x, x, 0.5)", "ops.torchvision.nms"},
      {"ops.c10d.send(x)", "ops.c10d.send"},
      {"ops.prim.PythonOp(x)", "ops.prim.PythonOp"},
      {"ops.prim.rpc_async(x)", "ops.prim.rpc_async"},
      {"f = fork(g)", "fork"},
      {"y = rpc_sync(x)", "rpc_sync"},
      {"t = torch\n  t.save(x)", "uses torch other"},
      {"y = getattr(torch, \"save\")(x)", "uses torch other"},
      {"o = ops\n  o.aten.save(x)", "uses ops other"},
      {"o = ops.aten\n  o.save(x)", "uses ops other"},
      {"c = __torch__.torch.classes.dist_rpc.Thing.__new__(x)", "torch.classes.dist_rpc"},
      {"c = __torch__.torch.classes.profiler._RecordFunction.save(x)", "torch.classes.profiler"},
      {"c = __torch__.torch\n  d = c.classes", "uses __torch__ other"},
      {"def __setstate__(self, x):\n    pass", "__setstate__"},
  };
  for (const auto& [code, message] : cases) {
    INFO(code);
    CHECK_THAT(find_unsafe_code("def f(x):\n  " + code + "\n"), Catch::Contains(message));
  }
  // A type that marks a stretch of code in profiles.
  CHECK(find_unsafe_code("record : Optional[__torch__.torch.classes.profiler._RecordFunction]\n")
            .empty());
}

TEST_CASE("ordinary archives pass inspection", "[archive_inspection]") {
  testing::TemporaryFolder folder;
  plain_network().save((folder / "plain.pt").string());
  inspect_archive(folder / "plain.pt", false);
  for (const std::string& name : builtin_names()) {
    INFO(name);
    build_builtin(name, nullptr, 0).save((folder / "net.pt").string());
    inspect_archive(folder / "net.pt", false);
  }
}

TEST_CASE("__setstate__ does not run unless trusted", "[archive_inspection]") {
  testing::TemporaryFolder folder;
  const fs::path trace = folder / "trace";
  torch::jit::Module net("Net");
  net.register_attribute("training", c10::BoolType::get(), true);
  net.register_parameter("weight", torch::ones({2}), false);
  net.define(R"(
    def __getstate__(self):
        return (self.weight, self.training)
    def __setstate__(self, state: Tuple[Tensor, bool]) -> None:
        torch.save(state[0], ")" +
             trace.string() + R"(")
        self.weight = state[0]
        self.training = state[1]
    def forward(self, x):
        return x * self.weight
  )");
  net.save((folder / "net.pt").string());
  REQUIRE_FALSE(fs::exists(trace));
  expect_error(ErrorKind::kInput, {"net.pt", "code/__torch__", "__setstate__", "--trust"},
               [&] { load(folder / "net.pt", false); });
  CHECK_FALSE(fs::exists(trace));
  load(folder / "net.pt", true);
  CHECK(fs::exists(trace));
}

TEST_CASE("operators that touch files are refused wherever they stand", "[archive_inspection]") {
  testing::TemporaryFolder folder;
  const fs::path trace = folder / "trace";
  const std::string call = "torch.save(x, \"" + trace.string() + "\")";
  SECTION("in forward") {
    const auto path = network_with_code(folder / "net.pt", "weight = self.weight",
                                        call + "\n    weight = self.weight");
    expect_error(ErrorKind::kInput, {"refused", "torch.save"}, [&] { load(path, false); });
    ScriptModel trusted = load(path, true);
    trusted.forward(torch::ones({1, 3}));
    CHECK(fs::exists(trace));
  }
  SECTION("in a default argument, which loading evaluates") {
    const auto path =
        network_with_code(folder / "net.pt", "x: Tensor)",
                          "x: Tensor, y: NoneType=torch.save(1, \"" + trace.string() + "\"))");
    expect_error(ErrorKind::kInput, {"refused", "torch.save"}, [&] { load(path, false); });
    CHECK_FALSE(fs::exists(trace));
  }
}

TEST_CASE("pickles of an archive may not name foreign objects", "[archive_inspection]") {
  testing::TemporaryFolder folder;
  plain_network().save((folder / "net.pt").string());
  testing::Records records = testing::read_archive(folder / "net.pt");
  const std::string pickle = records.at("data.pkl");
  records["data.pkl"] =
      "\x80\x02"
      "cos\nsystem\nU\x04true\x85R.";
  write_archive(folder / "net.pt", records);
  expect_error(ErrorKind::kInput, {"net.pt", "data.pkl", "os.system"},
               [&] { load(folder / "net.pt", false); });
  records["data.pkl"] =
      "\x80\x02"
      "c__torch__.torch.classes.a\nB\n)\x81.";
  write_archive(folder / "net.pt", records);
  expect_error(ErrorKind::kInput, {"the C++ class"}, [&] { load(folder / "net.pt", false); });
}

TEST_CASE("what is no TorchScript archive is told apart", "[archive_inspection]") {
  testing::TemporaryFolder folder;
  const auto refuse = [&](const fs::path& path, const std::string& message) {
    for (const bool trust : {false, true})
      expect_error(ErrorKind::kInput, {path.filename().string(), message},
                   [&] { load(path, trust); });
  };
  plain_network().save((folder / "good.pt").string());
  const std::string good = read_bytes(folder / "good.pt");
  refuse(folder / "missing.pt", "no such file");
  refuse(write_bytes(folder / "empty.pt", ""), "empty file");
  refuse(write_bytes(folder / "text.pt", "<html>404</html>\n"), "text file");
  refuse(write_bytes(folder / "cut.pt", good.substr(0, good.size() / 2)), "cut short");
  refuse(write_bytes(folder / "old.pt", "\x80\x02\x8a\x0al\xfc\x9c"), "bare pickle");
  refuse(write_bytes(folder / "w.pt", std::string("\x02\0\0\0\0\0\0\0{}", 10)), "safetensors");
  refuse(write_archive(folder / "dict.pt", {{"data.pkl", "\x80\x02}."}}), "torch.save");
  refuse(write_archive(folder / "zip.pt", {{"readme", "hello"}}), "without a network");
  std::string flipped = good;
  flipped[flipped.find(std::string("\0\0\x80\x3f\0\0\x80\x3f", 8))] ^= 1;
  refuse(write_bytes(folder / "flipped.pt", flipped), "its checksum");
}

TEST_CASE("damaged archives never do worse than an Error", "[archive_inspection]") {
  testing::TemporaryFolder folder;
  plain_network().save((folder / "good.pt").string());
  const std::string good = read_bytes(folder / "good.pt");
  std::mt19937 random(5);
  const auto attempt = [&](const std::string& bytes) {
    try {
      load(write_bytes(folder / "bad.pt", bytes), false);
      return true;
    } catch (const Error& error) {
      REQUIRE(error.kind() == ErrorKind::kInput);
      return false;
    }
  };
  for (std::size_t size = 0; size < good.size(); size += 97)
    CHECK_FALSE(attempt(good.substr(0, size)));
  for (int i = 0; i < 200; ++i) {
    std::string bytes = good;
    bytes[random() % bytes.size()] ^= static_cast<char>(1u << (random() % 8));
    attempt(bytes);
  }
}

TEST_CASE("archives that Python scripted and traced pass inspection",
          "[archive_inspection][python]") {
  if (!testing::python_has_torch()) {
    WARN("skipped: " << testing::python() << " cannot import torch");
    return;
  }
  testing::TemporaryFolder folder;
  const bool done = testing::run_python(folder.path(), R"(
import torch, torch.nn as nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3); self.bn = nn.BatchNorm2d(8); self.gn = nn.GroupNorm(2, 8)
        self.ln = nn.LayerNorm(8); self.attention = nn.MultiheadAttention(8, 2); self.gru = nn.GRU(8, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16); self.drop = nn.Dropout(0.1)
        self.embedding = nn.Embedding(5, 8)
    def forward(self, x):
        y = self.gn(self.bn(self.conv(x)))
        assert y.dim() == 4, "four"
        if y.size(0) == 0:
            raise RuntimeError("empty")
        y = self.drop(nn.functional.gelu(y.mean([2, 3])))
        z, _ = self.attention(y[None], y[None], y[None])
        z, _ = self.gru(self.encoder(z))
        with torch.no_grad():
            k = self.embedding(torch.zeros([1], dtype=torch.long, device=x.device))
        with torch.autograd.profiler.record_function("mark"):
            z = z + k
        sizes = [int(v) for v in y.shape]
        print(sizes)
        return z + float(len(sizes))
torch.jit.script(Net()).save("scripted.pt")
net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 2))
torch.jit.trace(net, torch.rand(2, 3, 8, 8)).save("traced.pt")
class Bad(nn.Module):
    def forward(self, x):
        future = torch.jit.fork(torch.sin, x)
        return torch.jit.wait(future)
torch.jit.script(Bad()).save("forks.pt")
)");
  INFO(testing::python_log(folder.path()));
  REQUIRE(done);
  ScriptModel scripted = load(folder / "scripted.pt", false);
  CHECK(scripted.forward(torch::rand({2, 3, 8, 8})).sizes() == at::IntArrayRef{1, 2, 8});
  CHECK(load(folder / "traced.pt", false).forward(torch::rand({2, 3, 8, 8})).size(1) == 2);
  expect_error(ErrorKind::kInput, {"forks.pt", "fork"}, [&] { load(folder / "forks.pt", false); });
}
