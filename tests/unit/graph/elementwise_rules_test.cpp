#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "unit/graph/rule_checks.h"

using namespace weightsmith;
using namespace weightsmith::testing;

TEST_CASE("activations", "[operator_rules]") {
  at::manual_seed(4);
  SECTION("gated linear unit") {
    check_between(8, 4, "y = torch.glu(h, 1)\n",
                  {4, 0, {"a 4: a.weight@0[0:4] a.weight@0[4:8] b.weight@1"}});
  }
  SECTION("a slope for each unit") {
    check_between(8, 8, "y = torch.prelu(h, self.slope)\n",
                  {8, 0, {"a 8: a.weight@0 slope@0 b.weight@1"}}, {{"slope", {8}}});
  }
  SECTION("one slope for all") {
    check_between(8, 8, "y = torch.prelu(h, self.slope)\n", {8, 0, {"a 8: a.weight@0 b.weight@1"}},
                  {{"slope", {1}}});
  }
  SECTION("maxout") {
    check_between(12, 4, "y = h.view(3, 4, 3).amax([2])\n",
                  {12, 0, {"b 4: b.weight@1", "a 12/4 in b: a.weight@0"}});
  }
  SECTION("squeeze and excite") {
    check({{"a.weight", {8, 3, 1, 1}},
           {"s.weight", {4, 8, 1, 1}},
           {"e.weight", {8, 4, 1, 1}},
           {"b.weight", {2, 8, 1, 1}}},
          R"(h = torch.conv2d(x, self.a.weight).relu()
s = torch.conv2d(torch.adaptive_avg_pool2d(h, [1, 1]), self.s.weight).relu()
h = h * torch.sigmoid(torch.conv2d(s, self.e.weight))
return torch.conv2d(h, self.b.weight)
)",
          images(),
          {12,
           0,
           {"a 8: a.weight@0 s.weight@1 e.weight@0 b.weight@1", "s 4: s.weight@0 e.weight@1"}});
  }
}
