#include "weightsmith/graph/unit_groups.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include <catch2/catch.hpp>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "support/builtin_cases.h"
#include "support/expect_error.h"
#include "support/temporary_folder.h"
#include "weightsmith/core/error.h"
#include "weightsmith/core/rng.h"
#include "weightsmith/model/builtin.h"

using namespace weightsmith;
using nlohmann::json;

namespace {

/// order[u] = the old unit that stands at u afterwards; blocks move as wholes.
std::vector<std::int64_t> block_permutation(const UnitGroup& group, Rng& rng) {
  const std::int64_t size = group.units / group.blocks;
  std::vector<std::int64_t> order;
  for (const std::int64_t block : random_permutation(group.blocks, rng))
    for (const std::int64_t unit : random_permutation(size, rng))
      order.push_back(block * size + unit);
  return order;
}

/// Moves the elements of one member one by one.
void permute_member(const GroupMember& member, const std::vector<std::int64_t>& order,
                    TensorMap& state) {
  at::NoGradGuard no_grad;
  at::Tensor tensor = state.at(member.parameter);
  const at::Tensor before = tensor.clone();
  const std::int64_t k = member.length / static_cast<std::int64_t>(order.size());
  for (std::size_t u = 0; u < order.size(); ++u)
    for (std::int64_t j = 0; j < k; ++j)
      tensor.select(member.axis, member.offset + static_cast<std::int64_t>(u) * k + j)
          .copy_(before.select(member.axis, member.offset + order[u] * k + j));
}

double relative_change(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).abs().max() / a.abs().max()).item<double>();
}

GroupMember stretch(const std::string& parameter, std::int64_t axis, std::int64_t offset,
                    std::int64_t length) {
  GroupMember member;
  member.parameter = parameter;
  member.axis = axis;
  member.offset = offset;
  member.length = length;
  member.role = MemberRole::kIn;
  return member;
}

json small_file() {
  return json::parse(R"({"groups": [{"name": "fc1", "units": 4, "tap": "fc2.weight/input",
      "members": [{"parameter": "fc1.weight", "axis": 0}, {"parameter": "fc1.bias", "axis": 0},
                  {"parameter": "fc2.weight", "axis": 1}]}]})");
}

TensorMap small_state() {
  return {{"fc1.weight", at::zeros({4, 3})},
          {"fc1.bias", at::zeros({4})},
          {"fc2.weight", at::zeros({2, 8})}};
}

}  // namespace

TEST_CASE("permuting a group's units leaves a builtin's outputs unchanged", "[unit_groups]") {
  at::NoGradGuard no_grad;
  at::manual_seed(3);
  Rng rng(7);
  for (const auto& c : testing::builtin_cases()) {
    INFO(c.describe());
    torch::jit::Module module = build_builtin(c.name, c.options, 0);
    testing::randomise_in_double(module);
    TensorMap state = testing::state_of(module);
    const UnitGroups groups =
        check_unit_groups(builtin_unit_groups(c.name, c.options), state, c.name);
    const at::Tensor input = at::randn(c.input, at::kDouble);
    const at::Tensor expected = module.forward({input}).toTensor().clone();

    for (const UnitGroup& group : groups.groups) {
      INFO(group.name);
      TensorMap saved;
      for (const GroupMember& m : group.members) saved[m.parameter] = state.at(m.parameter).clone();
      const auto restore = [&] {
        for (auto& [name, value] : saved) state.at(name).copy_(value);
      };
      // The identity moves nothing, and a small group can draw it.
      auto order = block_permutation(group, rng);
      while (std::is_sorted(order.begin(), order.end())) order = block_permutation(group, rng);

      for (const GroupMember& m : group.members) permute_member(m, order, state);
      CHECK(relative_change(expected, module.forward({input}).toTensor()) < 1e-10);
      restore();

      for (std::size_t omitted = 0; omitted < group.members.size(); ++omitted) {
        INFO("without " << group.members[omitted].parameter);
        for (std::size_t i = 0; i < group.members.size(); ++i)
          if (i != omitted) permute_member(group.members[i], order, state);
        CHECK(relative_change(expected, module.forward({input}).toTensor()) > 1e-7);
        restore();
      }
    }
  }
}

TEST_CASE("every hidden axis of a builtin belongs to a group", "[unit_groups]") {
  for (const auto& c : testing::builtin_cases()) {
    INFO(c.describe());
    const torch::jit::Module module = build_builtin(c.name, c.options, 0);
    std::set<std::pair<std::string, std::int64_t>> covered;
    for (const UnitGroup& group : builtin_unit_groups(c.name, c.options).groups)
      for (const GroupMember& m : group.members) covered.insert({m.parameter, m.axis});
    std::size_t free_axes = 0;
    for (const auto& [name, tensor] : testing::state_of(module))
      for (std::int64_t axis = 0; axis < std::min<std::int64_t>(tensor.dim(), 2); ++axis)
        free_axes += covered.count({name, axis}) == 0 ? 1 : 0;
    CHECK(free_axes == 3);  // the network's input, and its output twice (weight and bias)
  }
}

TEST_CASE("the groups of resnet20", "[unit_groups]") {
  const UnitGroups groups = builtin_unit_groups("resnet20", {{"width", 2}});
  std::vector<std::string> names;
  for (const UnitGroup& g : groups.groups) names.push_back(g.name);
  CHECK(names == std::vector<std::string>{"conv1", "layer1.0.conv1", "layer1.1.conv1",
                                          "layer1.2.conv1", "layer2.0.conv1", "layer2.0.conv2",
                                          "layer2.1.conv1", "layer2.2.conv1", "layer3.0.conv1",
                                          "layer3.0.conv2", "layer3.1.conv1", "layer3.2.conv1"});
  CHECK(groups.groups[0].units == 32);
  REQUIRE(groups.groups[0].taps.size() == 1);
  CHECK(groups.groups[0].taps[0].at == "layer2.0.downsample.0.weight/input");
  CHECK(groups.groups[0].taps[0].axes.empty());
  CHECK(groups.groups[9].units == 128);
  REQUIRE(groups.groups[9].taps.size() == 1);
  CHECK(groups.groups[9].taps[0].at == "fc.weight/input");
  CHECK(builtin_unit_groups("resnet20", {{"norm", "group"}}).groups[0].blocks == 8);
}

TEST_CASE("group files read, fill in defaults and round-trip", "[unit_groups]") {
  const UnitGroups read = unit_groups_from_json(small_file(), "g.json");
  REQUIRE(read.groups.size() == 1);
  CHECK(read.groups[0].blocks == 1);
  CHECK(read.groups[0].members[0].role == MemberRole::kOut);
  CHECK(read.groups[0].members[2].role == MemberRole::kIn);
  CHECK(read.groups[0].members[2].length == 0);
  const UnitGroups checked = check_unit_groups(read, small_state(), "g.json");
  CHECK(checked.describe(checked.groups[0]) == "g.json: group \"fc1\"");
  CHECK(checked.groups[0].members[2].length == 8);

  const json written = unit_groups_to_json(checked);
  CHECK(unit_groups_to_json(unit_groups_from_json(written, "again")) == written);

  json extended = written;
  extended["proof"] = {{"max_relative_change", 0.0}};
  extended["groups"][0]["tap"] = {"a/input", "b/input"};
  CHECK(unit_groups_from_json(extended, "g.json").groups[0].taps.size() == 2);

  testing::TemporaryFolder folder;
  std::ofstream(folder.path() / "g.json") << extended.dump(2);
  CHECK(read_unit_groups(folder.path() / "g.json").groups[0].units == 4);
  std::ofstream(folder.path() / "bad.json") << "{";
  CHECK_THROWS_AS(read_unit_groups(folder.path() / "bad.json"), Error);
  CHECK_THROWS_AS(read_unit_groups(folder.path() / "none.json"), Error);
}

TEST_CASE("positions, convolution groups, heads and taps' axes round-trip", "[unit_groups]") {
  const json file = json::parse(R"({"groups": [
      {"name": "heads", "units": 2, "members": []},
      {"name": "fc1", "units": 4, "blocks": 2, "within": "heads",
       "tap": [{"at": "#7/input.0", "axes": [1, 3], "index": [3, 1, 0, 2]}, "fc2.weight/input",
               {"at": "#8/input.1", "axes": [2]}],
       "members": [{"parameter": "fc1.weight", "axis": 0, "index": [3, 1, 2, 0]},
                   {"parameter": "fc2.weight", "axis": 1, "groups": 2},
                   {"parameter": "fc3.weight", "axis": 1, "index": [5, 2, 6, 3]}]}]})");
  const TensorMap state{{"fc1.weight", at::zeros({4, 3})},
                        {"fc2.weight", at::zeros({6, 2, 3, 3})},
                        {"fc3.weight", at::zeros({2, 8})}};
  const UnitGroups read = check_unit_groups(unit_groups_from_json(file, "g.json"), state, "net");
  REQUIRE(read.groups.size() == 2);
  const UnitGroup& group = read.groups[1];
  CHECK(group.within == "heads");
  REQUIRE(group.members.size() == 3);
  CHECK(group.members[0].index == std::vector<std::int64_t>{3, 1, 2, 0});
  CHECK(group.members[0].offset == 0);
  CHECK(group.members[0].length == 4);
  CHECK(group.members[1].groups == 2);
  CHECK(group.members[1].length == 4);  // twice the axis
  CHECK(group.members[2].offset == 2);
  CHECK(group.members[2].length == 4);
  REQUIRE(group.taps.size() == 3);
  CHECK(group.taps[0].at == "#7/input.0");
  CHECK(group.taps[0].axes == std::vector<std::int64_t>{1, 3});
  CHECK(group.taps[0].index == std::vector<std::int64_t>{3, 1, 0, 2});
  CHECK(group.taps[1].at == "fc2.weight/input");
  CHECK(group.taps[1].axes.empty());
  CHECK(group.taps[2].axes == std::vector<std::int64_t>{2});
  CHECK(group.taps[2].index.empty());

  const json written = unit_groups_to_json(read);
  CHECK(written["groups"][1]["tap"] == file["groups"][1]["tap"]);
  CHECK(written["groups"][1]["members"][0]["index"] == json({3, 1, 2, 0}));
  CHECK(written["groups"][1]["members"][1]["groups"] == 2);
  CHECK(written["groups"][1]["within"] == "heads");
  CHECK(unit_groups_to_json(unit_groups_from_json(written, "again")) == written);

  using Catch::Contains;
  const auto refuse = [&](const std::function<void(json&)>& damage) {
    json damaged = file;
    damage(damaged);
    return testing::error_of(ErrorKind::kInput, [&] {
      (void)check_unit_groups(unit_groups_from_json(damaged, "g.json"), state, "net");
    });
  };
  CHECK_THAT(refuse([](json& f) { f["groups"][1]["within"] = "nobody"; }),
             Contains("group \"heads\": \"members\" is empty"));
  CHECK_THAT(refuse([](json& f) { f["groups"][0]["units"] = 3; }), Contains("\"within\""));
  CHECK_THAT(refuse([](json& f) { f["groups"][1].erase("within"); }),
             Contains("group \"heads\": \"members\" is empty"));
  CHECK_THAT(refuse([](json& f) { f["groups"][1]["members"][2]["index"][1] = 8; }),
             Contains("outside the axis of 8"));
  CHECK_THAT(refuse([](json& f) { f["groups"][1]["members"][2]["index"][1] = -1; }),
             Contains("at least 0"));
  CHECK_THAT(refuse([](json& f) { f["groups"][1]["members"][2]["index"][1] = 5; }),
             Contains("fc3.weight"));
  CHECK_THAT(refuse([](json& f) { f["groups"][1]["members"][1]["groups"] = 4; }),
             Contains("\"groups\": 4"));
  CHECK_THAT(refuse([](json& f) {
               f["groups"][1]["tap"][0]["axes"] = {3, 1};
             }),
             Contains("tap 0") && Contains("ascend"));
  CHECK_THAT(refuse([](json& f) { f["groups"][1]["tap"][0].erase("axes"); }),
             Contains("\"index\" needs \"axes\""));
}

TEST_CASE("malformed group files are refused by name", "[unit_groups]") {
  using Catch::Contains;
  const auto refuse = [](const std::function<void(json&)>& damage) {
    json file = small_file();
    damage(file);
    return testing::error_of(ErrorKind::kInput, [&] { unit_groups_from_json(file, "g.json"); });
  };
  CHECK_THAT(refuse([](json& f) { f["group"] = 1; }), Contains("did you mean \"groups\"?"));
  CHECK_THAT(refuse([](json& f) { f = json::array(); }), Contains("g.json: expected an object"));
  CHECK_THAT(refuse([](json& f) { f.erase("groups"); }), Contains("\"groups\" is missing"));
  CHECK_THAT(refuse([](json& f) { f["groups"][0].erase("name"); }), Contains("group 0"));
  CHECK_THAT(refuse([](json& f) { f["groups"][0]["units"] = 0; }),
             Contains("group \"fc1\"") && Contains("\"units\""));
  CHECK_THAT(refuse([](json& f) { f["groups"][0]["blocks"] = 3; }), Contains("equal blocks"));
  CHECK_THAT(refuse([](json& f) { f["groups"][0]["tap"] = 3; }), Contains("\"tap\""));
  CHECK_THAT(refuse([](json& f) { f["groups"][0]["members"] = json::array(); }),
             Contains("\"members\" is empty"));
  CHECK_THAT(refuse([](json& f) { f["groups"][0]["members"][1]["axis"] = -1; }),
             Contains("member 1") && Contains("found -1"));
  CHECK_THAT(refuse([](json& f) { f["groups"][0]["members"][1]["role"] = "both"; }),
             Contains("\"both\""));
  CHECK_THAT(refuse([](json& f) { f["groups"].push_back(f["groups"][0]); }),
             Contains("two groups are called \"fc1\""));
}

TEST_CASE("groups that do not fit a network are refused by name", "[unit_groups]") {
  using Catch::Contains;
  const auto refuse = [](const std::function<void(UnitGroups&)>& damage) {
    UnitGroups groups = unit_groups_from_json(small_file(), "g.json");
    damage(groups);
    return testing::error_of(ErrorKind::kInput,
                             [&] { (void)check_unit_groups(groups, small_state(), "net.pt"); });
  };
  CHECK_THAT(refuse([](UnitGroups& g) { g.groups[0].members[1].parameter = "fc1.bais"; }),
             Contains("net.pt: group \"fc1\"") && Contains("did you mean \"fc1.bias\"?"));
  CHECK_THAT(refuse([](UnitGroups& g) { g.groups[0].members[1].axis = 1; }),
             Contains("1 dimensions"));
  CHECK_THAT(refuse([](UnitGroups& g) { g.groups[0].members[2].offset = 5; }),
             Contains("3 elements are not a multiple"));
  CHECK_THAT(refuse([](UnitGroups& g) { g.groups[0].members[2].length = 12; }),
             Contains("outside the axis of 8"));
  // offset + length would overflow.
  CHECK_THAT(refuse([](UnitGroups& g) {
               g.groups[0].members[2].offset = std::numeric_limits<std::int64_t>::max() - 7;
               g.groups[0].members[2].length = 16;
             }),
             Contains("outside the axis of 8"));
  CHECK_THAT(
      refuse([](UnitGroups& g) { g.groups[0].members.push_back(stretch("fc2.weight", 1, 4, 4)); }),
      Contains("already belong to group \"fc1\""));
  CHECK_THAT(refuse([](UnitGroups& g) {
               g.groups[0].members[2] = stretch("fc2.weight", 1, 4, 4);
               g.groups[0].members.push_back(stretch("fc2.weight", 1, 0, 8));
             }),
             Contains("already belong"));
}
