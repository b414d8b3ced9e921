#include "weightsmith/eval/normalization.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <limits>
#include <nlohmann/json.hpp>

#include "support/expect_error.h"
#include "support/networks.h"
#include "weightsmith/model/builtin.h"

namespace weightsmith {
namespace {

Dataset random_images(std::int64_t n) {
  Dataset data;
  data.images = at::randn({n, 1, 8, 8}) * 3 + 50;  // means that would cancel in one float32 pass
  data.labels = at::zeros({n}, at::kLong);
  data.classes = 1;
  data.where = "random images";
  return data;
}

TEST_CASE("the first layer's statistics are those of the whole set, whatever the batches",
          "[merge]") {
  at::manual_seed(3);
  const Dataset data = random_images(50);
  for (const std::int64_t batch_size : {50, 16, 7}) {
    CAPTURE(batch_size);
    ScriptModel model(build_builtin("convnet", {{"width", 4}}, 1), "net");
    NoProgress progress;
    CHECK(reset_batch_norm(model, data, batch_size, at::kCPU, progress) == 4);
    const TensorMap state = model.state_dict();
    const at::Tensor z =
        at::conv2d(data.images.to(at::kDouble), state.at("conv1.weight").to(at::kDouble), {}, 1, 1);
    // A last batch of one sample has no variance of its own and is left out.
    const at::Tensor used = 50 % batch_size == 1 ? z.narrow(0, 0, 49) : z;
    const at::Tensor mean = used.mean({0, 2, 3});
    const at::Tensor var = used.var({0, 2, 3}, /*unbiased=*/true);
    CHECK(at::allclose(state.at("bn1.running_mean").to(at::kDouble), mean, 1e-5, 1e-4));
    CHECK(at::allclose(state.at("bn1.running_var").to(at::kDouble), var, 1e-4, 1e-5));
  }
}

TEST_CASE("samples that come class by class give the statistics of mixed batches", "[merge]") {
  at::manual_seed(6);
  Dataset sorted = random_images(120);
  sorted.labels = at::arange(120).floor_divide(40);
  sorted.classes = 3;
  // A brightness and a contrast a class.
  sorted.images = at::randn({120, 1, 8, 8}) * (sorted.labels + 1).view({120, 1, 1, 1}) +
                  3 * sorted.labels.view({120, 1, 1, 1});
  std::vector<std::int64_t> mixed_order;
  for (std::int64_t i = 0; i < 120; ++i) mixed_order.push_back(i % 3 * 40 + i / 3);
  NoProgress progress;
  const auto variance = [&](const Dataset& data, std::int64_t batch_size) {
    ScriptModel model(build_builtin("convnet", {{"width", 4}}, 1), "net");
    reset_batch_norm(model, data, batch_size, at::kCPU, progress);
    return model.state_dict().at("bn4.running_var").clone();
  };
  const auto apart = [](const at::Tensor& a, const at::Tensor& b) {
    return ((a - b).norm() / b.norm()).item<double>();
  };
  const at::Tensor whole = variance(sorted, 120);
  CHECK(apart(variance(subset(sorted, mixed_order), 40), whole) < 0.03);
  CHECK(apart(variance(sorted, 40), whole) < 0.03);
  // The control: batches of a class each, which labels do not give away.
  Dataset blind = sorted;
  blind.labels = at::arange(120).remainder(3);
  CHECK(apart(variance(blind, 40), whole) > 0.1);
}

TEST_CASE("with one batch all layers get what training mode with momentum 1 would give",
          "[merge]") {
  at::manual_seed(4);
  Dataset data = random_images(32);
  data.images = at::randn({32, 1, 8, 8});
  ScriptModel model(build_builtin("convnet", {{"width", 4}}, 1), "net");
  ScriptModel twin = model.clone();
  NoProgress progress;
  reset_batch_norm(model, data, 32, at::kCPU, progress);
  // The twin's running statistics move by momentum 0.1 from their start, 0 and 1.
  twin.train(true);
  {
    const at::NoGradGuard no_grad;
    twin.forward(data.images);
  }
  const TensorMap ours = model.state_dict();
  for (const auto& [name, tensor] : twin.buffers()) {
    CAPTURE(name);
    if (name.ends_with("running_mean"))
      CHECK(at::allclose(ours.at(name), tensor / 0.1, 1e-4, 1e-5));
    if (name.ends_with("running_var"))
      CHECK(at::allclose(ours.at(name), (tensor - 0.9) / 0.1, 1e-4, 1e-4));
  }
}

TEST_CASE("observations without a variance are refused, and the network and its layer named",
          "[merge]") {
  at::manual_seed(5);
  // The first norm sees every position of an image, the second one a value an image.
  ScriptModel model(
      testing::make_network({{"w", {4, 4}},
                             {"first.running_mean", {4}},
                             {"first.running_var", {4}},
                             {"second.running_mean", {4}},
                             {"second.running_var", {4}}},
                            "y = torch.batch_norm(x, None, None, self.first.running_mean, "
                            "self.first.running_var, False, 0.1, 1e-5, False)\n"
                            "y = y.mean([2, 3]).mm(self.w)\n"
                            "return torch.batch_norm(y, None, None, self.second.running_mean, "
                            "self.second.running_var, False, 0.1, 1e-5, False)\n"),
      "small.pt");
  TensorMap before;
  for (const auto& [name, tensor] : model.buffers()) before[name] = tensor.clone();
  const auto unchanged = [&] {
    const TensorMap now = model.buffers();
    return std::all_of(before.begin(), before.end(), [&](const auto& item) {
      return at::equal(now.at(item.first), item.second);
    });
  };
  NoProgress progress;
  Dataset data = random_images(1);
  data.images = at::randn({1, 4, 3, 3});
  testing::expect_error(
      ErrorKind::kInput,
      {"small.pt: ", "aten::batch_norm", "one observation", "at least two", "normalization.data"},
      [&] { reset_batch_norm(model, data, 128, at::kCPU, progress); });
  CHECK(unchanged());

  data.images = at::randn({2, 4, 3, 3});
  data.images[1][2][1][1] = std::numeric_limits<float>::infinity();
  data.labels = at::zeros({2}, at::kLong);
  testing::expect_error(ErrorKind::kNumeric, {"small.pt: ", "aten::batch_norm", "not finite"},
                        [&] { reset_batch_norm(model, data, 128, at::kCPU, progress); });
  CHECK(unchanged());

  data.images = at::randn({2, 4, 3, 3});
  CHECK(reset_batch_norm(model, data, 128, at::kCPU, progress) == 2);
  CHECK(model.buffers().at("second.running_var").min().item<double>() > 0);
}

TEST_CASE("a network without batch norm is left as it is", "[merge]") {
  ScriptModel model(build_builtin("convnet", {{"width", 4}, {"norm", "none"}}, 1), "net");
  NoProgress progress;
  CHECK(reset_batch_norm(model, random_images(8), 4, at::kCPU, progress) == 0);
}

}  // namespace
}  // namespace weightsmith
