#include "weightsmith/merge/repair.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "support/expect_error.h"
#include "support/networks.h"
#include "weightsmith/core/rng.h"
#include "weightsmith/eval/normalization.h"
#include "weightsmith/graph/unit_orders.h"
#include "weightsmith/merge/networks.h"
#include "weightsmith/model/builtin.h"

namespace weightsmith {
namespace {

using nlohmann::json;
using testing::expect_error;

Dataset standard_images(std::int64_t n) {
  Dataset data;
  data.images = at::randn({n, 1, 8, 8});
  data.labels = at::zeros({n}, at::kLong);
  data.classes = 1;
  data.where = "random images";
  return data;
}

ScriptModel build(const std::string& name, const json& given, std::uint64_t seed) {
  const json options = builtin_options(name, given);
  ScriptModel model(build_builtin(name, options, seed), name,
                    {{"builtin", name}, {"options", options}});
  at::manual_seed(seed);
  const at::NoGradGuard no_grad;
  for (auto& [key, tensor] : model.parameters())
    if (tensor.dim() == 1) tensor.copy_(at::randn_like(tensor) * 0.3 + 1);
  return model;
}

struct Merge {
  Merge(const std::string& name, const json& options, std::vector<Matching> given = {})
      : models{build(name, options, 1), build(name, options, 2)},
        groups(unit_groups_for(models.front(), "auto", {standard_images(2).images})),
        matchings(std::move(given)),
        layers(affine_layers(groups, models.front().parameters())),
        merged(models.front().clone()) {
    at::manual_seed(5);
    data = standard_images(64);
    if (matchings.empty())
      for (const UnitGroup& group : groups.groups)
        matchings.push_back(identity_matching(2, group.units));
    for (ScriptModel& model : models) {
      reset_batch_norm(model, data, 64, at::kCPU, progress);
      originals.push_back(output_moments(model, layers, data, 64, at::kCPU, progress));
    }
    merged.load_state(merge_states(states_of(models).models, groups, matchings, shares), "merged");
  }
  std::int64_t repair_now(std::int64_t batch_size = 64) {
    return repair(merged, layers, merged_moments(layers, originals, groups, matchings, shares),
                  data, batch_size, at::kCPU, progress);
  }
  OutputMoments now() { return output_moments(merged, layers, data, 64, at::kCPU, progress); }

  NoProgress progress;
  ModelShares shares{0.25, 0.75};
  std::vector<ScriptModel> models;
  UnitGroups groups;
  std::vector<Matching> matchings;
  std::vector<AffineLayer> layers;
  std::vector<OutputMoments> originals;
  Dataset data;
  ScriptModel merged;
};

TEST_CASE("after repair every unit has the interpolated mean and deviation", "[merge]") {
  for (const auto& [name, options, layers] :
       {std::tuple{"mlp", json{{"hidden", {24, 16}}}, 2},
        {"convnet", json{{"width", 4}, {"norm", "none"}}, 4},
        {"convnet", json{{"width", 4}, {"norm", "group"}, {"groups", 2}}, 4},
        {"convnet", json{{"width", 4}}, 4},
        {"resnet20", json{{"depth", 8}, {"width", 0.25}, {"channels", 1}}, 9},
        {"vit",  // packed projections of queries, keys and values
         json{{"image", 8},
              {"patch", 4},
              {"dim", 12},
              {"depth", 2},
              {"heads", 3},
              {"mlp", 20},
              {"channels", 1}},
         14}}) {
    CAPTURE(name, options.dump());
    Merge merge(name, options);
    const auto far_off = [&] {
      double worst = 0;
      const OutputMoments now = merge.now();
      for (const AffineLayer& layer : merge.layers) {
        const auto& a = merge.originals[0].at(layer.bias);
        const auto& b = merge.originals[1].at(layer.bias);
        const auto distance = [&](const at::Tensor& x, const at::Tensor& y) {
          return ((x - y).abs() / (0.25 * a.deviation + 0.75 * b.deviation + 1e-3))
              .max()
              .item<double>();
        };
        const auto& m = now.at(layer.bias);
        worst = std::max(worst, distance(m.mean, 0.25 * a.mean + 0.75 * b.mean));
        worst = std::max(worst, distance(m.deviation, 0.25 * a.deviation + 0.75 * b.deviation));
      }
      return worst;
    };
    CHECK(far_off() > 0.05);  // it was needed
    CHECK(merge.repair_now() == layers);
    CHECK(far_off() < 1e-2);  // batch norm keeps unbiased variances
  }
}

TEST_CASE("repairing in batches comes close to repairing at once", "[merge]") {
  Merge whole("mlp", {{"hidden", {24, 16}}});
  Merge pieces("mlp", {{"hidden", {24, 16}}});
  whole.repair_now(64);
  pieces.repair_now(32);
  const at::Tensor x = standard_images(16).images;
  const at::NoGradGuard no_grad;
  const at::Tensor wanted = whole.merged.forward(x);
  CHECK((pieces.merged.forward(x) - wanted).norm().item<double>() <
        0.2 * wanted.norm().item<double>());
}

TEST_CASE("a slot of several units gets the weighted mean of their statistics", "[merge]") {
  // Two units of model 0 and one of model 1 in slot 0, one of model 1 alone in slot 1.
  std::vector<Matching> matchings{make_matching({2, 2}, 2, {0, 0, 0, 1}, 0)};
  Merge merge("mlp", {{"hidden", {2}}}, matchings);
  merge.repair_now();
  const auto& a = merge.originals[0].at("fc1.bias");
  const auto& b = merge.originals[1].at("fc1.bias");
  const auto m = merge.now().at("fc1.bias");
  for (const auto& [found, first, second] :
       {std::tuple{m.mean, a.mean, b.mean}, {m.deviation, a.deviation, b.deviation}}) {
    const double wanted = (0.25 * (first[0] + first[1]) + 0.75 * second[0]).item<double>() / 1.25;
    CHECK(found[0].item<double>() == Approx(wanted).margin(1e-4));
    CHECK(found[1].item<double>() == Approx(second[1].item<double>()).margin(1e-4));
  }
}

TEST_CASE("repairing the merge of a network with itself changes nothing", "[merge]") {
  Merge merge("convnet", {{"width", 4}, {"norm", "none"}});
  merge.merged.load_state(merge.models[0].state_dict(), "copy");
  merge.originals[1] = merge.originals[0];
  const at::Tensor x = standard_images(8).images;
  const at::NoGradGuard no_grad;
  const at::Tensor wanted = merge.merged.forward(x);
  merge.repair_now();
  CHECK((merge.merged.forward(x) - wanted).abs().max().item<double>() < 1e-4);
}

TEST_CASE("a unit that is dead in the merged network is shifted, not blown up", "[merge]") {
  Merge merge("mlp", {{"hidden", {6}}});
  {
    const at::NoGradGuard no_grad;
    merge.merged.parameters().at("fc1.weight")[3].zero_();
  }
  merge.repair_now();
  const TensorMap state = merge.merged.state_dict();
  CHECK(state.at("fc1.weight")[3].abs().max().item<double>() == 0);
  const double wanted = (0.25 * merge.originals[0].at("fc1.bias").mean[3] +
                         0.75 * merge.originals[1].at("fc1.bias").mean[3])
                            .item<double>();
  CHECK(state.at("fc1.bias")[3].item<double>() == Approx(wanted).margin(1e-5));
}

TEST_CASE("a group whose units nothing can shift is named", "[merge]") {
  const ScriptModel model = build("convnet", {{"width", 4}}, 1);
  UnitGroups groups = unit_groups_for(model, "auto");
  CHECK(affine_layers(groups, model.parameters()).size() == 4);
  auto& members = groups.groups[1].members;
  std::erase_if(members, [](const GroupMember& m) { return m.parameter.starts_with("bn2"); });
  expect_error(ErrorKind::kInput, {"group \"conv2\"", "conv2.weight", "no bias", "normalization.mode"},
               [&] { affine_layers(groups, model.parameters()); });
  std::erase_if(members, [](const GroupMember& m) { return m.role == MemberRole::kOut; });
  expect_error(ErrorKind::kInput, {"group \"conv2\"", "a weight and a bias"},
               [&] { affine_layers(groups, model.parameters()); });
}

/// Networks whose groups are more than whole axes, each with a twin that also hands out what its
/// affine layers compute, in the order of `layers`.
struct LayeredNetwork {
  std::string name;
  testing::Shapes parameters;
  std::string body;  ///< defines y, and t0, t1, ... : the layers' outputs
  std::vector<std::string> layers;
  std::vector<std::int64_t> unit_axes;  ///< of the layers' outputs
  std::vector<std::int64_t> input;      ///< of one sample
};

ScriptModel network_of(const LayeredNetwork& net, int seed) {
  at::manual_seed(seed);
  return ScriptModel(testing::make_network(net.parameters, net.body + "return y\n"),
                     net.name + std::to_string(seed));
}

/// Outputs of the layers with the weights of `model`.
std::vector<at::Tensor> layer_outputs(const LayeredNetwork& net, const ScriptModel& model,
                                      const at::Tensor& x) {
  std::string results = "t0";
  for (std::size_t i = 1; i < net.layers.size(); ++i) results += ", t" + std::to_string(i);
  ScriptModel twin(testing::make_network(net.parameters, net.body + "return [" + results + "]\n"),
                   "twin");
  twin.load_state(model.state_dict(), "twin");
  std::vector<at::Tensor> outputs;
  for (const at::Tensor& output : twin.module().forward({x}).toTensorVector())
    outputs.push_back(output);
  return outputs;
}

/// Mean and deviation of one unit, value by value.
std::pair<double, double> slow_moments(const at::Tensor& output, std::int64_t axis,
                                       std::int64_t unit) {
  const at::Tensor values = output.select(axis, unit).to(at::kDouble).flatten().contiguous();
  double sum = 0;
  for (std::int64_t i = 0; i < values.numel(); ++i) sum += values.data_ptr<double>()[i];
  const double mean = sum / static_cast<double>(values.numel());
  double squares = 0;
  for (std::int64_t i = 0; i < values.numel(); ++i) {
    const double apart = values.data_ptr<double>()[i] - mean;
    squares += apart * apart;
  }
  return {mean, std::sqrt(squares / static_cast<double>(values.numel()))};
}

TEST_CASE("repair follows concatenations, convolution groups, shuffles and packed layers",
          "[merge]") {
  const std::vector<LayeredNetwork> networks{
      {"concatenation",
       {{"a.weight", {4, 3, 1, 1}},
        {"a.bias", {4}},
        {"b.weight", {6, 3, 1, 1}},
        {"b.bias", {6}},
        {"c.weight", {5, 10, 3, 3}},
        {"c.bias", {5}},
        {"head", {2, 5}}},
       "t0 = torch.conv2d(x, self.a.weight, self.a.bias)\n"
       "t1 = torch.conv2d(x, self.b.weight, self.b.bias)\n"
       "z = torch.relu(torch.cat([t1, t0], 1))\n"
       "t2 = torch.conv2d(z, self.c.weight, self.c.bias, 1, 1)\n"
       "y = torch.relu(t2).mean([2, 3]).mm(self.head.t())\n",
       {"a", "b", "c"},
       {1, 1, 1},
       {3, 4, 4}},
      {"convolution groups",
       {{"a.weight", {8, 3, 1, 1}},
        {"a.bias", {8}},
        {"b.weight", {12, 2, 3, 3}},  // 4 groups
        {"b.bias", {12}},
        {"c.weight", {6, 12, 1, 1}},
        {"c.bias", {6}},
        {"head", {2, 6}}},
       "t0 = torch.conv2d(x, self.a.weight, self.a.bias)\n"
       "t1 = torch.conv2d(torch.relu(t0), self.b.weight, self.b.bias, 1, 1, 1, 4)\n"
       "t2 = torch.conv2d(torch.relu(t1), self.c.weight, self.c.bias)\n"
       "y = torch.relu(t2).mean([2, 3]).mm(self.head.t())\n",
       {"a", "b", "c"},
       {1, 1, 1},
       {3, 4, 4}},
      {"transposed convolution groups",
       {{"a.weight", {8, 3, 1, 1}},
        {"a.bias", {8}},
        {"b.weight", {8, 3, 2, 2}},  // 2 groups: 6 channels out
        {"b.bias", {6}},
        {"head", {2, 6}}},
       "t0 = torch.conv2d(x, self.a.weight, self.a.bias)\n"
       "t1 = torch.conv_transpose2d(torch.relu(t0), self.b.weight, self.b.bias, 2, 0, 0, 2)\n"
       "y = torch.relu(t1).mean([2, 3]).mm(self.head.t())\n",
       {"a", "b"},
       {1, 1},
       {3, 4, 4}},
      {"channel shuffle",
       {{"a.weight", {8, 3, 1, 1}},
        {"a.bias", {8}},
        {"b.weight", {6, 4, 1, 1}},  // 2 groups of the shuffled channels
        {"b.bias", {6}},
        {"head", {2, 6}}},
       "t0 = torch.conv2d(x, self.a.weight, self.a.bias)\n"
       "z = torch.relu(t0).reshape([-1, 2, 4, 4, 4]).transpose(1, 2).reshape([-1, 8, 4, 4])\n"
       "t1 = torch.conv2d(z, self.b.weight, self.b.bias, 1, 0, 1, 2)\n"
       "y = torch.relu(t1).mean([2, 3]).mm(self.head.t())\n",
       {"a", "b"},
       {1, 1},
       {3, 4, 4}},
      {"packed queries, keys and values",
       {{"a.weight", {8, 5}},
        {"a.bias", {8}},
        {"qkv.weight", {24, 8}},
        {"qkv.bias", {24}},
        {"out.weight", {8, 8}},
        {"out.bias", {8}},
        {"head", {2, 8}}},
       "t0 = torch.matmul(x, self.a.weight.t()) + self.a.bias\n"
       "t1 = torch.matmul(t0, self.qkv.weight.t()) + self.qkv.bias\n"
       "q, k, v = t1.reshape([-1, 3, 3, 2, 4]).permute([2, 0, 3, 1, 4]).unbind(0)\n"
       "p = torch.softmax(torch.matmul(q, k.transpose(2, 3)), -1)\n"
       "z = torch.matmul(p, v).transpose(1, 2).reshape([-1, 3, 8])\n"
       "t2 = torch.matmul(z, self.out.weight.t()) + self.out.bias\n"
       "y = torch.relu(t2).mean([1]).mm(self.head.t())\n",
       {"a", "qkv", "out"},
       {2, 2, 2},
       {3, 5}},
      {"attention between two sequences, whose packed projection is split",
       {{"a.weight", {8, 5}},
        {"a.bias", {8}},
        {"m.in_proj_weight", {24, 8}},
        {"m.in_proj_bias", {24}},
        {"out.weight", {8, 8}},
        {"out.bias", {8}},
        {"head", {2, 8}}},
       "t0 = torch.matmul(x, self.a.weight.t()) + self.a.bias\n"
       "wq, wkv = self.m.in_proj_weight.split([8, 16])\n"
       "bq, bkv = self.m.in_proj_bias.split([8, 16])\n"
       "tq = torch.linear(torch.tanh(t0), wq, bq)\n"
       "tkv = torch.linear(t0, wkv, bkv)\n"
       "t1 = torch.cat([tq, tkv], 2)\n"
       "k, v = tkv.reshape([-1, 3, 2, 2, 4]).permute([2, 0, 3, 1, 4]).unbind(0)\n"
       "q = tq.reshape([-1, 3, 2, 4]).transpose(1, 2)\n"
       "p = torch.softmax(torch.matmul(q, k.transpose(2, 3)), -1)\n"
       "z = torch.matmul(p, v).transpose(1, 2).reshape([-1, 3, 8])\n"
       "t2 = torch.matmul(z, self.out.weight.t()) + self.out.bias\n"
       "y = torch.relu(t2).mean([1]).mm(self.head.t())\n",
       {"a", "m.in_proj", "out"},
       {2, 2, 2},
       {3, 5}}};
  for (const LayeredNetwork& net : networks) {
    CAPTURE(net.name);
    std::vector<ScriptModel> models{network_of(net, 1), network_of(net, 2)};
    at::manual_seed(3);
    std::vector<std::int64_t> shape{48};
    shape.insert(shape.end(), net.input.begin(), net.input.end());
    Dataset data;
    data.images = at::randn(shape);
    data.labels = at::zeros({48}, at::kLong);
    data.classes = 1;
    const UnitGroups groups =
        unit_groups_for(models.front(), "auto", {data.images.narrow(0, 0, 2)});
    Rng rng(7, {1});
    const UnitOrders orders = random_orders(groups, rng);
    std::vector<Matching> matchings;
    bool is_moved = false;
    for (std::size_t g = 0; g < groups.groups.size(); ++g) {
      const std::int64_t n = groups.groups[g].units;
      std::vector<std::int32_t> slots(2 * n);
      for (std::int64_t u = 0; u < n; ++u) {
        slots[u] = static_cast<std::int32_t>(u);
        slots[n + orders[g][u]] = static_cast<std::int32_t>(u);
        is_moved |= orders[g][u] != u;
      }
      matchings.push_back(make_matching({2, n}, n, slots, 0));
    }
    CHECK(is_moved);
    const ModelShares shares{0.25, 0.75};
    const std::vector<AffineLayer> layers = affine_layers(groups, models.front().parameters());
    CHECK(layers.size() == net.layers.size());
    NoProgress progress;
    std::vector<OutputMoments> originals;
    for (ScriptModel& model : models)
      originals.push_back(output_moments(model, layers, data, 48, at::kCPU, progress));
    ScriptModel merged = models.front().clone();
    merged.load_state(merge_states(states_of(models).models, groups, matchings, shares), "merged");
    const auto before = layer_outputs(net, merged, data.images);
    repair(merged, layers, merged_moments(layers, originals, groups, matchings, shares), data, 48,
           at::kCPU, progress);
    const auto after = layer_outputs(net, merged, data.images);

    // What every unit should have: of model 1 permuted by hand, as a network of its own.
    ScriptModel second = models.front().clone();
    TensorMap reordered = models[1].state_dict();
    for (const auto& [name, tensor] : permuted_state(reordered, groups, orders))
      reordered[name] = tensor;
    second.load_state(reordered, "second");
    CHECK(at::allclose(second.forward(data.images), models[1].forward(data.images), 1e-3, 1e-4));
    const auto first_outputs = layer_outputs(net, models[0], data.images);
    const auto second_outputs = layer_outputs(net, second, data.images);
    double was_off = 0;
    for (std::size_t l = 0; l < net.layers.size(); ++l) {
      CAPTURE(net.layers[l]);
      const std::int64_t axis = net.unit_axes[l];
      for (std::int64_t u = 0; u < after[l].size(axis); ++u) {
        const auto a = slow_moments(first_outputs[l], axis, u);
        const auto b = slow_moments(second_outputs[l], axis, u);
        const auto found = slow_moments(after[l], axis, u);
        CHECK(found.first == Approx(0.25 * a.first + 0.75 * b.first).margin(1e-3));
        CHECK(found.second == Approx(0.25 * a.second + 0.75 * b.second).epsilon(2e-3));
        was_off = std::max(was_off, std::abs(slow_moments(before[l], axis, u).second /
                                                 (0.25 * a.second + 0.75 * b.second) -
                                             1));
      }
    }
    CHECK(was_off > 0.1);  // it was needed
  }
}

TEST_CASE("a bias of which the network adds one part only is refused", "[merge]") {
  const ScriptModel net(testing::make_network({{"a.weight", {6, 5}}, {"a.bias", {6}}},
                                              "return torch.linear(x, self.a.weight[0:4], "
                                              "self.a.bias[0:4])\n"),
                        "parts.pt");
  ScriptModel model = net.clone();
  const std::vector<AffineLayer> layers{{"a.weight", "a.bias", 0, 1}};
  Dataset data = standard_images(4);
  data.images = at::randn({4, 5});
  NoProgress progress;
  expect_error(ErrorKind::kInput, {"parts.pt", "every part once of a.bias", "normalization.mode"},
               [&] { output_moments(model, layers, data, 4, at::kCPU, progress); });
}

TEST_CASE("moments blend with any weights, and deviations stay positive", "[merge]") {
  const auto of = [](double mean, double deviation) {
    return OutputMoments{
        {"b", {at::tensor({mean}, at::kDouble), at::tensor({deviation}, at::kDouble)}}};
  };
  const OutputMoments blended = blended_moments({of(1, 2), of(3, 8)}, {1.5, -0.5});
  CHECK(blended.at("b").mean.item<double>() == Approx(0));
  CHECK(blended.at("b").deviation.item<double>() == 0);
  CHECK(blended_moments({of(1, 2), of(3, 8)}, {0.5, 0.5}).at("b").deviation.item<double>() == 5);
}

}  // namespace
}  // namespace weightsmith
