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

TEST_CASE("channels of a pixel shuffle move, however many pixels each makes", "[operator_rules]") {
  at::manual_seed(51);
  // 4 channels of 4 pixels, and 2 of 9: sets of a channel's pixels cross sets of a pixel's
  // channels.
  SECTION("as many pixels as channels") {
    check({{"b.weight", {16, 3, 3, 3}}, {"b.bias", {16}}, {"d.weight", {5, 4, 1, 1}}},
          R"(h = torch.conv2d(x, self.b.weight, self.b.bias, [1, 1], [1, 1])
return torch.conv2d(torch.relu(torch.pixel_shuffle(h, 2)), self.d.weight)
)",
          images(), {16, 0, {"b 4: b.weight@0 b.bias@0 d.weight@1"}});
  }
  SECTION("more pixels than channels, between other layers") {
    check({{"a.weight", {6, 3, 3, 3}},
           {"b.weight", {18, 6, 1, 1}},
           {"d.weight", {8, 2, 3, 3}},
           {"e.weight", {3, 8, 1, 1}}},
          R"(h = torch.relu(torch.conv2d(x, self.a.weight))
h = torch.relu(torch.conv2d(torch.pixel_shuffle(torch.conv2d(h, self.b.weight), 3), self.d.weight))
return torch.conv2d(h, self.e.weight)
)",
          images(),
          {32,
           0,
           {"a 6: a.weight@0 b.weight@1", "b 2: b.weight@0 d.weight@1",
            "d 8: d.weight@0 e.weight@1"}});
  }
  SECTION("pixels that are averaged stay all the same") {
    check({{"b.weight", {16, 3, 1, 1}}, {"d.weight", {5, 4}}},
          R"(h = torch.relu(torch.pixel_shuffle(torch.conv2d(x, self.b.weight), 2))
return torch.linear(h.mean([2, 3]), self.d.weight)
)",
          images(), {16, 0, {"d 4: d.weight@1", "b 16/4 in d: b.weight@0"}});
  }
  SECTION("pixel unshuffle: a unit's pixels are inputs side by side") {
    check({{"b.weight", {4, 3, 1, 1}}, {"d.weight", {6, 16, 1, 1}}, {"e.weight", {3, 6, 1, 1}}},
          R"(h = torch.pixel_unshuffle(torch.conv2d(x, self.b.weight).relu(), 2)
return torch.conv2d(torch.conv2d(h, self.d.weight).relu(), self.e.weight)
)",
          images(), {10, 0, {"b 4: b.weight@0 d.weight@1", "d 6: d.weight@0 e.weight@1"}});
  }
}

TEST_CASE("sums over halves that meet are not one sum", "[operator_rules]") {
  at::manual_seed(52);
  // Five units, each the meeting of two sums of two: a unit of the one half is none of the other.
  check_between(20, 5,
                "s = torch.exp(h.view(3, 5, 2, 2).sum([3]))\ny = s[:, :, 0] + 2 * s[:, :, 1]\n",
                {20,
                 0,
                 {"b 5: b.weight@1", "a[0:10] 10/5 in b: a.weight@0{0,1,4,5,8,9,12,13,16,17}",
                  "a[2:12] 10/5 in b: a.weight@0{2,3,6,7,10,11,14,15,18,19}"}});
  // The halves of one unit come from places that do not go with those of the next.
  check_between(
      20, 5,
      "s = torch.exp(h.view(3, 5, 2, 2).sum([3]))\n"
      "y = s[:, :, 0] + torch.flip(s[:, :, 1], [1])\n",
      {20,
       0,
       {"b 5: b.weight@1{0,4,1,3,2}", "a[0:10] 10/5 in b: a.weight@0{0,1,16,17,4,5,12,13,8,9}",
        "a[2:12] 10/5 in b: a.weight@0{18,19,2,3,14,15,6,7,10,11}"}});
}

TEST_CASE("what is picked or gathered along tokens leaves the units free", "[operator_rules]") {
  at::manual_seed(53);
  const Shapes shapes{{"a.weight", {8, 6}}, {"b.weight", {3, 8}}};
  const Wanted free{8, 0, {"a 8: a.weight@0 b.weight@1"}};
  const auto around = [&](const std::string& statements) {
    check(shapes,
          "h = torch.tanh(torch.linear(x, self.a.weight))\n" + statements +
              "return torch.linear(y, self.b.weight)\n",
          tokens(), free);
  };
  SECTION("index_select with an index that is computed") {
    around("y = torch.index_select(h, 1, torch.argsort(x[0, :, 0]))\n");
  }
  SECTION("index_add") {
    around("y = torch.zeros_like(h).index_add(1, torch.argsort(x[0, :, 0]) // 2, h)\n");
  }
  SECTION("scatter_add") {
    around(
        "i = torch.argsort(x[:, :, 0], 1).unsqueeze(2).expand(3, 5, 8) // 2\n"
        "y = torch.zeros_like(h).scatter_add(1, i, h)\n");
  }
  SECTION("topk") { around("y = torch.topk(h, 2, 1)[0]\n"); }
  SECTION("frequencies of tokens") {
    around("y = torch.view_as_real(torch.fft_rfft(h, None, 1)).mean([3])\n");
    around("y = torch.fft_irfft(torch.fft_rfft(h, None, 1) * 2.0, 5, 1)\n");
  }
}
