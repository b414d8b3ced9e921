#include "weightsmith/merge/widths.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "support/expect_error.h"
#include "support/networks.h"
#include "weightsmith/core/rng.h"
#include "weightsmith/graph/unit_orders.h"
#include "weightsmith/merge/mudsc.h"
#include "weightsmith/merge/networks.h"
#include "weightsmith/merge/statistics.h"
#include "weightsmith/merge/transform.h"
#include "weightsmith/model/builtin.h"

namespace weightsmith {
namespace {

using nlohmann::json;
using testing::expect_error;

ScriptModel builtin(const std::string& name, const json& chosen, std::uint64_t seed) {
  const json options = builtin_options(name, chosen);
  ScriptModel model(build_builtin(name, options, seed), name,
                    {{"builtin", name}, {"options", options}});
  // Norms start as ones and zeros: give every unit a face.
  at::manual_seed(seed);
  const at::NoGradGuard no_grad;
  for (auto& [key, tensor] : model.state_dict())
    if (tensor.is_floating_point() && tensor.dim() == 1) tensor.copy_(at::rand_like(tensor) + 0.5);
  return model;
}

/// `wide` becomes the function of `narrow`: each unit stands in it `times` times, side by side, and
/// whoever reads it takes a share of every copy.
void fill_with_copies(ScriptModel& wide, const ScriptModel& narrow, const UnitGroups& groups,
                      std::int64_t times) {
  TensorMap state = narrow.state_dict();
  for (const UnitGroup& group : groups.groups)
    for (const GroupMember& member : group.members) {
      at::Tensor& tensor = state.at(member.parameter);
      const std::int64_t k = member.length / group.units;
      std::vector<std::int64_t> index;
      for (std::int64_t u = 0; u < group.units; ++u)
        for (std::int64_t copy = 0; copy < times; ++copy)
          for (std::int64_t j = 0; j < k; ++j) index.push_back(u * k + j);
      REQUIRE(member.length == tensor.size(member.axis));
      tensor = tensor.index_select(member.axis, at::tensor(index, at::kLong));
      if (member.role == MemberRole::kIn) tensor = tensor / static_cast<double>(times);
    }
  wide.load_state(state, "copies");
}

}  // namespace

TEST_CASE("a network zips with a wider copy of itself without a loss", "[merge]") {
  struct Case {
    const char* name;
    json narrow;
    json wide;
    std::vector<std::int64_t> input;
  };
  const std::vector<Case> cases{
      {"mlp",
       {{"inputs", 20}, {"hidden", {12, 8}}, {"outputs", 5}},
       {{"inputs", 20}, {"hidden", {24, 16}}, {"outputs", 5}},
       {4, 20}},
      {"resnet20",
       {{"depth", 8}, {"width", 0.5}, {"outputs", 6}},
       {{"depth", 8}, {"width", 1}, {"outputs", 6}},
       {4, 3, 12, 12}},
      {"vgg11",
       {{"width", 0.0625}, {"outputs", 6}, {"norm", "none"}},
       {{"width", 0.125}, {"outputs", 6}, {"norm", "none"}},
       {2, 3, 32, 32}},
  };
  NoProgress progress;
  for (const Case& c : cases) {
    CAPTURE(c.name);
    std::vector<ScriptModel> models{builtin(c.name, c.narrow, 1), builtin(c.name, c.wide, 2)};
    UnitGroups groups = unit_groups_for(models[0], "auto");
    fill_with_copies(models[1], models[0], groups, 2);
    const at::Tensor x = at::randn(c.input);
    const at::Tensor wanted = models[0].forward(x);
    REQUIRE(at::allclose(models[1].forward(x), wanted, 1e-4, 1e-4));
    // The copies must be found, not stand where they are looked for.
    const UnitGroups of_wide = unit_groups_for(models[1], "auto");
    TensorMap state = models[1].state_dict();
    Rng rng(3);
    for (const auto& [name, tensor] : permuted_state(state, of_wide, random_orders(of_wide, rng)))
      state[name] = tensor;
    models[1].load_state(state, "permuted");

    check_same_architecture(models, /*sizes_may_differ=*/true);
    REQUIRE(find_widths(groups, models));
    for (const UnitGroup& group : groups.groups)
      CHECK(group.widths == std::vector<std::int64_t>{group.units, 2 * group.units});
    CHECK(unit_groups_to_json(groups_of_model(groups, 1)) == unit_groups_to_json(of_wide));

    Dataset data;
    data.images = at::randn([&] {
      auto shape = c.input;
      shape[0] = 60;
      return shape;
    }());
    data.labels = at::zeros({60}, at::kLong);
    data.classes = 1;
    const std::vector<PackedSimilarity> activation =
        activation_similarity(models, groups, data, {.batch_size = 20}, at::kCPU, progress);

    // The width of the narrow network, and the mean of both.
    for (const auto& [space, reduce] :
         {std::pair{MergeSpace::kWeight, 2.0 / 3}, std::pair{MergeSpace::kActivation, 0.5}}) {
      CAPTURE(enum_name(space), reduce);
      MatchOptions options;
      options.variant = {MergeMethod::kZip, space, 0.5};
      options.zip.reduce = reduce;
      options.zip.a = 1;  // clusters of three are as welcome as pairs
      const MatchResult matched =
          match_units(states_of(models), groups, activation, options, progress);
      const auto units = merged_units(matched.matchings);
      CHECK(units == zipped_units(groups, 2, reduce));
      ScriptModel merged = models[0].clone();
      const TensorMap weights = merge_states(states_of(models).models, groups, matched.matchings);
      if (changes_width(groups, units))
        merged.replace_state(weights);
      else
        merged.load_state(weights, "merged");
      try_other_widths(merged, models[0], resized_groups(groups, units), {x}, progress);
      CHECK(at::allclose(merged.forward(x), wanted, 1e-3, 1e-3));
    }
  }
}

TEST_CASE("shapes that no widths explain are refused, with the tensor named", "[merge]") {
  const json small = {{"inputs", 20}, {"hidden", {12, 8}}, {"outputs", 5}};
  std::vector<ScriptModel> models{builtin("mlp", small, 1)};
  UnitGroups groups = unit_groups_for(models[0], "auto");
  const auto refused = [&](const json& other, const std::vector<std::string>& words) {
    models.resize(1, models[0]);
    models.push_back(builtin("mlp", other, 2));
    expect_error(ErrorKind::kInput, words, [&] {
      UnitGroups copy = groups;
      find_widths(copy, models);
    });
  };
  refused({{"inputs", 21}, {"hidden", {12, 8}}, {"outputs", 5}}, {"weight", "no widths"});
  refused({{"inputs", 20}, {"hidden", {12, 8}}, {"outputs", 6}}, {"no widths"});
}

TEST_CASE("units in blocks must be as many in every model", "[merge]") {
  const auto normed = [](double width, std::uint64_t seed) {
    return builtin(
        "resnet20",
        {{"depth", 8}, {"width", width}, {"outputs", 6}, {"norm", "group"}, {"groups", 4}}, seed);
  };
  const std::vector<ScriptModel> models{normed(0.5, 1), normed(1, 2)};
  UnitGroups groups = unit_groups_for(models[0], "auto");
  expect_error(ErrorKind::kInput, {"resnet20", "stand in blocks", "equally wide"},
               [&] { find_widths(groups, models); });
}

TEST_CASE("groups whose number of units cannot change are named", "[merge]") {
  UnitGroups groups;
  groups.groups.push_back({"heads", 2, 1, {}, {}, "", {}});
  groups.groups.push_back(
      {"values", 8, 2, {{"v", 0, 0, 8, MemberRole::kOut, {}, 1}}, {}, "heads", {}});
  groups.groups.push_back(
      {"mixed", 2, 1, {{"m", 0, 0, 2, MemberRole::kOut, {1, 0}, 1}}, {}, "", {}});
  CHECK_FALSE(changes_width(groups, {2, 8, 2}));
  CHECK(changes_width(groups, {2, 6, 2}));
  expect_error(ErrorKind::kInput, {"group heads", "blocks of group values"}, [&] {
    changes_width(groups, {1, 8, 2});
  });
  expect_error(ErrorKind::kInput, {"group values", "2 equal blocks"}, [&] {
    changes_width(groups, {2, 7, 2});
  });
  expect_error(ErrorKind::kInput, {"group mixed", "places of their own along m"}, [&] {
    changes_width(groups, {2, 8, 1});
  });
}

TEST_CASE("a zip that leaves a layer no unit names the key and its range", "[merge]") {
  UnitGroups groups;
  groups.groups.push_back({"fc1", 16, 1, {{"a", 0, 0, 16, MemberRole::kOut, {}, 1}}, {}, "", {}});
  groups.groups.push_back({"heads", 2, 1, {}, {}, "", {}});
  groups.groups.push_back(
      {"values", 6, 2, {{"v", 0, 0, 6, MemberRole::kOut, {}, 1}}, {}, "heads", {}});
  const auto refused = [&](double reduce) {
    expect_error(ErrorKind::kConfig,
                 {"zip.reduce: ", "none of the 6 units of group \"values\"", "[0, 0.8333]"},
                 [&] { zipped_units(groups, 2, reduce); });
  };
  refused(0.99);
  refused(0.84);
  CHECK(zipped_units(groups, 2, 0.8333) == std::vector<std::int64_t>{5, 2, 2});
}

TEST_CASE("a graph that has a width built in is noticed", "[merge]") {
  NoProgress progress;
  const testing::Shapes shapes{{"fc1.weight", {6, 4}}, {"fc2.weight", {3, 6}}};
  const auto attempt = [&](const std::string& forward) {
    const ScriptModel original(testing::make_network(shapes, forward), "net");
    ScriptModel merged = original.clone();
    TensorMap state = merged.state_dict();
    state["fc1.weight"] = at::randn({3, 4});
    state["fc2.weight"] = at::randn({3, 3});
    merged.replace_state(state);
    UnitGroups groups;
    groups.groups.push_back({"fc1",
                             3,
                             1,
                             {{"fc1.weight", 0, 0, 3, MemberRole::kOut, {}, 1},
                              {"fc2.weight", 1, 0, 3, MemberRole::kIn, {}, 1}},
                             {},
                             "",
                             {}});
    try_other_widths(merged, original, groups, {at::randn({4, 4})}, progress);
  };
  attempt("return torch.linear(torch.linear(x, self.fc1.weight), self.fc2.weight)\n");
  const std::vector<std::string> words{"the merged network", "by scripting"};
  // Halves of two samples make one row: everything runs, on other samples.
  expect_error(ErrorKind::kInput, words, [&] {
    attempt(
        "h = torch.reshape(torch.linear(x, self.fc1.weight), [-1, 6])\n"
        "return torch.linear(h[:, :self.fc2.weight.size(1)], self.fc2.weight)\n");
  });
  expect_error(ErrorKind::kInput, words, [&] {
    attempt(
        "h = torch.reshape(torch.linear(x, self.fc1.weight), [4, 6])\n"
        "return torch.linear(h, self.fc2.weight)\n");
  });
}

TEST_CASE("stretches move with those before them on their axis", "[merge]") {
  UnitGroups groups;
  groups.groups.push_back({"a", 3, 1, {{"w", 1, 2, 6, MemberRole::kIn, {}, 1}}, {}, "", {}});
  groups.groups.push_back({"b", 2, 1, {{"w", 1, 8, 2, MemberRole::kIn, {}, 1}}, {}, "", {}});
  const UnitGroups resized = resized_groups(groups, {5, 1});
  CHECK(resized.groups[0].members[0].offset == 2);
  CHECK(resized.groups[0].members[0].length == 10);
  CHECK(resized.groups[1].members[0].offset == 12);
  CHECK(resized.groups[1].members[0].length == 1);
  CHECK(resized.groups[0].units == 5);
}

}  // namespace weightsmith
