#include "support/expect_error.h"
#include "unit/graph/derived_network.h"
#include "weightsmith/core/error.h"
#include "weightsmith/graph/unit_orders.h"

using namespace weightsmith;
using namespace weightsmith::testing;

TEST_CASE("units between shuffled grouped convolutions keep to one group of each",
          "[derive_groups]") {
  // A unit of b stands in one group of b and, after the shuffle, in one of c; the residual makes
  // the groups of both one block, which therefore stands for two sets that cross.
  const DerivedNetwork net(make_network({{"a.weight", {8, 3, 1, 1}},
                                         {"b.weight", {8, 4, 1, 1}},
                                         {"c.weight", {8, 4, 1, 1}},
                                         {"d.weight", {3, 8, 1, 1}}},
                                        R"(h = torch.conv2d(x, self.a.weight)
y = torch.relu(torch.conv2d(h, self.b.weight, None, [1, 1], [0, 0], [1, 1], 2))
y = y.view([2, 2, 4, 5, 5]).transpose(1, 2).reshape([2, 8, 5, 5])
y = torch.conv2d(y, self.c.weight, None, [1, 1], [0, 0], [1, 1], 2)
return torch.conv2d(h + y, self.d.weight))"),
                           {at::randn({2, 3, 5, 5})});
  check_proved(net);
  CHECK(net.lines() ==
        std::vector<std::string>{
            "a[0:4] 4: a.weight@0[0:4] b.weight@1[0:4]/2 c.weight@0[0:4] d.weight@1[0:4]",
            "a[4:8] 4: a.weight@0[4:8] b.weight@1[4:8]/2 c.weight@0[4:8] d.weight@1[4:8]",
            "b[0:2] 2: b.weight@0[0:2] c.weight@1{0,2}/2",
            "b[2:4] 2: b.weight@0[2:4] c.weight@1{4,6}/2",
            "b[4:6] 2: b.weight@0[4:6] c.weight@1{1,3}/2",
            "b[6:8] 2: b.weight@0[6:8] c.weight@1{5,7}/2"});
  CHECK(net.derivation.free_units == 16);
}

TEST_CASE("an order that splits a group of a convolution is refused", "[derive_groups]") {
  GroupMember member;
  member.parameter = "b.weight";
  member.axis = 1;
  member.length = 4;
  member.groups = 2;
  const at::Tensor weight = at::randn({4, 2, 1, 1});
  CHECK(at::equal(permuted(weight, member, {1, 0, 2, 3}).narrow(0, 0, 2),
                  weight.narrow(0, 0, 2).flip(1)));
  expect_error(ErrorKind::kInput, {"b.weight"}, [&] { permuted(weight, member, {0, 2, 1, 3}); });
}
