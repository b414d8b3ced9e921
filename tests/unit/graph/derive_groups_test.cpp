#include "weightsmith/graph/derive_groups.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>
#include <set>

#include "support/builtin_cases.h"
#include "support/expect_error.h"
#include "unit/graph/derived_network.h"
#include "weightsmith/core/error.h"
#include "weightsmith/graph/unit_orders.h"
#include "weightsmith/model/builtin.h"
#include "weightsmith/model/taps.h"

using namespace weightsmith;
using testing::DerivedNetwork;
using testing::make_network;

namespace {

/// Units, blocks and member stretches of every group; names and orders do not matter.
std::set<std::string> contents(const UnitGroups& groups) {
  std::set<std::string> all;
  for (const UnitGroup& group : groups.groups) {
    std::set<std::string> stretches;
    for (const GroupMember& m : group.members) {
      CHECK(m.index.empty());
      CHECK(m.groups == 1);
      stretches.insert(
          fmt::format("{}@{}[{}:{}]", m.parameter, m.axis, m.offset, m.offset + m.length));
    }
    all.insert(fmt::format("{}/{}: {}", group.units, group.blocks, fmt::join(stretches, " ")));
  }
  return all;
}

/// A value's units in a matrix (units, what else there is), as a tap says where they stand; each
/// unit's k places one after another.
at::Tensor units_of(const at::Tensor& value, const UnitTap& tap, std::int64_t units) {
  std::vector<std::int64_t> order;
  std::int64_t places = 1;
  for (const std::int64_t axis : tap.axes) {
    order.push_back(axis);
    places *= value.size(axis);
  }
  for (std::int64_t d = 0; d < value.dim(); ++d)
    if (std::find(tap.axes.begin(), tap.axes.end(), d) == tap.axes.end()) order.push_back(d);
  at::Tensor rows = value.permute(order).reshape({places, -1});
  if (!tap.index.empty()) rows = rows.index_select(0, at::tensor(tap.index, at::kLong));
  REQUIRE(rows.size(0) % units == 0);
  return rows.reshape({units, -1});
}

}  // namespace

TEST_CASE("the groups derived from a builtin are those written for it", "[derive_groups]") {
  at::manual_seed(1);
  for (const auto& c : testing::builtin_cases()) {
    INFO(c.describe());
    const torch::jit::Module module = build_builtin(c.name, c.options, 0);
    const DerivedNetwork net(module, {at::randn(c.input)});
    CHECK(contents(net.groups) ==
          contents(check_unit_groups(builtin_unit_groups(c.name, c.options), net.state, c.name)));
    CHECK(net.derivation.pinned_units == 0);
    std::int64_t units = 0;
    for (const UnitGroup& group : net.groups.groups) units += group.units;
    CHECK(net.derivation.free_units == units);
    testing::check_proved(net);
  }
}

TEST_CASE("the groups of deep networks are derived and proved", "[derive_groups]") {
  at::manual_seed(4);
  for (const auto& c : testing::derived_builtin_cases()) {
    INFO(c.describe());
    CHECK_FALSE(has_written_groups(c.name));
    const torch::jit::Module module = build_builtin(c.name, c.options, 0);
    const DerivedNetwork net(module, {at::randn(c.input)});
    CHECK(net.derivation.pinned_units == 0);
    CHECK(net.groups.groups.size() > 8);
    testing::check_proved(net);
  }
}

TEST_CASE("groups that lack a member or hold a wrong one fail the proof by name",
          "[derive_groups]") {
  at::manual_seed(2);
  const torch::jit::Module module = build_builtin("convnet", {{"width", 6}}, 0);
  const DerivedNetwork net(module, {at::randn({3, 1, 8, 8})});
  const ScriptModel model(module, "net");
  NoProgress progress;
  const auto prove = [&](const UnitGroups& groups) {
    return prove_unit_groups(model, groups, net.inputs, {}, progress);
  };
  for (std::size_t g = 0; g < net.groups.groups.size(); ++g) {
    const UnitGroup& group = net.groups.groups[g];
    for (std::size_t m = 0; m < group.members.size(); ++m) {
      INFO(group.name << " without " << group.members[m].parameter);
      UnitGroups damaged = net.groups;
      auto& members = damaged.groups[g].members;
      members.erase(members.begin() + static_cast<std::ptrdiff_t>(m));
      const GroupProof proof = prove(damaged);
      CHECK(proof.failed == std::vector<std::string>{group.name});
      CHECK_FALSE(proof.holds());
      CHECK(proof.max_relative_change > 1e-6);
    }
  }
  // Without a look at each group, all together are still found wrong, and the one is named.
  UnitGroups damaged = net.groups;
  damaged.groups[0].members.pop_back();
  ProofOptions quick;
  quick.each_group = false;
  const GroupProof proof = prove_unit_groups(model, damaged, net.inputs, quick, progress);
  CHECK(proof.failed == std::vector<std::string>{net.groups.groups[0].name});
  CHECK(prove_unit_groups(model, net.groups, net.inputs, quick, progress).holds());

  // A group norm's groups are no units that may leave them.
  const nlohmann::json options{{"width", 6}, {"norm", "group"}, {"groups", 3}};
  const torch::jit::Module with_blocks = build_builtin("convnet", options, 0);
  UnitGroups flat = derive_unit_groups(with_blocks, "net", net.inputs).groups;
  REQUIRE(flat.groups[0].blocks == 3);
  flat.groups[0].blocks = 1;
  ProofOptions other;
  other.seed = 1;
  CHECK(prove_unit_groups(ScriptModel(with_blocks, "net"), flat, net.inputs, other, progress)
            .failed == std::vector<std::string>{flat.groups[0].name});
}

TEST_CASE("of groups that hold alone but not together, the one that breaks the others is named",
          "[derive_groups]") {
  // The product is zero until both pairs have changed places.
  const torch::jit::Module module = make_network(
      {},
      "def forward(self, x):\n"
      "    both = torch.relu(self.a[1] - self.a[0]) * torch.relu(self.b[1] - self.b[0])\n"
      "    return x * self.c.sum() + both\n",
      {{"a", at::tensor({9.0F, 1.0F})}, {"b", at::tensor({9.0F, 1.0F})}, {"c", at::rand({4})}});
  UnitGroups groups;
  for (const char* name : {"a", "b", "c"}) {
    GroupMember member;
    member.parameter = name;
    member.length = std::string(name) == "c" ? 4 : 2;
    UnitGroup& group = groups.groups.emplace_back();
    group.name = name;
    group.units = member.length;
    group.members.push_back(member);
  }
  NoProgress progress;
  const GroupProof proof =
      prove_unit_groups(ScriptModel(module, "net"), groups, {at::ones({2})}, {}, progress);
  CHECK(proof.failed == std::vector<std::string>{"b"});
}

TEST_CASE("of integers as outputs, the floating values that decide them are compared",
          "[derive_groups]") {
  at::manual_seed(12);
  NoProgress progress;
  // Two samples of 40 classes: the place of the largest hardly ever tells a slip.
  const testing::Shapes shapes{{"a.weight", {8, 5}}, {"a.bias", {8}}, {"b.weight", {40, 8}}};
  const std::string logits =
      "y = torch.linear(torch.relu(torch.linear(x, self.a.weight, self.a.bias)), self.b.weight)\n";
  for (const char* result :
       {"y.argmax(1)", "torch.topk(y, 2, 1)[1]", "y > 100.", "(y.argmax(1) + 1).to(y.dtype)",
        "torch.topk(y, 2, 1)[1].unsqueeze(0), torch.zeros([2, 2])"}) {
    INFO(result);
    const DerivedNetwork net(make_network(shapes, logits + "return " + result),
                             {at::randn({2, 5})});
    INFO(net.describe());
    testing::check_proved(net);
    CHECK(net.derivation.free_units == 8);
    CHECK(net.proof.weak_outputs == 0);
    CHECK(net.proof.negative_control > 1e-4);
    UnitGroups damaged = net.groups;
    damaged.groups[0].members.erase(damaged.groups[0].members.begin() + 1);  // the bias
    const GroupProof proof =
        prove_unit_groups(ScriptModel(net.module, "net"), damaged, net.inputs, {}, progress);
    CHECK(proof.failed == std::vector<std::string>{"a"});
  }
  // A permutation of what decides them is none of the classes'.
  const DerivedNetwork hidden(
      make_network(shapes,
                   "h = torch.linear(x, self.a.weight, self.a.bias)\n"
                   "return (h > 0).any(1), torch.linear(h, self.b.weight)\n"),
      {at::randn({2, 5})});
  testing::check_proved(hidden);
  CHECK(hidden.derivation.free_units == 8);
  // Integers that nothing floating decides.
  const DerivedNetwork counted(
      make_network({{"e.weight", {10, 4}}},
                   "return x + int(torch.embedding(self.e.weight, x).sum())"),
      {at::randint(10, {2, 3}, at::kLong)});
  INFO(counted.describe());
  CHECK(counted.proof.weak_outputs == 1);
  CHECK_THAT(counted.proof.weakness(), Catch::Contains("1 outputs hold integers"));
}

TEST_CASE("what is derived can be written, read and proved again", "[derive_groups]") {
  at::manual_seed(3);
  const DerivedNetwork net(build_builtin("resnet20", {{"depth", 8}, {"width", 0.25}}, 0),
                           {at::randn({3, 3, 8, 8})});
  const UnitGroups again =
      check_unit_groups(unit_groups_from_json(unit_groups_to_json(net.derivation.groups), "g.json"),
                        net.state, "net");
  CHECK(unit_groups_to_json(again) == unit_groups_to_json(net.groups));
}

TEST_CASE("short group files with patterns stand for what is derived", "[derive_groups]") {
  at::manual_seed(4);
  const torch::jit::Module module = make_network({{"entry.weight", {6, 5}},
                                                  {"up1.weight", {8, 6}},
                                                  {"up1.bias", {8}},
                                                  {"down1.weight", {6, 8}},
                                                  {"up2.weight", {8, 6}},
                                                  {"up2.bias", {8}},
                                                  {"down2.weight", {6, 8}},
                                                  {"head.weight", {3, 6}}},
                                                 R"(h = torch.linear(x, self.entry.weight)
h = h + torch.linear(torch.relu(torch.linear(h, self.up1.weight, self.up1.bias)), self.down1.weight)
h = h + torch.linear(torch.relu(torch.linear(h, self.up2.weight, self.up2.bias)), self.down2.weight)
return torch.linear(h, self.head.weight)
)");
  const DerivedNetwork net(module, {at::randn({3, 5})});
  testing::check_proved(net);
  const auto file = nlohmann::json::parse(R"({"groups": [
      {"name": "stream", "units": 6, "members": [
         {"parameter": "*.weight", "axis": 0}]}]})");
  // "*" is one part of a name, and fits every weight: the hidden layers' do not have 6 outputs.
  CHECK_THAT(testing::error_of(ErrorKind::kInput,
                               [&] {
                                 (void)check_unit_groups(unit_groups_from_json(file, "g.json"),
                                                         net.state, "net");
                               }),
             Catch::Contains("stream") && Catch::Contains("not a multiple"));
  const auto good = nlohmann::json::parse(R"({"groups": [
      {"name": "stream", "units": 6, "members": [
         {"parameter": "entry.weight", "axis": 0}, {"parameter": "up*.weight", "axis": 1},
         {"parameter": "down*.weight", "axis": 0}, {"parameter": "head.weight", "axis": 1}]},
      {"name": "up*", "units": 8, "tap": "down*.weight/input", "members": [
         {"parameter": "up*.bias", "axis": 0}, {"parameter": "up*.weight", "axis": 0},
         {"parameter": "down*.weight", "axis": 1}]}]})");
  const UnitGroups expanded =
      check_unit_groups(unit_groups_from_json(good, "g.json"), net.state, "net");
  REQUIRE(expanded.groups.size() == 3);
  CHECK(expanded.groups[1].name == "up1");
  CHECK(expanded.groups[2].name == "up2");
  CHECK(expanded.groups[2].taps.at(0).at == "down2.weight/input");
  CHECK(contents(expanded) == contents(net.groups));
  const auto none = nlohmann::json::parse(R"({"groups": [{"name": "a", "units": 6, "members": [
      {"parameter": "side*.weight", "axis": 0}]}]})");
  CHECK_THAT(testing::error_of(ErrorKind::kInput,
                               [&] {
                                 (void)check_unit_groups(unit_groups_from_json(none, "g.json"),
                                                         net.state, "net");
                               }),
             Catch::Contains("no parameter fits \"side*.weight\""));
}

TEST_CASE("derived taps show the units of their group", "[derive_groups]") {
  at::manual_seed(5);
  at::NoGradGuard no_grad;
  const torch::jit::Module module = make_network({{"conv.weight", {4, 3, 3, 3}},
                                                  {"fc.weight", {12, 16}},
                                                  {"qkv.weight", {24, 3}},
                                                  {"out.weight", {5, 8}},
                                                  {"head.weight", {2, 4}}},
                                                 R"(h = torch.conv2d(x, self.conv.weight).flatten(1)
h = torch.relu(torch.linear(h, self.fc.weight)).view(3, 4, 3)
qkv = torch.linear(h, self.qkv.weight).view(3, 4, 3, 2, 4).permute(2, 0, 3, 1, 4)
a = torch.softmax(torch.matmul(qkv[0], qkv[1].transpose(-2, -1)), -1)
y = torch.matmul(a, qkv[2]).transpose(1, 2).reshape(3, 4, 8)
y = torch.linear(y, self.out.weight).sum([2]).tanh()
return torch.linear(y, self.head.weight)
)");
  const DerivedNetwork net(module, {at::randn({3, 3, 4, 4})});
  INFO(net.describe());
  testing::check_proved(net);

  // Each unit's activations in a network with permuted units are those of the unit that came there.
  for (std::size_t g = 0; g < net.groups.groups.size(); ++g) {
    const UnitGroup& group = net.groups.groups[g];
    if (group.members.empty()) continue;
    INFO(group.name);
    REQUIRE_FALSE(group.taps.empty());
    std::vector<std::string> names;
    for (const UnitTap& tap : group.taps) names.push_back(tap.at);
    const TapSet taps(module, names, "net");
    const auto observe = [&] {
      std::vector<at::Tensor> seen(names.size());
      taps.run(net.inputs, [&](std::size_t t, const at::Tensor& value) {
        UnitTap tap = group.taps[t];
        if (tap.axes.empty()) tap.axes = {value.dim() == 4 ? 1 : value.dim() - 1};
        seen[t] = units_of(value, tap, group.units).clone();
      });
      return seen;
    };
    const std::vector<at::Tensor> before = observe();
    // The last block first, and inside each block the last unit first: no matter which group.
    std::vector<std::int64_t> order(group.units);
    for (std::int64_t u = 0; u < group.units; ++u) order[u] = group.units - 1 - u;
    std::map<std::string, at::Tensor> saved;
    const auto family = [](const UnitGroup& one) {
      return one.within.empty() ? one.name : one.within;
    };
    for (const UnitGroup& other : net.groups.groups)
      if (family(other) == family(group))
        for (const GroupMember& m : other.members) {
          at::Tensor tensor = net.state.at(m.parameter);
          saved.emplace(m.parameter, tensor.clone());
          std::vector<std::int64_t> reversed(other.units);
          for (std::int64_t u = 0; u < other.units; ++u) reversed[u] = other.units - 1 - u;
          tensor.copy_(permuted(tensor.clone(), m, reversed));
        }
    const std::vector<at::Tensor> after = observe();
    for (auto& [name, value] : saved) net.state.at(name).copy_(value);
    for (std::size_t t = 0; t < before.size(); ++t) {
      const at::Tensor expected = before[t].index_select(0, at::tensor(order, at::kLong));
      CHECK(at::allclose(after[t], expected, 1e-4, 1e-5));
      CHECK_FALSE(at::allclose(after[t], before[t], 1e-4, 1e-5));
    }
  }
}

TEST_CASE("a derivation names the model whose forward fails", "[derive_groups]") {
  const torch::jit::Module module = build_builtin("convnet", {{"width", 4}}, 0);
  CHECK_THAT(testing::error_of(ErrorKind::kInput,
                               [&] {
                                 derive_unit_groups(module, "net.pt", {at::randn({2, 5, 8, 8})});
                               }),
             Catch::Contains("net.pt"));
}

TEST_CASE("outputs that do not depend on the order of the units prove it", "[derive_groups]") {
  const DerivedNetwork net(make_network({{"a.weight", {6, 10}}},
                                        "return torch.relu(torch.linear(x, self.a.weight)).sum(1)"),
                           {at::randn({3, 10})});
  testing::check_proved(net);
  CHECK(net.derivation.free_units == 6);
  CHECK(net.proof.control_is_disturbance);
  // An output that the weights do not reach proves nothing.
  const DerivedNetwork dead(
      make_network({{"a.weight", {6, 10}}},
                   "return torch.relu(torch.linear(x, self.a.weight)).sum(1) * 0.0"),
      {at::randn({3, 10})});
  CHECK_FALSE(dead.proof.holds());
  const DerivedNetwork plain(
      make_network(
          {{"a.weight", {6, 10}}, {"b.weight", {3, 6}}},
          "return torch.linear(torch.relu(torch.linear(x, self.a.weight)), self.b.weight)"),
      {at::randn({3, 10})});
  CHECK_FALSE(plain.proof.control_is_disturbance);
}

TEST_CASE("parameters without elements take part", "[derive_groups]") {
  const std::string hidden = "h = torch.tanh(torch.linear(x, self.a.weight))\n";
  for (const auto& [shape, body] : std::vector<std::pair<std::vector<std::int64_t>, std::string>>{
           {{0, 10}, "h = torch.cat([h, torch.linear(x, self.e.weight)], 1)\n"},
           {{6, 0}, "h = torch.cat([h, torch.matmul(h, self.e.weight)], 1)\n"},
           {{0}, "h = h + self.e.weight.sum()\n"}}) {
    INFO(body);
    const DerivedNetwork net(
        make_network({{"a.weight", {6, 10}}, {"e.weight", shape}, {"b.weight", {3, 6}}},
                     hidden + body + "return torch.linear(h, self.b.weight)"),
        {at::randn({3, 10})});
    testing::check_proved(net);
    CHECK(net.derivation.free_units == 6);
  }
}
