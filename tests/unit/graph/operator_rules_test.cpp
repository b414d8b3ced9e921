#include "weightsmith/graph/operator_rules.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "unit/graph/rule_checks.h"

using namespace weightsmith;
using namespace weightsmith::testing;

TEST_CASE("what depends on the order of units is pinned, with the reason and the place",
          "[operator_rules]") {
  at::manual_seed(8);
  const auto pinned = [](const std::string& statements, const std::string& reason,
                         const std::string& place) {
    const DerivedNetwork net = check_between(8, 8, statements, {0, 8, {}});
    REQUIRE(net.derivation.pinned.size() == 1);
    CHECK(net.derivation.pinned[0].units == 8);
    CHECK_THAT(net.derivation.pinned[0].reason, Catch::Contains(reason));
    CHECK_THAT(net.derivation.pinned[0].where, Catch::Contains(place));
  };
  SECTION("cumsum") { pinned("y = torch.cumsum(h, 1)\n", "depends on the order", "aten::cumsum"); }
  SECTION("sort") { pinned("y = torch.sort(h, 1)[0]\n", "depends on the order", "aten::sort"); }
  SECTION("pooling along the units") {
    pinned("y = torch.max_pool1d(h.unsqueeze(1), [3], [1], [1]).squeeze(1)\n", "neighbours",
           "aten::max_pool1d");
  }
  SECTION("no rule") {
    pinned("y = torch.fmod(torch.pinverse(h), 2.).t()\n", "no rule for this operator",
           "aten::pinverse");
  }
  SECTION("argmax beside another use") {
    pinned("y = h + torch.argmax(h, 1, True)\n", "depends on the order", "aten::argmax");
  }
  SECTION("an index that depends on the data") {
    pinned("y = h[:, torch.argsort(h[0])]\n", "depends on the order", "aten::");
    pinned("y = torch.index_select(h, 1, torch.argsort(torch.cat([x, x], 1)[0, :8]))\n",
           "depends on the order", "aten::index_select");
  }
  SECTION("topk") { pinned("y = torch.topk(h, 8, 1)[0]\n", "depends on the order", "aten::topk"); }
  SECTION("frequencies of units") {
    pinned("y = torch.fft_fft(h).abs()\n", "neighbours", "aten::fft_fft");
  }
  SECTION("units added where an index says") {
    pinned("y = torch.zeros_like(h).index_add(1, torch.arange(8), h)\n", "depends on the order",
           "aten::index_add");
    pinned("y = torch.zeros_like(h).scatter_add(1, torch.arange(8).expand(3, 8), h)\n",
           "depends on the order", "aten::scatter_add");
  }
}

TEST_CASE("parameters, inputs and outputs", "[operator_rules]") {
  at::manual_seed(11);
  SECTION("a parameter used twice") {
    check_between(8, 8, "y = torch.linear(torch.linear(h, self.w).tanh(), self.w)\n",
                  {8, 0, {"a 8: a.weight@0 w@0 w@1 b.weight@1"}}, {{"w", {8, 8}}});
  }
  SECTION("a parameter under two names") {
    torch::jit::Module net("Net");
    const at::Tensor shared = at::randn({8, 8});
    net.register_parameter("a", at::randn({8, 5}), false);
    net.register_parameter("w", shared, false);
    net.register_parameter("again", shared, false);
    net.register_parameter("b", at::randn({3, 8}), false);
    net.define(R"(def forward(self, x):
    h = torch.tanh(torch.linear(x, self.a))
    h = torch.tanh(torch.linear(h, self.w))
    return torch.linear(torch.tanh(torch.linear(h, self.again)), self.b)
)");
    net.eval();
    const DerivedNetwork derived(net, {vectors()});
    INFO(derived.describe());
    CHECK(derived.groups.groups.size() == 1);
    CHECK(derived.derivation.free_units == 8);
  }
  SECTION("two inputs") {
    check(make_network({{"a.weight", {8, 5}}, {"b.weight", {8, 4}}, {"c.weight", {3, 8}}},
                       R"(def forward(self, x, y):
    h = torch.relu(torch.linear(x, self.a.weight) + torch.linear(y, self.b.weight))
    return torch.linear(h, self.c.weight)
)"),
          {vectors(), at::randn({3, 4})}, {8, 0, {"a 8: a.weight@0 b.weight@0 c.weight@1"}});
  }
  SECTION("a tuple with a dict") {
    const auto net = check({{"a.weight", {8, 5}}, {"b.weight", {3, 8}}, {"c.weight", {2, 8}}},
                           R"(h = torch.relu(torch.linear(x, self.a.weight))
return torch.linear(h, self.b.weight), {"c": torch.linear(h, self.c.weight)}
)",
                           vectors(), {8, 0, {"a 8: a.weight@0 b.weight@1 c.weight@1"}});
    CHECK(net.derivation.output_units == 5);
  }
  SECTION("hidden units that are outputs too") {
    const auto net = check({{"a.weight", {8, 5}}, {"b.weight", {3, 8}}},
                           R"(h = torch.relu(torch.linear(x, self.a.weight))
return torch.linear(h, self.b.weight), h
)",
                           vectors(), {0, 0, {}});
    CHECK(net.derivation.output_units == 11);
  }
}

TEST_CASE("rules go by an operator's plain name", "[operator_rules]") {
  CHECK(operator_rule("conv2d") != nullptr);
  CHECK(operator_rule("add") != nullptr);
  CHECK(operator_rule("add_") == nullptr);
  CHECK(operator_rule("pinverse") == nullptr);
  const std::vector<std::string> known = known_operators();
  CHECK(std::find(known.begin(), known.end(), "layer_norm") != known.end());
}
