#include <ATen/ATen.h>

#include <catch2/catch.hpp>

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

}  // namespace

TEST_CASE("matchings that spread from the inputs recover a deep residual network's permutation",
          "[merge]") {
  CHECK(recovered(SweepStart::kPropagate) == 1.0);
  CHECK(recovered(SweepStart::kPropagate, MergeMethod::kZip) == 1.0);
  // The control: blocks matched to a stream whose order is wrong confirm the wrong order.
  CHECK(recovered(SweepStart::kInOrder) < 0.5);
}

}  // namespace weightsmith
