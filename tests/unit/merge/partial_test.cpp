#include "weightsmith/merge/partial.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>
#include <set>

#include "support/builtin_cases.h"
#include "support/expect_error.h"
#include "support/networks.h"
#include "weightsmith/core/rng.h"
#include "weightsmith/merge/transform.h"
#include "weightsmith/model/builtin.h"
#include "weightsmith/model/graph_runner.h"
#include "weightsmith/model/taps.h"

using namespace weightsmith;
using torch::jit::Module;

namespace {

/// A network of `builtin`, in double and different everywhere.
ScriptModel random_model(const std::string& builtin, const nlohmann::json& options, int seed) {
  const Module module = build_builtin(builtin, options, 1);
  at::manual_seed(seed);
  testing::randomise_in_double(module);
  return ScriptModel(module, "model-" + std::to_string(seed));
}

at::Tensor run(const ScriptModel& model, const at::Tensor& x) {
  return GraphRunner(model.module(), model.where()).run({x}).toTensor();
}

std::vector<at::Tensor> run_tuple(const ScriptModel& model, const at::Tensor& x) {
  std::vector<at::Tensor> results;
  const c10::IValue result = GraphRunner(model.module(), model.where()).run({x});
  for (const auto& item : result.toTuple()->elements()) results.push_back(item.toTensor());
  return results;
}

/// Slots for `models` networks of which each slot takes any units, at random, in equal numbers.
Matching random_matching(const UnitGroup& group, std::int64_t models, bool permutations, Rng& rng) {
  std::vector<std::int32_t> slots;
  for (std::int64_t i = 0; i < models; ++i)
    for (std::int64_t u = 0; u < group.units; ++u) slots.push_back(static_cast<std::int32_t>(u));
  const auto shuffle = [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = end; i-- > begin + 1;)
      std::swap(slots[i], slots[begin + rng.below(i - begin + 1)]);
  };
  const std::int64_t q = group.units / group.blocks;
  if (permutations)
    for (std::int64_t b = 0; b < models * group.blocks; ++b) shuffle(b * q, (b + 1) * q);
  else
    shuffle(0, slots.size());
  return make_matching({models, group.units}, group.units, slots, 0.0);
}

}  // namespace

TEST_CASE("permuted copies of a network merge to it at every cut", "[partial]") {
  const at::NoGradGuard no_grad;
  NoProgress progress;
  for (const auto& c : testing::builtin_cases()) {
    if (c.name == "vgg13" || c.name == "vgg16" || c.name == "vgg19") continue;
    const ScriptModel original = random_model(c.name, c.options, 1);
    const at::Tensor x = at::randn(c.input, at::kDouble);
    const at::Tensor expected = run(original, x);
    auto cuts = possible_cuts(original.module(), "net");
    if (cuts.size() > 6) cuts.erase(cuts.begin() + 3, cuts.end() - 3);
    for (const std::string& until : cuts) {
      INFO(c.describe() << " " << until);
      CutModels cut = cut_models({original, original}, until);
      const TrunkUnits units = trunk_units(cut.trunks[0], {x}, /*verify=*/false, progress);
      REQUIRE_FALSE(units.boundary.empty());
      // Model 1 is model 0 with the units of its trunk in another order, which its own head undoes.
      Rng rng(7);
      std::vector<Matching> matchings;
      for (const UnitGroup& group : units.groups.groups) {
        Matching m = random_matching(group, 2, /*permutations=*/true, rng);
        for (std::int64_t u = 0; u < m.slots; ++u) m.slot[u] = static_cast<std::int32_t>(u);
        matchings.push_back(make_matching(m.stack, m.slots, m.slot, 0.0));
      }
      const TensorMap state = cut.trunks[0].state_dict();
      const TensorMap there = reordered_state(state, units.groups, matchings, 1);
      // A trunk in the order of model 1's slots: its head must read the units back.
      ScriptModel trunk = cut.trunks[0].clone();
      trunk.load_state(there, "reordered");
      const ScriptModel joined = attach_heads(trunk, cut.heads, units.boundary, matchings, until);
      const auto results = run_tuple(joined, x);
      CHECK(at::allclose(results[1], expected, 1e-9, 1e-9));
      const bool moves = std::any_of(
          units.boundary.begin(), units.boundary.end(), [&](const BoundaryUnits& boundary) {
            return matchings[boundary.group] !=
                   identity_matching(2, units.groups.groups[boundary.group].units);
          });
      CHECK(moves == !at::allclose(results[0], expected, 1e-9, 1e-9));
    }
  }
}

TEST_CASE("zip's slots are copied back to the units that a head knows", "[partial]") {
  // Two heads of their own on six units, k = 2 positions a unit, of which dimension 2 carries one
  // group entirely and dimension 1 another in part: against unit-by-unit loops.
  Rng rng(3);
  UnitGroup a{"a", 3, 1, {}, {}, {}, {}};
  UnitGroup b{"b", 4, 1, {}, {}, {}, {}};
  const std::vector<Matching> matchings{random_matching(a, 2, false, rng),
                                        random_matching(b, 2, false, rng)};
  const std::vector<BoundaryUnits> boundary{{0, 2, 6, {0, 1, 2, 3, 4, 5}}, {1, 1, 7, {6, 1, 3, 4}}};
  const at::Tensor v = at::randn({2, 7, 6});
  bool joined_inside = false;
  for (std::int64_t model = 0; model < 2; ++model) {
    at::Tensor expected = v.clone();
    for (std::int64_t u = 0; u < 3; ++u) {
      const std::int64_t s = matchings[0].slot[model * 3 + u];
      for (std::int64_t j = 0; j < 2; ++j)
        expected.select(2, 2 * u + j).copy_(v.select(2, 2 * s + j));
    }
    const at::Tensor half = expected.clone();
    std::set<std::int64_t> seen;
    for (std::int64_t u = 0; u < 4; ++u) {
      const std::int64_t s = matchings[1].slot[model * 4 + u];
      joined_inside |= !seen.insert(s).second;
      expected.select(1, boundary[1].positions[u]).copy_(half.select(1, boundary[1].positions[s]));
    }
    at::Tensor found = v;
    for (const Selection& selection : head_reads(boundary, matchings, model))
      found = found.index_select(selection.dim, selection.index);
    CHECK(at::equal(found, expected));
  }
  CHECK(joined_inside);
  CHECK(head_reads(boundary, {identity_matching(2, 3), identity_matching(2, 4)}, 1).empty());
}

TEST_CASE("heads find their units in a trunk of another width", "[partial]") {
  // Two groups on one dimension of 9 places: one other place, 3 units of 2 places, one other place
  // and a unit of 1. Model 0 has 3 and 1 units, model 1 has 2 and 3, and the merged trunk 4 and 2.
  const UnitStack first(std::vector<std::int64_t>{3, 2});
  const UnitStack second(std::vector<std::int64_t>{1, 3});
  const std::vector<Matching> matchings{make_matching(first, 4, {2, 0, 3, 1, 2}, 0.0),
                                        make_matching(second, 2, {1, 0, 0, 1}, 0.0)};
  const std::vector<BoundaryUnits> boundary{{1, 1, 9, {8}}, {0, 1, 9, {1, 2, 3, 4, 5, 6}}};
  const auto read = [&](std::int64_t model) {
    const auto reads = head_reads(boundary, matchings, model);
    REQUIRE(reads.size() == 1);
    CHECK(reads[0].dim == 1);
    const auto* index = reads[0].index.data_ptr<std::int64_t>();
    return std::vector<std::int64_t>(index, index + reads[0].index.numel());
  };
  // The merged result: place 0, slots 0 to 3 at 1 to 8, the other place at 9, slots at 10 and 11.
  CHECK(read(0) == std::vector<std::int64_t>{0, 5, 6, 1, 2, 7, 8, 9, 11});
  CHECK(read(1) == std::vector<std::int64_t>{0, 3, 4, 5, 6, 9, 10, 10, 11});
  testing::expect_error(ErrorKind::kInput, {"dimension 1", "side by side"}, [&] {
    head_reads({{0, 1, 9, {1, 3, 5, 2, 4, 6}}}, matchings, 0);
  });
}

TEST_CASE("groups of a trunk leave its result free and are seen there", "[partial]") {
  const at::NoGradGuard no_grad;
  NoProgress progress;
  const ScriptModel model = random_model("resnet20", {{"depth", 8}, {"width", 0.5}}, 1);
  const at::Tensor x = at::randn({3, 3, 8, 8}, at::kDouble);
  const auto cut = cut_models({model}, "layer2");
  const TrunkUnits units = trunk_units(cut.trunks[0], {x}, /*verify=*/true, progress);
  // Streams of layer1 and layer2, and inside each a block.
  REQUIRE(units.groups.groups.size() == 4);
  REQUIRE(units.boundary.size() == 1);
  const BoundaryUnits& boundary = units.boundary.front();
  const UnitGroup& stream = units.groups.groups[boundary.group];
  CHECK(stream.units == 16);
  CHECK(boundary.dim == 1);
  CHECK(boundary.size == 16);
  REQUIRE(stream.taps.size() == 1);
  CHECK(stream.taps[0].axes == std::vector<std::int64_t>{1});
  // No head, no member behind the cut, and the probe is gone.
  for (const UnitGroup& group : units.groups.groups)
    for (const GroupMember& member : group.members)
      CHECK(cut.trunks[0].state_dict().count(member.parameter) == 1);
  const TapSet taps(cut.trunks[0].module(), {stream.taps[0].at}, "net");
  at::Tensor seen;
  const at::Tensor result =
      taps.run({x}, [&](std::size_t, const at::Tensor& value) { seen = value.clone(); }).toTensor();
  CHECK(at::equal(seen, result));
}

TEST_CASE("heads of another kind are attached to a merged trunk", "[partial]") {
  const at::NoGradGuard no_grad;
  NoProgress progress;
  at::manual_seed(5);
  const auto network = [](const std::string& forward, const testing::Shapes& own) {
    Module encoder = testing::make_network({{"first.weight", {6, 4}}, {"second.weight", {5, 6}}},
                                           "x = torch.relu(x @ self.first.weight.t())\n"
                                           "return torch.tanh(x @ self.second.weight.t())");
    Module net = testing::make_network(own, "return x");
    Module whole("Whole");
    whole.register_attribute("training", c10::BoolType::get(), false);
    whole.register_module("encoder", encoder);
    for (const auto& item : net.named_parameters())
      whole.register_parameter(item.name, item.value, false);
    whole.define("def forward(self, x):\n    x = self.encoder.forward(x)\n    return " + forward +
                 "\n");
    return whole;
  };
  const std::vector<ScriptModel> models{
      {network("x @ self.w", {{"w", {5, 3}}}), "classes"},
      {network("torch.relu(x @ self.up) @ self.out, x.mean(1)", {{"up", {5, 8}}, {"out", {8, 4}}}),
       "image"}};
  const CutModels cut = cut_models(models, "encoder");
  const at::Tensor x = at::randn({7, 4});
  const TrunkUnits units = trunk_units(cut.trunks[0], {x}, /*verify=*/true, progress);
  REQUIRE(units.groups.groups.size() == 2);
  std::vector<Matching> matchings;
  Rng rng(1);
  for (const UnitGroup& group : units.groups.groups)
    matchings.push_back(random_matching(group, 2, true, rng));
  ScriptModel trunk = cut.trunks[0].clone();
  trunk.load_state(reordered_state(cut.trunks[1].state_dict(), units.groups, matchings, 1), "new");
  const ScriptModel joined = attach_heads(trunk, cut.heads, units.boundary, matchings, "encoder");
  const auto tasks = task_networks(joined);
  REQUIRE(tasks.size() == 2);
  CHECK(tasks[0].name() == "classes");
  CHECK(tasks[1].name() == "image");
  CHECK(tasks[1].metadata()["partial"] == nlohmann::json{{"until", "encoder"}, {"task", "image"}});
  const auto expected = Module(models[1].module()).forward({x}).toTuple()->elements();
  const auto found = Module(tasks[1].module()).forward({x}).toTuple()->elements();
  REQUIRE(found.size() == 2);
  for (int i = 0; i < 2; ++i)
    CHECK(at::allclose(found[i].toTensor(), expected[i].toTensor(), 1e-4, 1e-5));
  // The tasks share the joint network's tensors.
  const TensorMap whole = joined.state_dict();
  for (const auto& [name, tensor] : tasks[1].state_dict())
    if (name.starts_with("trunk.")) CHECK(whole.at(name).is_same(tensor));
}

TEST_CASE("a cut without units is refused", "[partial]") {
  NoProgress progress;
  Module net("Net");
  net.register_attribute("training", c10::BoolType::get(), false);
  for (const char* name : {"a", "b"}) {
    Module part(std::string("Sum_") + name);
    part.register_parameter("w", at::randn({4}), false);
    part.define("def forward(self, x):\n    return (x.unsqueeze(-1) * self.w).sum([1, 2])\n");
    net.register_module(name, part);
  }
  net.define("def forward(self, x):\n    return self.b.forward(self.a.forward(x).unsqueeze(1))\n");
  const CutModels cut = cut_models({ScriptModel(net, "net")}, "a");
  testing::expect_error(ErrorKind::kInput, {"net: what crosses the cut has 1 dimensions"}, [&] {
    trunk_units(cut.trunks[0], {at::randn({2, 3})}, true, progress);
  });
  testing::expect_error(ErrorKind::kConfig, {"inputs: the graph of net must be run once"},
                        [&] { trunk_units(cut.trunks[0], {}, true, progress); });
}
