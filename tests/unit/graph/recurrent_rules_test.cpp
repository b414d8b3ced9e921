#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "unit/graph/rule_checks.h"

using namespace weightsmith;
using namespace weightsmith::testing;

TEST_CASE("recurrent layers", "[operator_rules]") {
  at::manual_seed(7);
  const auto layer = [](const std::string& name, std::int64_t in, std::int64_t hidden,
                        std::int64_t count) {
    return Shapes{{name + ".w_ih", {count * hidden, in}},
                  {name + ".w_hh", {count * hidden, hidden}},
                  {name + ".b_ih", {count * hidden}},
                  {name + ".b_hh", {count * hidden}}};
  };
  const auto line = [](const std::string& name, std::int64_t hidden, std::int64_t count) {
    return fmt::format("{} {}:", name, hidden) + gates(name + ".w_ih@0", hidden, count) +
           gates(name + ".w_hh@0", hidden, count) + " " + name + ".w_hh@1" +
           gates(name + ".b_ih@0", hidden, count) + gates(name + ".b_hh@0", hidden, count);
  };
  const std::string weights = "[self.r.w_ih, self.r.w_hh, self.r.b_ih, self.r.b_hh]";
  SECTION("lstm") {
    Shapes shapes = layer("r", 6, 4, 4);
    shapes.push_back({"b.weight", {3, 4}});
    check(shapes,
          "s = torch.zeros([1, 3, 4], dtype=x.dtype)\ny = torch.lstm(x, [s, s], " + weights +
              ", True, 1, 0., False, False, True)[0]\n"
              "return torch.linear(y, self.b.weight)\n",
          tokens(), {4, 0, {line("r", 4, 4) + " b.weight@1"}});
  }
  SECTION("gru, its last state") {
    Shapes shapes = layer("r", 6, 4, 3);
    shapes.push_back({"b.weight", {3, 4}});
    check(shapes,
          "y = torch.gru(x, torch.zeros([1, 3, 4], dtype=x.dtype), " + weights +
              ", True, 1, 0., False, False, True)[1]\nreturn torch.linear(y[0], self.b.weight)\n",
          tokens(), {4, 0, {line("r", 4, 3) + " b.weight@1"}});
  }
  SECTION("lstm in both directions, two layers") {
    Shapes shapes;
    std::string all;
    for (const char* name : {"f1", "r1", "f2", "r2"}) {
      const Shapes more = layer(name, std::string(name).ends_with("1") ? 6 : 8, 4, 4);
      shapes.insert(shapes.end(), more.begin(), more.end());
      for (const auto& [parameter, shape] : more)
        all += (all.empty() ? "self." : ", self.") + parameter;
    }
    shapes.push_back({"b.weight", {3, 8}});
    const DerivedNetwork net(
        make_network(
            shapes, "s = torch.zeros([4, 3, 4], dtype=x.dtype)\ny = torch.lstm(x, [s, s], [" + all +
                        "], True, 2, 0., False, True, True)[0]\n"
                        "return torch.linear(y, self.b.weight)\n"),
        {tokens()});
    INFO(net.describe());
    CHECK(net.groups.groups.size() == 4);
    CHECK(net.derivation.free_units == 16);
    CHECK(net.derivation.pinned_units == 0);
    testing::check_proved(net);
  }
  SECTION("a cell unrolled") {
    Shapes shapes = layer("r", 6, 4, 3);
    shapes.push_back({"b.weight", {3, 4}});
    check(shapes, R"(h = torch.zeros([3, 4], dtype=x.dtype)
for t in range(5):
    h = torch.gru_cell(x[:, t], h, self.r.w_ih, self.r.w_hh, self.r.b_ih, self.r.b_hh)
return torch.linear(h, self.b.weight)
)",
          tokens(), {4, 0, {line("r", 4, 3) + " b.weight@1"}});
  }
}
