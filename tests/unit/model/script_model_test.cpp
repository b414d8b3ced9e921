#include "weightsmith/model/script_model.h"

#include <sys/resource.h>
#include <torch/script.h>

#include <csignal>

#include "support/expect_error.h"
#include "support/files.h"
#include "support/temporary_folder.h"
#include "weightsmith/config/fields.h"
#include "weightsmith/tensor/safetensors.h"

using namespace weightsmith;
using nlohmann::json;
using testing::expect_error;
using testing::TemporaryFolder;

namespace {

/// x (B, 3) → linear → batch norm → (B, 2); `tied` is `weight` under another name.
torch::jit::Module small_network() {
  at::manual_seed(3);
  torch::jit::Module norm("Norm");
  norm.register_attribute("training", c10::BoolType::get(), true);
  norm.register_parameter("weight", torch::rand({2}), false);
  norm.register_buffer("running_mean", torch::randn({2}));
  norm.register_buffer("running_var", torch::rand({2}) + 0.5);
  norm.register_buffer("num_batches_tracked", torch::tensor(7));
  norm.define(R"(
    def forward(self, x):
        return torch.batch_norm(x, self.weight, None, self.running_mean, self.running_var,
                                self.training, 0.1, 1e-5, False)
  )");
  torch::jit::Module net("Net");
  net.register_attribute("training", c10::BoolType::get(), true);
  const at::Tensor weight = torch::randn({2, 3});
  net.register_parameter("weight", weight, false);
  net.register_parameter("tied", net.attr("weight").toTensor(), false);
  net.register_module("norm", norm);
  net.define(R"(
    def forward(self, x):
        print("said by the network")
        return self.norm.forward(torch.linear(x, self.weight)) + x.sum() * 0 + self.tied.sum() * 0
  )");
  return net;
}

ScriptModel small_model() {
  ScriptModel model(small_network(), "small.pt", {{"note", "kept"}});
  model.train(false);
  return model;
}

ModelRef script_ref(const std::filesystem::path& path) {
  ModelRef ref;
  ref.script = path;
  return ref;
}

ModelRef parse_ref(const json& value, const std::filesystem::path& base = "/base") {
  ModelRef ref;
  from_config(ConfigNode{value, "models[0]", base}, ref);
  return ref;
}

}  // namespace

TEST_CASE("model references are read from short and long forms", "[model_ref]") {
  CHECK(parse_ref("a/net.pt").script == "/base/a/net.pt");
  CHECK(parse_ref("a/net.pt").name == "net");
  CHECK(parse_ref("a/model.pt").name == "a");
  CHECK(parse_ref({{"script", "r.pt"}, {"weights", "/w/b.safetensors"}}).name == "b");
  CHECK(parse_ref({{"name", "x"}, {"script", "r.pt"}}).name == "x");
  const ModelRef ref = parse_ref({{"builtin", "resnet20"},
                                  {"options", {{"width", 4}}},
                                  {"preprocess", {{"resize", 32}, {"std", {0.5}}}}});
  CHECK(ref.name == "resnet20");
  CHECK(ref.options == json{{"width", 4}});
  REQUIRE(ref.preprocess);
  CHECK(ref.preprocess->resize == 32);
  CHECK(ref.preprocess->mean.empty());

  for (const json& value : std::vector<json>{
           "a.pt",
           {{"builtin", "mlp"}},
           {{"script", "a.pt"}, {"weights", "b"}, {"preprocess", {{"mean", {0.1, 0.2}}}}}}) {
    const json written = to_config(parse_ref(value));
    CHECK(to_config(parse_ref(written)) == written);
  }
  CHECK(to_config(parse_ref("a.pt")) == json{{"name", "a"}, {"script", "/base/a.pt"}});
}

TEST_CASE("wrong model references are refused with their key", "[model_ref]") {
  const auto refuse = [](const json& value, const std::string& message) {
    INFO(value.dump());
    expect_error(ErrorKind::kConfig, {"models[0]", message}, [&] { parse_ref(value); });
  };
  refuse(json::object(), "names no model");
  refuse("", "names no model");
  refuse(3, "expected a path");
  refuse({{"script", "a"}, {"builtin", "mlp"}}, "both");
  refuse({{"script", "a"}, {"options", {{"x", 1}}}}, "without \"builtin\"");
  refuse({{"builtin", "mlp"}, {"options", {1}}}, "not an object");
  refuse({{"scirpt", "a"}}, "did you mean \"script\"?");
  refuse({{"script", "a"}, {"preprocess", {{"resize", 0}}}}, "\"resize\" is 0");
  refuse({{"script", "a"}, {"preprocess", {{"std", {0.0}}}}}, "positive");
  refuse({{"script", "a"}, {"preprocess", {{"mean", {1, 2}}, {"std", {1, 2, 3}}}}}, "2 values");
}

TEST_CASE("a saved model is the same network with its metadata", "[script_model]") {
  TemporaryFolder folder;
  ScriptModel model = small_model();
  model.save(folder / "net.pt");
  ScriptModel loaded = ScriptModel::load(script_ref(folder / "net.pt"), {});
  CHECK(loaded.metadata() == json{{"note", "kept"}});
  CHECK(loaded.name() == "net");
  CHECK_FALSE(loaded.module().attr("training").toBool());
  const at::Tensor x = torch::randn({5, 3});
  CHECK(at::equal(loaded.forward(x), model.forward(x)));
  CHECK(state_differences(loaded.state_dict(), model.state_dict()).empty());
  for (const auto& [name, tensor] : model.state_dict())
    CHECK(at::equal(loaded.state_dict().at(name), tensor));
  CHECK(loaded.parameters().size() == 3);
  CHECK(loaded.buffers().size() == 3);

  SECTION("an archive without metadata has an empty object") {
    model.module().save(folder / "plain.pt");
    CHECK(ScriptModel::load(script_ref(folder / "plain.pt"), {}).metadata() == json::object());
  }
  SECTION("metadata that are not ours to read") {
    model.module().save(folder / "odd.pt", {{"weightsmith.json", "[1"}});
    expect_error(ErrorKind::kInput, {"odd.pt", "weightsmith.json"},
                 [&] { ScriptModel::load(script_ref(folder / "odd.pt"), {}); });
  }
}

TEST_CASE("a clone shares nothing, keeps ties and has leaf parameters", "[script_model]") {
  ScriptModel model = small_model();
  for (auto& [name, tensor] : model.parameters())
    if (name == "weight") tensor.set_requires_grad(true);
  ScriptModel copy = model.clone();
  const TensorMap a = model.state_dict();
  const TensorMap b = copy.state_dict();
  REQUIRE(state_differences(a, b).empty());
  for (const auto& [name, tensor] : b) {
    INFO(name);
    CHECK(at::equal(tensor, a.at(name)));
    CHECK(tensor.data_ptr() != a.at(name).data_ptr());
    CHECK(tensor.is_leaf());
    CHECK(tensor.requires_grad() == a.at(name).requires_grad());
  }
  CHECK(b.at("weight").requires_grad());
  CHECK(b.at("tied").is_same(b.at("weight")));
  CHECK(copy.metadata() == model.metadata());

  const at::Tensor x = torch::randn({4, 3});
  const at::Tensor before = model.forward(x).detach().clone();
  copy.forward(x).sum().backward();
  CHECK(b.at("weight").grad().defined());
  CHECK_FALSE(a.at("weight").grad().defined());
  {
    const at::NoGradGuard no_grad;
    b.at("weight").zero_();
  }
  CHECK(at::equal(model.forward(x), before));
}

TEST_CASE("a clone keeps the mode", "[script_model]") {
  ScriptModel model = small_model();
  model.train(true);
  CHECK(model.clone().module().attr("training").toBool());
  CHECK(model.clone().module().attr("norm").toModule().attr("training").toBool());
}

TEST_CASE("weights are copied in when every name and shape agrees", "[script_model]") {
  ScriptModel model = small_model();
  TensorMap state;
  for (const auto& [name, tensor] : model.state_dict())
    state[name] = torch::rand_like(tensor.to(at::kDouble));
  state["tied"] = state["weight"];
  const at::Tensor own_weight = model.parameters().at("weight");

  SECTION("values arrive in the network's own tensors and types") {
    model.load_state(state, "w.safetensors");
    CHECK(own_weight.is_same(model.parameters().at("weight")));
    CHECK(own_weight.scalar_type() == at::kFloat);
    CHECK(at::equal(own_weight, state["weight"].to(at::kFloat)));
  }
  SECTION("the batch counter and shared tensors may be missing") {
    state.erase("norm.num_batches_tracked");
    state.erase("weight");
    model.load_state(state, "w.safetensors");
    CHECK(model.buffers().at("norm.num_batches_tracked").item<std::int64_t>() == 7);
    CHECK(at::equal(own_weight, state["tied"].to(at::kFloat)));
  }
  SECTION("differences are listed and nothing is copied") {
    const at::Tensor before = own_weight.clone();
    state.erase("norm.weight");
    state["norm.running_mean"] = torch::ones({3});
    state["extra"] = torch::ones({1});
    expect_error(ErrorKind::kInput,
                 {"w.safetensors", "small.pt", "norm.weight: missing", "extra: surplus",
                  "norm.running_mean: shape [3], [2] wanted"},
                 [&] { model.load_state(state, "w.safetensors"); });
    CHECK(at::equal(own_weight, before));
  }
  SECTION("a long list is cut") {
    for (int i = 0; i < 30; ++i) state["extra" + std::to_string(i)] = torch::ones({1});
    expect_error(ErrorKind::kInput, {"and 20 more"}, [&] { model.load_state(state, "w"); });
  }
  SECTION("one tensor cannot take two values") {
    state["tied"] = state["weight"] + 1;
    expect_error(ErrorKind::kInput, {"tied and weight differ"},
                 [&] { model.load_state(state, "w"); });
  }
}

TEST_CASE("load takes weights and a name from the reference", "[script_model]") {
  TemporaryFolder folder;
  ScriptModel model = small_model();
  model.save(folder / "net.pt");
  TensorMap state;
  for (const auto& [name, tensor] : model.state_dict()) state[name] = torch::ones_like(tensor);
  write_safetensors(folder / "w.safetensors", state);
  ModelRef ref = script_ref(folder / "net.pt");
  ref.weights = folder / "w.safetensors";
  ref.name = "ones";
  ScriptModel loaded = ScriptModel::load(ref, {});
  CHECK(loaded.name() == "ones");
  CHECK(at::equal(loaded.state_dict().at("weight"), torch::ones({2, 3})));

  SECTION("weights of another TorchScript archive") {
    loaded.save(folder / "ones.pt");
    ref.weights = folder / "ones.pt";
    CHECK(at::equal(ScriptModel::load(ref, {}).state_dict().at("weight"), torch::ones({2, 3})));
  }
  SECTION("a builtin, from a seed") {
    ModelRef builtin;
    builtin.builtin = "mlp";
    LoadOptions options;
    options.seed = 5;
    ScriptModel a = ScriptModel::load(builtin, options);
    CHECK(a.metadata().at("builtin") == "mlp");
    CHECK(a.metadata().at("options").is_object());
    const ScriptModel b = ScriptModel::load(builtin, options);
    for (const auto& [name, tensor] : a.state_dict())
      CHECK(at::equal(b.state_dict().at(name), tensor));
    a.save(folder / "mlp.pt");
    CHECK(ScriptModel::load(script_ref(folder / "mlp.pt"), {}).metadata() == a.metadata());
  }
}

TEST_CASE("preprocessing is part of the model's function", "[script_model]") {
  TemporaryFolder folder;
  torch::jit::Module net("Identity");
  net.register_attribute("training", c10::BoolType::get(), true);
  net.define("def forward(self, x):\n    return x * 1\n");
  net.save(folder / "net.pt");
  ModelRef ref = script_ref(folder / "net.pt");
  ref.preprocess = Preprocess{4, {0.5, 0.25, 0.0}, {2.0}};
  ScriptModel model = ScriptModel::load(ref, {});
  const at::Tensor x = torch::rand({2, 3, 4, 4});
  at::Tensor wanted = x.clone();
  wanted.select(1, 0).sub_(0.5);
  wanted.select(1, 1).sub_(0.25);
  CHECK(at::allclose(model.forward(x), wanted / 2));
  CHECK(model.forward(torch::rand({2, 3, 9, 7})).sizes() == at::IntArrayRef{2, 3, 4, 4});
  CHECK(model.clone().preprocess()->resize == 4);
  expect_error(ErrorKind::kInput, {"net.pt", "preprocess", "[2, 1, 4, 4]"}, [&] {
    model.forward(torch::rand({2, 1, 4, 4}));
  });
  expect_error(ErrorKind::kInput, {"preprocess", "[2, 3]"}, [&] {
    model.forward(torch::rand({2, 3}));
  });
}

TEST_CASE("what the network refuses is one line with its reason", "[script_model]") {
  ScriptModel model = small_model();
  expect_error(ErrorKind::kInput, {"small.pt", "[5, 4]", "mat1 and mat2"}, [&] {
    model.forward(torch::randn({5, 4}));
  });
  torch::jit::Module net("Net");
  net.define(R"(
    def forward(self, x):
        assert x.dim() != 2, "no matrices please"
        return [x, x]
  )");
  ScriptModel odd(net, "odd.pt");
  expect_error(ErrorKind::kInput, {"odd.pt", "[1, 1]", "no matrices please"}, [&] {
    odd.forward(torch::ones({1, 1}));
  });
  expect_error(ErrorKind::kInput, {"odd.pt", "[1]", "one tensor wanted"},
               [&] { odd.forward(torch::ones({1})); });
  expect_error(ErrorKind::kInput, {"no method \"forward\""},
               [&] { ScriptModel(torch::jit::Module("Empty"), "empty.pt"); });
}

TEST_CASE("a model that cannot be written is an output error", "[script_model]") {
  TemporaryFolder folder;
  const ScriptModel model = small_model();
  expect_error(ErrorKind::kOutput, {"nowhere"}, [&] { model.save(folder / "nowhere" / "x.pt"); });
  SECTION("a full disk, played by a limit on the size of files") {
    rlimit before{};
    getrlimit(RLIMIT_FSIZE, &before);
    const auto handler = std::signal(SIGXFSZ, SIG_IGN);
    const rlimit small{512, before.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
    expect_error(ErrorKind::kOutput, {"x.pt", "cannot write"},
                 [&] { model.save(folder / "x.pt"); });
    setrlimit(RLIMIT_FSIZE, &before);
    std::signal(SIGXFSZ, handler);
    CHECK(std::filesystem::is_empty(folder.path()));
  }
}
