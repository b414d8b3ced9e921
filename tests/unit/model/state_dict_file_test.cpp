#include "weightsmith/model/state_dict_file.h"

#include <torch/script.h>

#include <random>

#include "support/archives.h"
#include "support/expect_error.h"
#include "support/files.h"
#include "support/pickles.h"
#include "support/python.h"
#include "support/temporary_folder.h"
#include "weightsmith/model/pickle_reader.h"
#include "weightsmith/tensor/safetensors.h"

using namespace weightsmith;
using namespace weightsmith::testing::pickle;
using testing::expect_error;
using testing::read_bytes;
using testing::TemporaryFolder;
using testing::write_archive;
using testing::write_bytes;
using Records = testing::Records;

namespace fs = std::filesystem;

namespace {

std::string bytes_of(const at::Tensor& tensor) {
  return {static_cast<const char*>(tensor.data_ptr()), tensor.nbytes()};
}

const at::Tensor kSix = torch::arange(6, at::kFloat);

/// A float storage of six under the key 0, viewed as (2, 3).
std::string six(const std::string& storage_type = "FloatStorage", std::int64_t count = 6) {
  return tensor(storage(storage_type, "0", count), 0, {2, 3}, {3, 1});
}

fs::path python_file(const fs::path& path, const std::string& value, Records records = {}) {
  records.emplace("data/0", bytes_of(kSix));
  records.emplace("data.pkl", document(value));
  return write_archive(path, records);
}

}  // namespace

TEST_CASE("weights come from safetensors and TorchScript alike", "[state_dict_file]") {
  TemporaryFolder folder;
  const TensorMap state{{"a.weight", torch::rand({2, 3})}, {"b", torch::rand({4})}};
  write_safetensors(folder / "w.bin", state);
  CHECK(at::equal(read_state_dict(folder / "w.bin").at("a.weight"), state.at("a.weight")));

  torch::jit::Module net("Net");
  net.register_parameter("b", state.at("b"), false);
  net.register_buffer("count", torch::tensor(3));
  net.define("def forward(self, x):\n    return x * self.b\n");
  net.save((folder / "net.pt").string());
  const TensorMap read = read_state_dict(folder / "net.pt");
  CHECK(read.size() == 2);
  CHECK(at::equal(read.at("b"), state.at("b")));
  CHECK(read.at("count").item<int>() == 3);
}

TEST_CASE("torch.save's files are read by their description", "[state_dict_file]") {
  TemporaryFolder folder;
  const auto read = [&](const std::string& value, Records records = {}) {
    return read_state_dict(python_file(folder / "w.pt", value, std::move(records)));
  };
  const at::Tensor wanted = kSix.view({2, 3});

  CHECK(at::equal(read(dict({{"w", six()}})).at("w"), wanted));

  SECTION("views with offset and strides; one storage for several tensors") {
    const std::string shared = storage("FloatStorage", "0", 6);
    const TensorMap state = read(dict({{"t", tensor(shared, 0, {3, 2}, {1, 3})},
                                       {"tail", tensor(shared, 4, {2}, {1})},
                                       {"wide", tensor(shared, 5, {4}, {0})},
                                       {"scalar", tensor(shared, 3, {}, {})},
                                       {"empty", tensor(shared, 6, {0, 2}, {2, 1})}}));
    CHECK(at::equal(state.at("t"), wanted.t()));
    CHECK(at::equal(state.at("tail"), kSix.slice(0, 4)));
    CHECK(at::equal(state.at("wide"), torch::full({4}, 5.0f)));
    CHECK(state.at("scalar").item<float>() == 3);
    CHECK(state.at("empty").sizes() == at::IntArrayRef{0, 2});
    CHECK(state.at("t").storage().is_alias_of(state.at("tail").storage()));
  }
  SECTION("every data type") {
    const std::vector<std::pair<const char*, at::ScalarType>> types{
        {"DoubleStorage", at::kDouble}, {"FloatStorage", at::kFloat},
        {"HalfStorage", at::kHalf},     {"BFloat16Storage", at::kBFloat16},
        {"LongStorage", at::kLong},     {"IntStorage", at::kInt},
        {"ShortStorage", at::kShort},   {"CharStorage", at::kChar},
        {"ByteStorage", at::kByte},     {"BoolStorage", at::kBool}};
    for (const auto& [name, type] : types) {
      const at::Tensor typed = kSix.to(type);
      const at::Tensor found =
          read(dict({{"w", six(name)}}), {{"data/0", bytes_of(typed)}}).at("w");
      CHECK(found.scalar_type() == type);
      CHECK(at::equal(found, typed.view({2, 3})));
    }
  }
  SECTION("untyped storages, whose tensors name their type") {
    const std::string untyped = tuple({text("storage"), global("torch.storage", "UntypedStorage"),
                                       text("0"), text("cpu"), integer(24)}) +
                                "Q";
    const std::string value = call(global("torch._utils", "_rebuild_tensor_v3"),
                                   {untyped, integer(1), integers({5}), integers({1}), "\x89", "}",
                                    global("torch", "float32"), "}"});
    CHECK(at::equal(read(dict({{"w", value}})).at("w"), kSix.slice(0, 1)));
  }
  SECTION("parameters, tensor subclasses and ordered dicts with metadata") {
    const std::string parameter =
        call(global("torch._utils", "_rebuild_parameter"), {six(), "\x88", "}"});
    const std::string subclass =
        call(global("torch._tensor", "_rebuild_from_type_v2"),
             {global("torch._utils", "_rebuild_parameter"),
              global("torch.nn.parameter", "Parameter"), tuple({six(), "\x88", "}"}), "}"});
    const std::string ordered = global("collections", "OrderedDict") + ")R(" + text("p") +
                                parameter + text("s") + subclass + "u}" + text("_metadata") + "}sb";
    const TensorMap state = read(ordered);
    CHECK(state.size() == 2);
    CHECK(at::equal(state.at("p"), wanted));
    CHECK(at::equal(state.at("s"), wanted));
  }
  SECTION("checkpoints: the nested weights, not the optimiser's; prefixes are stripped") {
    const std::string optimizer = dict({{"state", dict({{"m", six()}})}});
    for (const char* key : {"state_dict", "model_state_dict", "model", "net"}) {
      const TensorMap state = read(dict(
          {{"epoch", integer(3)},
           {"optimizer", optimizer},
           {"loss", six()},
           {key, dict({{"module._orig_mod.w", six()}, {"module._orig_mod.module.v", six()}})}}));
      CHECK(state.size() == 2);
      CHECK(state.count("w") == 1);
      CHECK(state.count("module.v") == 1);
    }
    CHECK(read(dict({{"model", dict({{"state_dict", dict({{"w", six()}})}})}})).count("w") == 1);
    CHECK(read(dict({{"module.w", six()}, {"b", six()}})).count("module.w") == 1);
  }
  SECTION("the byte order of torch 2") {
    CHECK(read(dict({{"w", six()}}), {{"byteorder", "little"}}).size() == 1);
    expect_error(ErrorKind::kInput, {"w.pt", "big-endian"}, [&] {
      read(dict({{"w", six()}}), {{"byteorder", "big"}});
    });
  }
}

TEST_CASE("pickles that would do anything else are refused by name", "[state_dict_file]") {
  TemporaryFolder folder;
  const fs::path trace = folder / "trace";
  const auto refuse = [&](const std::string& value, const std::vector<std::string>& parts) {
    const auto path = python_file(folder / "w.pt", value);
    expect_error(ErrorKind::kInput, parts, [&] { read_state_dict(path); });
  };
  refuse(call(global("os", "system"), {text("touch " + trace.string())}),
         {"w.pt", "refused", "os.system"});
  refuse(call(global("builtins", "eval"), {text("1")}), {"builtins.eval"});
  refuse(dict({{"w", six()}, {"x", global("numpy.core.multiarray", "scalar")}}),
         {"numpy.core.multiarray.scalar"});
  refuse("\x8c\x05posix\x8c\x06system\x93", {"posix.system"});
  refuse(call(global("torch._utils", "_rebuild_device_tensor"), {}), {"refused"});
  CHECK_FALSE(fs::exists(trace));
}

TEST_CASE("tensors that do not fit their storage are refused", "[state_dict_file]") {
  TemporaryFolder folder;
  const auto refuse = [&](const std::string& value, const std::string& message,
                          Records records = {}) {
    const auto path = python_file(folder / "w.pt", dict({{"w", value}}), std::move(records));
    INFO(message);
    expect_error(ErrorKind::kInput, {"w.pt", message}, [&] { read_state_dict(path); });
  };
  const std::string good = storage("FloatStorage", "0", 6);
  constexpr std::int64_t kHuge = std::int64_t{1} << 62;
  refuse(tensor(good, 0, {7}, {1}), "leaves its storage");
  refuse(tensor(good, 1, {2, 3}, {3, 1}), "leaves its storage");
  refuse(tensor(good, 0, {2, 3}, {4, 1}), "leaves its storage");
  refuse(tensor(good, 6, {}, {}), "leaves its storage");
  refuse(tensor(good, -1, {2}, {1}), "do not match");
  refuse(tensor(good, 0, {2}, {-1}), "negative");
  refuse(tensor(good, 0, {-2}, {1}), "negative");
  refuse(tensor(good, 0, {2, 3}, {1}), "do not match");
  refuse(tensor(good, 0, {kHuge, kHuge}, {0, 0}), "too large");
  refuse(tensor(good, 0, {3, 3}, {kHuge, kHuge}), "too large");
  refuse(tensor(good, kHuge, {3}, {kHuge}), "leaves its storage");
  refuse(tensor(good, 0, std::vector<std::int64_t>(65, 1), std::vector<std::int64_t>(65, 1)),
         "too many dimensions");
  refuse(tensor(storage("FloatStorage", "0", 7), 0, {7}, {1}), "24 bytes, 28 wanted");
  refuse(tensor(storage("FloatStorage", "0", kHuge), 0, {7}, {1}), "too large");
  refuse(tensor(storage("FloatStorage", "9", 6), 0, {2}, {1}), "are missing");
  refuse(tensor(storage("FloatStorage", "../0", 6), 0, {2}, {1}), "are missing");
  refuse(tensor(storage("ComplexFloatStorage", "0", 3), 0, {3}, {1}), "ComplexFloatStorage");
  refuse(six("BoolStorage"), "neither 0 nor 1", {{"data/0", std::string("\1\0\2\0\1\0", 6)}});
}

TEST_CASE("files without weights say so", "[state_dict_file]") {
  TemporaryFolder folder;
  const auto refuse = [&](const fs::path& path, const std::string& message) {
    expect_error(ErrorKind::kInput, {path.filename().string(), message},
                 [&] { read_state_dict(path); });
  };
  refuse(folder / "none.pt", "no such file");
  refuse(write_bytes(folder / "text.txt", "hello"), "a text file");
  refuse(write_bytes(folder / "bad.safetensors", "hello"), "not a safetensors file");
  refuse(write_bytes(folder / "old.pt", "\x80\x02\x8a\x0al\xfc\x9c"), "before torch 1.6");
  refuse(python_file(folder / "a.pt", dict({{"epoch", integer(1)}})), "no dict of tensors");
  refuse(python_file(folder / "b.pt", six()), "no dict of tensors");
  refuse(python_file(folder / "c.pt", dict({{"w", six()}, {"epoch", integer(1)}})),
         "\"epoch\" of its state dict is not a tensor");
  refuse(python_file(folder / "d.pt", "}(" + integer(1) + six() + "u"), "not a string");
  // A dict that holds itself.
  refuse(python_file(folder / "e.pt", "}q\x01(" + text("model") + "h\x01u"), "no dict of tensors");
}

TEST_CASE("malformed pickles are errors", "[pickle_reader]") {
  const std::vector<std::pair<std::string, std::string>> cases{
      {"", "cut short"},
      {"\x80", "cut short"},
      {"\x80\x09.", "protocol 9"},
      {".", "stack"},
      {"R.", "stack"},
      {"t.", "not opened"},
      {"(.", "stack"},
      {"N(s.", "stack"},
      {"h\x01.", "not there"},
      {"Na.", "stack"},
      {"NNa.", "another kind"},
      {"](Nu.", "without a value"},
      {"}(Nu.", "without a value"},
      {"N)R.", "not a function"},
      {"NQ.", "unknown way"},
      {"X\xff\xff\xff\xffzz", "cut short"},
      {"cos", "cut short"},
      {"\xfe.", "unknown opcode 0xfe"},
      {"S'x'\n.", "unknown opcode 0x53"},
  };
  for (const auto& [bytes, message] : cases) {
    INFO(bytes << " / " << message);
    expect_error(ErrorKind::kInput, {"f.pt", message},
                 [&, text = bytes] { read_pickle(text, "f.pt"); });
  }
  SECTION("depth costs no stack of ours") {
    std::string bytes;
    for (int i = 0; i < 1'000'000; ++i) bytes += "]";
    bytes += std::string(999'999, 'a') + ".";
    CHECK(read_pickle(bytes, "f.pt").root().items.size() == 1);
  }
  SECTION("endless values end") {
    expect_error(ErrorKind::kInput, {"4 million"},
                 [] { read_pickle(std::string(5'000'000, 'N'), "f.pt"); });
  }
}

TEST_CASE("damaged torch.save files never do worse than an Error", "[state_dict_file]") {
  TemporaryFolder folder;
  const std::string value = dict(
      {{"module.a", six()}, {"module.b", tensor(storage("FloatStorage", "0", 6), 2, {2}, {2})}});
  const std::string pickle = document(value);
  std::mt19937 random(11);
  int accepted = 0;
  const auto attempt = [&](const std::string& bytes) {
    try {
      const auto path =
          write_archive(folder / "w.pt", {{"data/0", bytes_of(kSix)}, {"data.pkl", bytes}});
      for (const auto& [name, tensor] : read_state_dict(path)) tensor.sum();
      ++accepted;
    } catch (const Error& error) {
      REQUIRE(error.kind() == ErrorKind::kInput);
    }
  };
  for (std::size_t size = 0; size < pickle.size(); ++size) attempt(pickle.substr(0, size));
  CHECK(accepted == 0);
  for (int i = 0; i < 3000; ++i) {
    std::string bytes = pickle;
    for (unsigned flips = 1 + random() % 3; flips > 0; --flips)
      bytes[random() % bytes.size()] = static_cast<char>(random());
    attempt(bytes);
  }
  const std::string whole = read_bytes(python_file(folder / "good.pt", value));
  for (int i = 0; i < 500; ++i) {
    std::string bytes = whole;
    bytes[random() % bytes.size()] ^= static_cast<char>(1u << (random() % 8));
    try {
      read_state_dict(write_bytes(folder / "flip.pt", bytes));
    } catch (const Error& error) {
      REQUIRE(error.kind() == ErrorKind::kInput);
    }
  }
}

TEST_CASE("files that Python wrote hold the same values", "[state_dict_file][python]") {
  if (!testing::python_has_torch()) {
    WARN("skipped: " << testing::python() << " cannot import torch");
    return;
  }
  TemporaryFolder folder;
  const bool done = testing::run_python(folder.path(), R"(
import collections, torch, torch.nn as nn
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
net(torch.rand(5, 3, 4, 4)).sum().backward()
optimizer = torch.optim.Adam(net.parameters()); optimizer.step()
schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
state = net.state_dict()
torch.save(state, "plain.pt")
torch.save(state, "protocol4.pt", pickle_protocol=4)
torch.save({"epoch": 7, "model": nn.DataParallel(net).state_dict(), "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(), "device": torch.device("cpu"), "dtype": torch.float16,
            "size": torch.Size([2, 3])}, "checkpoint.pt")
torch.save({name: p for name, p in net.named_parameters()}, "parameters.pt")
torch.save(state, "legacy.pt", _use_new_zipfile_serialization=False)
torch.save(net, "module.pt")
base = torch.arange(24, dtype=torch.float32)
odd = collections.OrderedDict(view=base.view(4, 6).t()[1:5:2], tail=base[20:], fp16=base.half(),
    bf16=base.bfloat16() / 3, flags=base > 5, ints=base.int(), scalar=torch.tensor(2.5),
    expanded=torch.ones(1).expand(3, 2), empty=torch.empty(0, 3))
torch.save(odd, "odd.pt")
class Holder(nn.Module):
    def forward(self, x):
        return x
for name, tensors in (("plain", state), ("odd", odd)):
    holder = Holder()
    for key, value in tensors.items():
        holder.register_buffer(key.replace(".", "_"), value.contiguous().clone())
    torch.jit.script(holder).save(name + ".script.pt")
)");
  INFO(testing::python_log(folder.path()));
  REQUIRE(done);
  // What LibTorch reads from a TorchScript archive of the same tensors is the truth.
  const auto same = [&](const TensorMap& found, const std::string& truth) {
    std::map<std::string, at::Tensor> wanted;
    for (const auto& item : torch::jit::load((folder / truth).string()).named_buffers())
      wanted[item.name] = item.value;
    CHECK(found.size() == wanted.size());
    for (const auto& [name, tensor] : found) {
      std::string key = name;
      std::replace(key.begin(), key.end(), '.', '_');
      INFO(name);
      REQUIRE(wanted.count(key) == 1);
      CHECK(tensor.scalar_type() == wanted[key].scalar_type());
      CHECK(at::equal(tensor, wanted[key]));
    }
  };
  same(read_state_dict(folder / "plain.pt"), "plain.script.pt");
  same(read_state_dict(folder / "protocol4.pt"), "plain.script.pt");
  same(read_state_dict(folder / "checkpoint.pt"), "plain.script.pt");
  same(read_state_dict(folder / "odd.pt"), "odd.script.pt");
  CHECK(read_state_dict(folder / "parameters.pt").size() == 6);
  CHECK(read_state_dict(folder / "parameters.pt").count("0.weight") == 1);
  expect_error(ErrorKind::kInput, {"legacy.pt", "before torch 1.6", "save it again"},
               [&] { read_state_dict(folder / "legacy.pt"); });
  expect_error(ErrorKind::kInput, {"module.pt", "torch.nn.modules.container.Sequential"},
               [&] { read_state_dict(folder / "module.pt"); });
}
