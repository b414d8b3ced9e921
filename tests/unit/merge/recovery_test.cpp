#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <cmath>

#include "support/networks.h"
#include "weightsmith/core/rng.h"
#include "weightsmith/graph/derive_groups.h"
#include "weightsmith/graph/unit_orders.h"
#include "weightsmith/merge/mudsc.h"
#include "weightsmith/merge/networks.h"

namespace weightsmith {
namespace {

/// x ← x + V·relu(U·x), twelve times over a stream of 96 units, between two linear layers: every
/// block reads and writes the stream, so most of what a unit of it is compared by belongs to layers
/// whose own order is unknown at first.
torch::jit::Module deep_residual_network() {
  at::manual_seed(1);
  torch::jit::Module module("Net");
  const auto weight = [&](const std::string& name, std::int64_t rows, std::int64_t columns) {
    module.register_parameter(name, at::randn({rows, columns}) / std::sqrt(double(columns)), false);
  };
  weight("first", 96, 16);
  std::string body = "def forward(self, x):\n    x = torch.linear(x, self.first)\n";
  for (const char* block : {"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"}) {
    const std::string up = std::string("up_") + block;
    const std::string down = std::string("down_") + block;
    weight(up, 384, 96);
    weight(down, 96, 384);
    body += "    x = x + torch.linear(torch.relu(torch.linear(x, self." + up + ")), self." + down +
            ")\n";
  }
  weight("last", 4, 96);
  module.define(body + "    return torch.linear(x, self.last)\n");
  module.eval();
  return module;
}

/// Share of parameters that come back bit for bit when the network is averaged with a permuted copy
/// of itself, aligned by weights.
double recovered(SweepStart start, MergeMethod method = MergeMethod::kAlign) {
  std::vector<ScriptModel> models{ScriptModel(deep_residual_network(), "net")};
  models.push_back(models.front().clone());
  const UnitGroups groups = check_unit_groups(
      derive_unit_groups(models.front().module(), "net", {at::randn({2, 16})}).groups,
      models.front().state_dict(), "net");
  REQUIRE(groups.groups.size() == 13);
  Rng rng(5);
  const TensorMap copy = models.back().state_dict();
  const at::NoGradGuard no_grad;
  for (const auto& [name, value] : permuted_state(copy, groups, random_orders(groups, rng)))
    copy.at(name).copy_(value);

  MatchOptions options;
  options.variant = {method, MergeSpace::kWeight, 0.5};
  options.iterations.start = start;
  const NetworkStates states = states_of(models);
  NoProgress progress;
  const MatchResult result = match_units(states, groups, {}, options, progress);
  double same = 0;
  for (const auto& [name, tensor] : merge_states(states.models, groups, result.matchings))
    same += at::equal(tensor, states.models.front().at(name)) ? 1 : 0;
  return same / static_cast<double>(states.models.front().size());
}

/// Attention with a slope for each head (ALiBi) and a scale for each hidden unit, in buffers.
ScriptModel network_with_constants(std::uint64_t seed, const at::Tensor& scale) {
  at::manual_seed(seed);
  const testing::Shapes shapes{{"q.weight", {16, 6}},  {"k.weight", {16, 6}},
                               {"v.weight", {16, 6}},  {"out.weight", {6, 16}},
                               {"up.weight", {12, 6}}, {"down.weight", {3, 12}}};
  return ScriptModel(
      testing::make_network(shapes,
                            R"(q = torch.linear(x, self.q.weight).view(2, 5, 4, 4).transpose(1, 2)
k = torch.linear(x, self.k.weight).view(2, 5, 4, 4).transpose(1, 2)
v = torch.linear(x, self.v.weight).view(2, 5, 4, 4).transpose(1, 2)
t = torch.arange(5)
a = torch.matmul(q, k.transpose(-2, -1)) - (t.unsqueeze(0) - t.unsqueeze(1)).abs() * self.slopes + self.mask
y = torch.matmul(torch.softmax(a, -1), v).transpose(1, 2).reshape(2, 5, 16)
h = torch.relu(torch.linear(torch.linear(y, self.out.weight), self.up.weight)) * self.scale
return torch.linear(h, self.down.weight)
)",
                            {{"slopes", at::tensor({0.5F, 0.25F, 0.125F, 0.0625F}).view({4, 1, 1})},
                             {"scale", scale},
                             {"mask", at::full({5, 5}, -INFINITY).triu(1)}}),
      "net");
}

MatchResult aligned(const std::vector<ScriptModel>& models, const UnitGroups& groups) {
  MatchOptions options;
  options.variant = {MergeMethod::kAlign, MergeSpace::kWeight, 0.5};
  options.iterations.start = SweepStart::kPropagate;
  NoProgress progress;
  return match_units(states_of(models), groups, {}, options, progress);
}

}  // namespace

TEST_CASE("buffers that are equal in all models come out as they are, others move with the units",
          "[merge]") {
  const at::NoGradGuard no_grad;
  at::manual_seed(7);
  const at::Tensor scale = at::rand({12}) + 0.5;
  const std::vector<c10::IValue> inputs{at::randn({2, 5, 6})};
  SECTION("two networks trained apart keep both constants") {
    const std::vector<ScriptModel> models{network_with_constants(1, scale),
                                          network_with_constants(2, scale)};
    const std::set<std::string> moving = differing_buffers({&models[0], &models[1]});
    CHECK(moving.empty());
    const UnitGroups groups = unit_groups_for(models[0], "auto", inputs, moving);
    const TensorMap merged =
        merge_states(states_of(models).models, groups, aligned(models, groups).matchings);
    CHECK_NOTHROW(check_finite(models[0]));  // a mask may be infinite
    for (const char* name : {"slopes", "scale", "mask"})
      CHECK(at::equal(merged.at(name), models[0].state_dict().at(name)));
    // A head of the one can still have its units in another order.
    CHECK_FALSE(at::equal(
        merged.at("q.weight"),
        (models[0].state_dict().at("q.weight") + models[1].state_dict().at("q.weight")) / 2));
  }
  SECTION("a permuted copy, its scales with it, is recovered") {
    std::vector<ScriptModel> models{network_with_constants(1, scale)};
    models.push_back(models.front().clone());
    Rng rng(5);
    const TensorMap copy = models.back().state_dict();
    const UnitGroups all = unit_groups_for(models[0], "auto", inputs, {"slopes", "scale"});
    for (const auto& [name, value] : permuted_state(copy, all, random_orders(all, rng)))
      copy.at(name).copy_(value);
    const std::set<std::string> moving = differing_buffers({&models[0], &models[1]});
    CHECK(moving == std::set<std::string>{"slopes", "scale"});
    const UnitGroups groups = unit_groups_for(models[0], "auto", inputs, moving);
    for (const auto& [name, tensor] :
         merge_states(states_of(models).models, groups, aligned(models, groups).matchings)) {
      INFO(name);
      CHECK(at::equal(tensor, models[0].state_dict().at(name)));
    }
  }
}

TEST_CASE("matchings that spread from the inputs recover a deep residual network's permutation",
          "[merge]") {
  CHECK(recovered(SweepStart::kPropagate) == 1.0);
  CHECK(recovered(SweepStart::kPropagate, MergeMethod::kZip) == 1.0);
  // The control: blocks matched to a stream whose order is wrong confirm the wrong order.
  CHECK(recovered(SweepStart::kInOrder) < 0.5);
}

}  // namespace weightsmith
