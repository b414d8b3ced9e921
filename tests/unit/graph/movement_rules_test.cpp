#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "unit/graph/rule_checks.h"

using namespace weightsmith;
using namespace weightsmith::testing;

TEST_CASE("elements moved about", "[operator_rules]") {
  at::manual_seed(5);
  SECTION("concatenation") {
    check({{"a.weight", {3, 3, 1, 1}}, {"b.weight", {5, 3, 3, 3}}, {"c.weight", {2, 8, 1, 1}}},
          R"(a = torch.conv2d(x, self.a.weight)
b = torch.conv2d(x, self.b.weight, None, [1, 1], [1, 1])
return torch.conv2d(torch.cat([a, b], 1).relu(), self.c.weight)
)",
          images(), {8, 0, {"a 3: a.weight@0 c.weight@1[0:3]", "b 5: b.weight@0 c.weight@1[3:8]"}});
  }
  SECTION("stack ties what is stacked, as labels along one axis are the same everywhere") {
    check({{"a.weight", {4, 5}}, {"b.weight", {4, 5}}, {"c.weight", {2, 8}}},
          R"(h = torch.stack([torch.linear(x, self.a.weight), torch.linear(x, self.b.weight)], 1)
return torch.linear(h.relu().flatten(1), self.c.weight)
)",
          vectors(), {4, 0, {"a 4: a.weight@0 b.weight@0 c.weight@1[0:4] c.weight@1[4:8]"}});
  }
  const Shapes parting{{"a.weight", {8, 5}}, {"b.weight", {2, 3}}, {"c.weight", {2, 5}}};
  const Wanted parted{
      8, 0, {"a[0:3] 3: a.weight@0[0:3] b.weight@1", "a[3:8] 5: a.weight@0[3:8] c.weight@1"}};
  SECTION("slice") {
    check(parting, R"(h = torch.linear(x, self.a.weight).relu()
return torch.linear(h[:, :3], self.b.weight) + torch.linear(h[:, 3:], self.c.weight)
)",
          vectors(), parted);
  }
  SECTION("split") {
    check(parting, R"(h = torch.linear(x, self.a.weight).relu()
l, r = torch.split(h, [3, 5], 1)
return torch.linear(l, self.b.weight) + torch.linear(r, self.c.weight)
)",
          vectors(), parted);
  }
  SECTION("select") {
    check({{"a.weight", {8, 5}}, {"b.weight", {2, 4}}, {"c.weight", {2, 4}}},
          R"(h = torch.linear(x, self.a.weight).relu().view(3, 2, 4)
return torch.linear(h.select(1, 0), self.b.weight) + torch.linear(h[:, 1], self.c.weight)
)",
          vectors(),
          {8, 0, {"a[0:4] 4: a.weight@0[0:4] b.weight@1", "a[4:8] 4: a.weight@0[4:8] c.weight@1"}});
  }
  SECTION("chunks multiplied") {
    check_between(8, 4, "l, r = torch.chunk(h, 2, 1)\ny = l * torch.sigmoid(r)\n",
                  {4, 0, {"a 4: a.weight@0[0:4] a.weight@0[4:8] b.weight@1"}});
  }
  SECTION("roll") {
    check_between(8, 8, "y = torch.roll(h, [1], [1])\n",
                  {8, 0, {"a 8: a.weight@0 b.weight@1{1,2,3,4,5,6,7,0}"}});
  }
  SECTION("flip") {
    check_between(5, 5, "y = torch.flip(h, [1])\n",
                  {5, 0, {"a 5: a.weight@0 b.weight@1{4,3,2,1,0}"}});
  }
  SECTION("roll added to what was rolled ties all") {
    check_between(8, 8, "y = h + torch.roll(h, [1], [1])\n", {0, 1, {}});
  }
  SECTION("channels of zeros") {
    check({{"a.weight", {4, 3, 1, 1}}, {"b.weight", {7, 3, 1, 1}}, {"c.weight", {2, 7, 1, 1}}},
          R"(h = torch.constant_pad_nd(torch.conv2d(x, self.a.weight), [0, 0, 0, 0, 1, 2], 0.)
h = h + torch.conv2d(x, self.b.weight)
return torch.conv2d(h.relu(), self.c.weight)
)",
          images(),
          {7,
           0,
           {"a 4: a.weight@0 b.weight@0[1:5] c.weight@1[1:5]",
            "b 3: b.weight@0{0,5,6} c.weight@1{0,5,6}"}});
  }
  SECTION("pixel shuffle") {
    const auto net = check({{"a.weight", {8, 3, 1, 1}}, {"b.weight", {3, 2, 3, 3}}},
                           R"(h = torch.pixel_shuffle(torch.conv2d(x, self.a.weight), 2)
return torch.conv2d(h.relu(), self.b.weight)
)",
                           images(), {8, 0, {"a 2: a.weight@0 b.weight@1"}});
    REQUIRE(net.derivation.rigid.size() == 1);
    CHECK(net.derivation.rigid[0].units == 8);
    CHECK_THAT(net.derivation.rigid[0].where, Catch::Contains("conv2d"));
  }
  SECTION("channel shuffle") {
    check({{"a.weight", {6, 3, 1, 1}}, {"b.weight", {3, 6, 3, 3}}},
          R"(h = torch.conv2d(x, self.a.weight).relu()
h = h.view(3, 2, 3, 4, 4).transpose(1, 2).contiguous().view(3, -1, 4, 4)
return torch.conv2d(h, self.b.weight)
)",
          images(), {6, 0, {"a 6: a.weight@0 b.weight@1{0,2,4,1,3,5}"}});
  }
  SECTION("flattened channels first") {
    check({{"a.weight", {4, 3, 3, 3}}, {"b.weight", {5, 16}}},
          "return torch.linear(torch.conv2d(x, self.a.weight).relu().flatten(1), self.b.weight)",
          images(), {4, 0, {"a 4: a.weight@0 b.weight@1"}});
  }
  SECTION("flattened channels last") {
    check({{"a.weight", {4, 3, 3, 3}}, {"b.weight", {5, 16}}},
          R"(h = torch.conv2d(x, self.a.weight).relu().permute(0, 2, 3, 1).flatten(1)
return torch.linear(h, self.b.weight)
)",
          images(), {4, 0, {"a 4: a.weight@0" + gates("b.weight@1", 4, 4)}});
  }
  SECTION("indexed by a constant") {
    const at::Tensor order = at::tensor({2, 0, 3, 1}, at::kLong);
    check_between(4, 4, "y = h[:, self.order]\n", {4, 0, {"a 4: a.weight@0 b.weight@1{1,3,0,2}"}},
                  {}, {{"order", order}});
    check_between(4, 4, "y = torch.index_select(h, 1, self.order)\n",
                  {4, 0, {"a 4: a.weight@0 b.weight@1{1,3,0,2}"}}, {}, {{"order", order}});
  }
  SECTION("written into zeros") {
    check_between(4, 6, "y = torch.zeros([3, 6], dtype=h.dtype)\ny[:, self.places] = h\n",
                  {4, 0, {"a 4: a.weight@0 b.weight@1{4,0,3,1}", "b 2: b.weight@1{2,5}"}}, {},
                  {{"places", at::tensor({4, 0, 3, 1}, at::kLong)}});
  }
  SECTION("the diagonal of a matrix ties its rows to its columns") {
    check_between(8, 8, "y = h * self.w.diagonal()\n", {0, 8, {}}, {{"w", {8, 8}}});
  }
}

TEST_CASE("padded positions are not like the others", "[operator_rules]") {
  at::manual_seed(9);
  // The padded token is zero, the others are one token many times: mix's columns differ.
  check({{"token", {1, 4}}, {"mix.weight", {3, 6}}, {"b.weight", {2, 4}}},
        R"(t = torch.constant_pad_nd(self.token.expand(5, 4), [0, 0, 0, 1], 0.)
return torch.linear(torch.matmul(self.mix.weight, t).tanh(), self.b.weight) * x.sum()
)",
        vectors(), {0, 0, {"token 4: token@1 b.weight@1"}});
}
