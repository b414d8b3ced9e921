#include "weightsmith/model/builtin.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "support/builtin_cases.h"
#include "support/expect_error.h"
#include "support/python.h"
#include "support/temporary_folder.h"
#include "weightsmith/core/error.h"

using namespace weightsmith;
using nlohmann::json;

namespace {

std::int64_t parameter_count(const std::string& name, const json& options) {
  std::int64_t count = 0;
  for (const auto& p : build_builtin(name, options, 0).parameters()) count += p.numel();
  return count;
}

}  // namespace

TEST_CASE("parameter counts are those of the papers", "[builtin]") {
  // Known totals of the usual implementations (with the projection shortcuts of option B).
  CHECK(parameter_count("resnet20", {}) == 272474);
  CHECK(parameter_count("resnet20", {{"depth", 56}}) == 855770);
  CHECK(parameter_count("resnet20", {{"width", 4}, {"outputs", 512}}) == 4456768);
  // torchvision's vgg features (9,220,480 and 14,714,688) plus a linear layer of 512 to 10.
  CHECK(parameter_count("vgg11", {{"norm", "none"}}) == 9220480 + 5130);
  CHECK(parameter_count("vgg16", {{"norm", "none"}}) == 14714688 + 5130);
  // He et al.'s and Xie et al.'s networks of 1,000 classes, as torchvision counts them.
  const json large{{"stem", "imagenet"}, {"outputs", 1000}};
  CHECK(parameter_count("resnet18", large) == 11689512);
  CHECK(parameter_count("resnet34", large) == 21797672);
  CHECK(parameter_count("resnet50", large) == 25557032);
  CHECK(parameter_count("resnext50", large) == 25028904);
  // ViT-B/16 has twelve of these blocks.
  const json block{{"image", 224}, {"patch", 16}, {"dim", 768},     {"depth", 1},
                   {"heads", 12},  {"mlp", 3072}, {"outputs", 1000}};
  CHECK(parameter_count("vit", block) == 86567656 - 11 * 7087872);
  CHECK(parameter_count("mlp", {}) == 64 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10);
}

TEST_CASE("parameters carry torchvision's names", "[builtin]") {
  const TensorMap resnet = testing::state_of(build_builtin("resnet20", json::object(), 0));
  CHECK(resnet.at("layer2.0.downsample.0.weight").sizes() == at::IntArrayRef({32, 16, 1, 1}));
  CHECK(resnet.at("layer3.2.bn2.running_var").sizes() == at::IntArrayRef({64}));
  CHECK(resnet.at("layer1.0.bn1.num_batches_tracked").scalar_type() == at::kLong);
  CHECK(resnet.count("conv1.bias") == 0);
  CHECK(resnet.size() == 21 + 21 * 5 + 2);

  // vgg16_bn of torchvision ends with the convolution features.40.
  const TensorMap vgg = testing::state_of(build_builtin("vgg16", json::object(), 0));
  CHECK(vgg.count("features.0.weight") == 1);
  CHECK(vgg.at("features.1.running_mean").sizes() == at::IntArrayRef({64}));
  CHECK(vgg.at("features.40.weight").sizes() == at::IntArrayRef({512, 512, 3, 3}));
  CHECK(vgg.count("classifier.weight") == 1);
  // vgg11 without norms ends with features.18, and its convolutions have a bias.
  const TensorMap plain = testing::state_of(build_builtin("vgg11", {{"norm", "none"}}, 0));
  CHECK(plain.at("features.18.bias").sizes() == at::IntArrayRef({512}));
}

TEST_CASE("builtins give (B, outputs) in train and eval mode", "[builtin]") {
  at::manual_seed(0);
  for (const auto& c : testing::all_builtin_cases()) {
    INFO(c.describe());
    torch::jit::Module module = build_builtin(c.name, c.options, 1);
    CHECK_FALSE(module.is_training());
    const at::Tensor input = at::randn(c.input);
    const std::int64_t outputs = builtin_options(c.name, c.options).at("outputs");
    at::Tensor out = module.forward({input}).toTensor();
    CHECK(out.sizes() == at::IntArrayRef({3, outputs}));
    CHECK(at::isfinite(out).all().item<bool>());
    const at::Tensor again = module.forward({input}).toTensor();
    CHECK(at::equal(out, again));

    module.train();
    for (const auto& child : module.named_modules()) CHECK(child.value.is_training());
    out = module.forward({input}).toTensor();
    out.square().sum().backward();
    for (const auto& p : module.named_parameters()) {
      INFO(p.name);
      CHECK(p.value.is_leaf());
      CHECK(p.value.grad().defined());
    }
    for (const auto& b : module.named_buffers()) {
      INFO(b.name);
      if (b.name.ends_with("num_batches_tracked")) CHECK(b.value.item<std::int64_t>() == 1);
      if (b.name.ends_with("running_mean")) CHECK(b.value.abs().sum().item<double>() > 0);
    }
  }
}

TEST_CASE("train-mode batch norm normalises by the batch and tracks it", "[builtin]") {
  torch::jit::Module module = build_builtin("convnet", {{"width", 4}}, 1);
  module.train();
  const at::Tensor input = at::randn({8, 1, 6, 6});
  module.forward({input});
  const TensorMap state = testing::state_of(module);
  const at::Tensor features = at::conv2d(input, state.at("conv1.weight"), {}, 1, 1);
  CHECK(at::allclose(state.at("bn1.running_mean"), 0.1 * features.mean({0, 2, 3}), 1e-5, 1e-6));
  CHECK(at::allclose(state.at("bn1.running_var"), 0.9 + 0.1 * features.var({0, 2, 3}, true), 1e-5,
                     1e-6));
}

TEST_CASE("weights depend on the seed alone", "[builtin]") {
  const int threads = at::get_num_threads();
  const TensorMap a = testing::state_of(build_builtin("resnet20", json::object(), 5));
  at::manual_seed(99);
  at::set_num_threads(threads == 1 ? 2 : 1);
  const TensorMap b = testing::state_of(build_builtin("resnet20", json::object(), 5));
  at::set_num_threads(threads);
  const TensorMap other = testing::state_of(build_builtin("resnet20", json::object(), 6));
  for (const auto& [name, tensor] : a) {
    INFO(name);
    CHECK(at::equal(tensor, b.at(name)));
    if (tensor.dim() > 1) CHECK_FALSE(at::equal(tensor, other.at(name)));
  }
  CHECK_FALSE(at::equal(a.at("layer1.0.conv1.weight"), a.at("layer1.0.conv2.weight")));
}

TEST_CASE("convolutions start with fan-out deviation, linear layers uniform", "[builtin]") {
  const TensorMap state = testing::state_of(build_builtin("resnet20", json::object(), 0));
  const double deviation = state.at("layer3.1.conv1.weight").std().item<double>();
  CHECK(deviation == Approx(std::sqrt(2.0 / (64 * 9))).epsilon(0.02));
  CHECK(state.at("layer3.1.conv1.weight").mean().item<double>() == Approx(0).margin(1e-3));
  const double bound = 1 / std::sqrt(64.0);
  const double largest = state.at("fc.weight").abs().max().item<double>();
  CHECK(largest <= bound);
  CHECK(largest > 0.95 * bound);
}

TEST_CASE("a deep network without norms starts with finite, moderate outputs", "[builtin]") {
  at::NoGradGuard no_grad;
  at::manual_seed(0);
  torch::jit::Module module = build_builtin("resnet20", {{"depth", 56}, {"norm", "none"}}, 0);
  CHECK(module.forward({at::randn({4, 3, 16, 16})}).toTensor().abs().max().item<double>() < 50);
}

TEST_CASE("options are filled in and checked", "[builtin]") {
  using Catch::Contains;
  const json options = builtin_options("resnet20", {{"width", 4}});
  CHECK(options.at("width") == 4.0);
  CHECK(options.at("depth") == 20);
  CHECK(options.at("norm") == "batch");
  CHECK(builtin_options("resnet20", options) == options);
  CHECK(builtin_options("mlp", nullptr).at("hidden") == json({256, 256}));

  const auto refuse = [](const std::string& name, const json& o) {
    return testing::error_of(ErrorKind::kConfig, [&] { builtin_options(name, o); });
  };
  CHECK_THAT(refuse("resnet21", {}), Contains("did you mean \"resnet20\"?"));
  CHECK_THAT(refuse("transformer", {}), Contains("known: mlp, convnet"));
  CHECK_THAT(refuse("resnet20", {{"widht", 2}}),
             Contains("options.widht") && Contains("\"width\""));
  CHECK_THAT(refuse("resnet20", {{"depth", 21}}), Contains("options.depth") && Contains("21"));
  CHECK_THAT(refuse("resnet20", {{"width", 0}}), Contains("options.width"));
  CHECK_THAT(refuse("resnet20", {{"norm", "layer"}}), Contains("batch, group, none"));
  CHECK_THAT(refuse("mlp", {{"hidden", {3, -1}}}), Contains("options.hidden[1]"));
  CHECK_THAT(refuse("vgg11", {{"outputs", 0}}), Contains("options.outputs"));
  CHECK_THAT(refuse("resnet50", {{"stem", "large"}}), Contains("cifar, imagenet"));
  CHECK_THAT(refuse("vit", {{"image", 30}}), Contains("a multiple of 4 (patch)"));
  CHECK_THAT(refuse("vit", {{"dim", 100}}), Contains("a multiple of 3 (heads)"));
  CHECK_THAT(testing::error_of(ErrorKind::kConfig, [] { build_builtin("mpl", {}, 0); }),
             Contains("did you mean \"mlp\"?"));
}

TEST_CASE("archives open and train in Python", "[builtin]") {
  if (!testing::python_has_torch()) {
    WARN("skipped: " << testing::python() << " cannot import torch");
    return;
  }
  const testing::TemporaryFolder folder;
  json list = json::array();
  at::manual_seed(0);
  for (const auto& c : testing::all_builtin_cases()) {
    const std::string file = std::to_string(list.size()) + ".pt";
    torch::jit::Module module = build_builtin(c.name, c.options, 2);
    module.save((folder.path() / file).string());
    const at::Tensor out = module.forward({at::ones(c.input)}).toTensor().to(at::kDouble);
    list.push_back({{"file", file},
                    {"input", c.input},
                    {"sum", out.sum().item<double>()},
                    {"norm", c.options.value("norm", "batch")}});
  }
  const std::string script = "import json, torch\ncases = json.loads('''" + list.dump() + "''')\n" +
                             R"(
for case in cases:
    net = torch.jit.load(case["file"])
    assert not net.training
    x = torch.ones(case["input"])
    assert abs(net(x).double().sum().item() - case["sum"]) < 1e-4, case
    frozen = torch.jit.freeze(net)
    assert torch.allclose(frozen(x), net(x), atol=1e-5)
    half = torch.jit.load(case["file"]).half()
    assert all(p.dtype == torch.float16 for p in half.parameters())
    torch.manual_seed(0)
    net.train()
    assert all(m.training for m in net.modules())
    x = torch.randn(case["input"])
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    losses = []
    for step in range(8):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x), torch.tensor([0, 1, 2]))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[1:]) < losses[0], (case, losses)
    assert all(p.grad is not None for p in net.parameters())
    tracked = [b for n, b in net.named_buffers() if n.endswith("num_batches_tracked")]
    assert all(b.item() == 8 for b in tracked)
    net.eval()
    net(x)
)";
  const bool passed = testing::run_python(folder.path(), script);
  INFO(testing::python_log(folder.path()));
  CHECK(passed);
}
