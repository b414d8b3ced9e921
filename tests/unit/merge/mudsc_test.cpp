#include "weightsmith/merge/mudsc.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <map>
#include <nlohmann/json.hpp>

#include "support/expect_error.h"
#include "weightsmith/core/rng.h"
#include "weightsmith/match/visit_order.h"
#include "weightsmith/match/zip.h"
#include "weightsmith/merge/networks.h"
#include "weightsmith/model/builtin.h"
#include "weightsmith/model/script_model.h"

namespace weightsmith {
namespace {

using nlohmann::json;
using testing::expect_error;

struct Network {
  std::string name;
  json options;
  std::vector<std::int64_t> input;
};

const std::vector<Network> kNetworks{
    {"mlp", {{"inputs", 20}, {"hidden", {24, 16}}, {"outputs", 5}}, {3, 20}},
    {"convnet", {{"width", 8}, {"channels", 1}, {"outputs", 6}}, {3, 1, 8, 8}},
    {"resnet20", {{"depth", 8}, {"width", 0.5}, {"outputs", 6}}, {3, 3, 12, 12}},
    {"resnet20",
     {{"depth", 8}, {"width", 0.5}, {"outputs", 6}, {"norm", "group"}, {"groups", 4}},
     {3, 3, 12, 12}},
    {"vgg11", {{"width", 0.125}, {"outputs", 6}, {"norm", "batch"}}, {2, 3, 32, 32}},
};

ScriptModel build(const Network& network, std::uint64_t seed) {
  const json options = builtin_options(network.name, network.options);
  ScriptModel model(build_builtin(network.name, options, seed), network.name,
                    {{"builtin", network.name}, {"options", options}});
  // Norms start as ones and zeros: give every unit a face.
  at::manual_seed(seed);
  const at::NoGradGuard no_grad;
  for (auto& [name, tensor] : model.state_dict())
    if (tensor.is_floating_point() && tensor.dim() == 1) tensor.copy_(at::rand_like(tensor) + 0.5);
  return model;
}

/// The same network with its units in another order; `order[g][k]` is the new place of unit k.
ScriptModel permuted(const ScriptModel& model, const UnitGroups& groups,
                     const std::vector<Matching>& order) {
  ScriptModel copy = model.clone();
  TensorMap state = model.state_dict();
  for (auto& [name, tensor] : state) {
    const auto uses = parameter_uses(groups);
    const auto use = uses.find(name);
    if (use == uses.end()) continue;
    for (const AxisUse& u : use->second)
      tensor = spread_units(tensor.detach(), groups.groups[u.group].members[u.member],
                            order[u.group], 1, SlotWeight::kOne);
  }
  copy.load_state(state, "permuted");
  return copy;
}

/// Random permutations that respect blocks, as matchings of two models: the first stays.
std::vector<Matching> random_orders(const UnitGroups& groups, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<Matching> orders;
  for (const UnitGroup& group : groups.groups) {
    const std::int64_t size = group.units / group.blocks;
    const auto blocks = random_permutation(group.blocks, rng);
    std::vector<std::int32_t> slot(2 * group.units);
    for (std::int64_t b = 0; b < group.blocks; ++b) {
      const auto inner = random_permutation(size, rng);
      for (std::int64_t k = 0; k < size; ++k) {
        slot[b * size + k] = static_cast<std::int32_t>(b * size + k);
        slot[group.units + b * size + k] = static_cast<std::int32_t>(blocks[b] * size + inner[k]);
      }
    }
    orders.push_back(make_matching({2, group.units}, group.units, std::move(slot), 0));
  }
  return orders;
}

MatchOptions weight_options(MergeMethod method) {
  MatchOptions options;
  options.variant = {method, MergeSpace::kWeight, 0.5};
  return options;
}

TEST_CASE("a network with its units permuted computes the same", "[merge]") {
  for (const Network& network : kNetworks) {
    CAPTURE(network.name, network.options.dump());
    ScriptModel model = build(network, 1);
    const UnitGroups groups = unit_groups_for(model, "auto");
    ScriptModel other = permuted(model, groups, random_orders(groups, 2));
    const at::Tensor x = at::randn(network.input);
    CHECK((model.forward(x) - other.forward(x)).abs().max().item<double>() < 1e-4);
    const std::string first = groups.groups.front().members.front().parameter;
    CHECK_FALSE(at::equal(model.parameters().at(first), other.parameters().at(first)));
  }
}

TEST_CASE("merging a network with its permuted self gives back its function", "[merge]") {
  for (const Network& network : kNetworks) {
    CAPTURE(network.name, network.options.dump());
    std::vector<ScriptModel> models{build(network, 1)};
    const UnitGroups groups = unit_groups_for(models.front(), "auto");
    const auto orders = random_orders(groups, 2);
    models.push_back(permuted(models.front(), groups, orders));
    const NetworkStates states = states_of(models);
    NoProgress progress;
    const at::Tensor x = at::randn(network.input);
    const at::Tensor wanted = models.front().forward(x);
    for (const MergeMethod method : {MergeMethod::kAlign, MergeMethod::kZip}) {
      CAPTURE(enum_name(method));
      const MatchResult result = match_units(states, groups, {}, weight_options(method), progress);
      ScriptModel merged = models.front().clone();
      merged.load_state(merge_states(states.models, groups, result.matchings), "merged");
      CHECK((merged.forward(x) - wanted).abs().max().item<double>() < 1e-4);
    }
  }
}

TEST_CASE("averaging a permuted copy without matching does not give back the function", "[merge]") {
  // The control of the test above: matching is what does it.
  const Network& network = kNetworks.front();
  std::vector<ScriptModel> models{build(network, 1)};
  const UnitGroups groups = unit_groups_for(models.front(), "auto");
  models.push_back(permuted(models.front(), groups, random_orders(groups, 2)));
  NoProgress progress;
  const NetworkStates states = states_of(models);
  const MatchResult result =
      match_units(states, groups, {}, weight_options(MergeMethod::kAverage), progress);
  ScriptModel merged = models.front().clone();
  merged.load_state(merge_states(states.models, groups, result.matchings), "merged");
  const at::Tensor x = at::randn(network.input);
  CHECK((merged.forward(x) - models.front().forward(x)).abs().max().item<double>() > 1e-2);
}

TEST_CASE("skipping groups whose neighbours stayed gives what matching them again would",
          "[merge]") {
  // The slow twin: sweeps written out, every group matched at every visit.
  std::vector<ScriptModel> models{build(kNetworks[2], 1), build(kNetworks[2], 7)};
  const UnitGroups groups = unit_groups_for(models.front(), "auto");
  const NetworkStates states = states_of(models);
  NoProgress progress;
  const MatchResult fast =
      match_units(states, groups, {}, weight_options(MergeMethod::kZip), progress);
  CHECK(fast.groups_skipped > 0);

  const ParameterUses uses = parameter_uses(groups);
  const std::size_t size = groups.groups.size();
  VisitOrder order(static_cast<std::int64_t>(size));
  std::vector<Matching> current(size);
  std::vector<Matching> best;
  double best_total = 0;
  int failures = 0;
  std::vector<double> history;
  while (failures < 5) {
    for (const std::int64_t g : order.next()) {
      const PackedSimilarity similarity =
          weight_similarity(states, groups, uses, static_cast<std::size_t>(g), current,
                            SimilarityMeasure::kCorrelation, Similarity::Scope::kAllPairs);
      current[g] = zip(similarity, {}, groups.groups[g].blocks, "test");
    }
    double total = 0;
    for (const Matching& m : current) total += m.value / static_cast<double>(size);
    history.push_back(total);
    if (best.empty() || total > best_total) {
      best = current;
      best_total = total;
      failures = 0;
    } else {
      current = best;
      ++failures;
    }
  }
  REQUIRE(fast.objective_history.size() == history.size());
  for (std::size_t i = 0; i < history.size(); ++i)
    CHECK(fast.objective_history[i] == Approx(history[i]).epsilon(1e-12));
  for (std::size_t g = 0; g < size; ++g) CHECK(fast.matchings[g].slot == best[g].slot);
}

TEST_CASE("weight similarity leaves running statistics out and names broken weights", "[merge]") {
  std::vector<ScriptModel> models{build(kNetworks[1], 1), build(kNetworks[1], 2)};
  const UnitGroups groups = unit_groups_for(models.front(), "auto");
  NoProgress progress;
  const auto slots = [&] {
    return match_units(states_of(models), groups, {}, weight_options(MergeMethod::kAlign), progress)
        .matchings[0]
        .slot;
  };
  const auto before = slots();
  for (auto& [name, tensor] : models[1].buffers())
    if (tensor.is_floating_point()) tensor.uniform_(1, 100);
  CHECK(slots() == before);

  const at::NoGradGuard no_grad;
  TensorMap state = models[1].state_dict();
  state.at("conv2.weight")[0][0][0][0] = std::numeric_limits<float>::quiet_NaN();
  expect_error(ErrorKind::kNumeric, {"conv2.weight"}, slots);
  expect_error(ErrorKind::kNumeric, {"conv2.weight", "NaN"}, [&] {
    for (const ScriptModel& model : models) check_finite(model);
  });
}

/// One layer and an activation.
ScriptModel activated(const std::string& activation, at::ScalarType type = at::kFloat) {
  torch::jit::Module net("Net");
  net.register_parameter("w", at::rand({3, 3}).to(type), false);
  net.define("def forward(self, x):\n    return torch." + activation + "(x.mm(self.w))\n");
  return ScriptModel(net, activation);
}

TEST_CASE("networks of other architectures, or without known groups, are refused", "[merge]") {
  std::vector<ScriptModel> models{build(kNetworks[1], 1), build(kNetworks[2], 1)};
  expect_error(ErrorKind::kInput, {"not of the architecture", "convnet"},
               [&] { check_same_architecture(models); });
  // Other widths are a matter of the method; more dimensions are not.
  const auto of_shape = [](std::vector<std::int64_t> shape) {
    torch::jit::Module net("Net");
    net.register_parameter("w", at::rand(shape), false);
    net.define("def forward(self, x):\n    return x\n");
    return ScriptModel(net, std::to_string(shape.size()) + "-dimensional");
  };
  expect_error(ErrorKind::kInput, {"w: shape [3, 4], [3, 3] wanted", "width", "\"zip\""}, [&] {
    check_same_architecture({of_shape({3, 3}), of_shape({3, 4})});
  });
  expect_error(ErrorKind::kInput, {"3-dimensional", "only networks of one architecture"}, [&] {
    check_same_architecture({of_shape({3, 3}), of_shape({3, 3, 1})});
  });
  expect_error(ErrorKind::kInput, {"relu", "tanh", "export both", "\"weights\""}, [&] {
    check_same_architecture({activated("relu"), activated("tanh")});
  });
  CHECK_NOTHROW(check_same_architecture({activated("relu"), activated("relu")}));
  const ScriptModel half = activated("relu", at::kHalf);
  expect_error(ErrorKind::kInput, {"w: Half, there Float", "one data type"}, [&] {
    check_same_architecture({activated("relu"), half});
  });
  CHECK_NOTHROW(check_same_architecture({half, half}));
  for (const Network& network : kNetworks)
    CHECK_NOTHROW(check_same_architecture({build(network, 1), build(network, 2)}));
  const ScriptModel anonymous(build_builtin("mlp", json::object(), 0), "some.pt");
  expect_error(ErrorKind::kConfig, {"some.pt", "inputs", "2x3x224x224"},
               [&] { unit_groups_for(anonymous, "auto"); });
  // Run once, its graph gives what is known of the builtin.
  const UnitGroups derived = unit_groups_for(anonymous, "auto", {at::rand({2, 1, 8, 8})});
  const UnitGroups known = builtin_unit_groups("mlp", json::object());
  REQUIRE(derived.groups.size() == known.groups.size());
  for (std::size_t g = 0; g < known.groups.size(); ++g)
    CHECK(derived.groups[g].units == known.groups[g].units);
}

TEST_CASE("lower precision is computed in float32 and given back as it was", "[merge]") {
  for (const at::ScalarType type : {at::kHalf, at::kBFloat16, at::kDouble}) {
    CAPTURE(c10::toString(type));
    ScriptModel model = build(kNetworks[1], 1);
    const TensorMap before = model.state_dict();
    std::map<std::string, at::Tensor> stored;
    {
      const at::NoGradGuard no_grad;
      for (auto [name, tensor] : model.parameters()) {
        stored[name] = tensor.detach().to(type);
        tensor.set_data(stored[name]);
      }
    }
    const DataTypes types = convert_to_float32(model);
    CHECK(types.size() == model.parameters().size());
    for (const auto& [name, tensor] : model.state_dict())
      if (tensor.is_floating_point()) CHECK(tensor.scalar_type() == at::kFloat);
    CHECK(model.state_dict().at("bn1.num_batches_tracked").scalar_type() == at::kLong);
    CHECK(model.forward(at::randn({2, 1, 8, 8})).isfinite().all().item<bool>());
    convert_back(model, types, "test");
    for (const auto& [name, tensor] : model.parameters()) {
      CHECK(tensor.scalar_type() == type);
      if (type != at::kDouble) CHECK(at::equal(tensor.detach(), stored.at(name)));
    }
    CHECK(model.state_dict().at("bn1.running_mean").scalar_type() == at::kFloat);
  }
  ScriptModel large = build(kNetworks[0], 1);
  const at::NoGradGuard no_grad;
  large.parameters().at("fc2.bias").fill_(1e6);
  expect_error(ErrorKind::kNumeric, {"test", "fc2.bias", "Half"}, [&] {
    convert_back(large, {{"fc2.bias", at::kHalf}}, "test");
  });
}

TEST_CASE("three models are aligned with each other and merged by their shares", "[merge]") {
  const Network& network = kNetworks[1];
  std::vector<ScriptModel> models{build(network, 1)};
  const UnitGroups groups = unit_groups_for(models.front(), "auto");
  for (const std::uint64_t seed : {2, 3})
    models.push_back(permuted(models.front(), groups, random_orders(groups, seed)));
  const NetworkStates states = states_of(models);
  NoProgress progress;
  const at::Tensor x = at::randn(network.input);
  const at::Tensor wanted = models.front().forward(x);
  for (const MergeMethod method : {MergeMethod::kAlign, MergeMethod::kZip}) {
    for (const AlignReference reference : {AlignReference::kFirst, AlignReference::kMean}) {
      CAPTURE(enum_name(method), enum_name(reference));
      MatchOptions options = weight_options(method);
      options.align.reference = reference;
      options.zip.a = 1;  // below 1 a third copy may be less like two than two strangers are
      const MatchResult result = match_units(states, groups, {}, options, progress);
      ScriptModel merged = models.front().clone();
      merged.load_state(merge_states(states.models, groups, result.matchings, {0.2, 0.5, 0.3}),
                        "merged");
      CHECK((merged.forward(x) - wanted).abs().max().item<double>() < 1e-4);
      // Cycle-consistent: model 2 seen through model 1 is model 2 seen from model 0.
      if (method == MergeMethod::kAlign)
        for (const Matching& m : result.matchings) CHECK(m.is_permutation());
      const SpaceAgreement agreement =
          space_agreement(states, groups, {}, result.matchings, SimilarityMeasure::kCorrelation,
                          similarity_scope(method, reference, 3), progress);
      CHECK(agreement.weight == Approx(1).epsilon(1e-4));
      CHECK(agreement.activation == 0);
    }
  }
}

TEST_CASE("queries, keys and values keep one order of heads, unless each is to have its own",
          "[merge]") {
  const Network vit{"vit",
                    {{"image", 8},
                     {"patch", 4},
                     {"dim", 24},
                     {"depth", 2},
                     {"heads", 6},
                     {"mlp", 20},
                     {"channels", 1}},
                    {2, 1, 8, 8}};
  const std::vector<ScriptModel> models{build(vit, 1), build(vit, 2)};
  const UnitGroups groups = unit_groups_for(models.front(), "auto", {at::rand(vit.input)});
  const NetworkStates states = states_of(models);
  NoProgress progress;
  std::map<std::string, std::size_t> by_name;
  for (std::size_t g = 0; g < groups.groups.size(); ++g) by_name[groups.groups[g].name] = g;
  for (const AttentionHeads heads : {AttentionHeads::kTied, AttentionHeads::kIndependent}) {
    MatchOptions options = weight_options(MergeMethod::kAlign);
    options.attention_heads = heads;
    const MatchResult result = match_units(states, groups, {}, options, progress);
    std::int64_t inside = 0, strayed = 0;  // units within a head, and those beside another one
    for (std::size_t g = 0; g < groups.groups.size(); ++g) {
      const UnitGroup& group = groups.groups[g];
      if (group.within.empty()) continue;
      const std::int64_t size = group.units / group.blocks;
      const auto head = result.matchings[by_name.at(group.within)].unit_of(1);
      const auto unit = result.matchings[g].unit_of(1);
      for (std::int64_t u = 0; u < group.units; ++u) {
        ++inside;
        if (unit[u] / size != head[u / size]) ++strayed;
      }
    }
    CHECK(inside == 2 * 2 * 24);  // layers, groups each, units
    CHECK((strayed > 0) == (heads == AttentionHeads::kIndependent));
  }
}

}  // namespace
}  // namespace weightsmith
