#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "unit/graph/rule_checks.h"

using namespace weightsmith;
using namespace weightsmith::testing;

TEST_CASE("convolutions", "[operator_rules]") {
  at::manual_seed(1);
  SECTION("two with a batch norm") {
    const auto net = check({{"a.weight", {6, 3, 3, 3}},
                            {"a.bias", {6}},
                            {"bn.weight", {6}},
                            {"bn.bias", {6}},
                            {"bn.running_mean", {6}},
                            {"bn.running_var", {6}},
                            {"b.weight", {4, 6, 3, 3}}},
                           R"(h = torch.conv2d(x, self.a.weight, self.a.bias, [1, 1], [1, 1])
h = torch.batch_norm(h, self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var, False, 0.1, 1e-5, False)
return torch.conv2d(torch.relu(h), self.b.weight)
)",
                           images(),
                           {6,
                            0,
                            {"a 6: a.weight@0 a.bias@0 bn.weight@0 bn.bias@0 bn.running_mean@0 "
                             "bn.running_var@0 b.weight@1"}});
    CHECK(net.derivation.output_units == 4);
    REQUIRE(net.groups.groups[0].taps.size() == 1);
    CHECK(net.groups.groups[0].taps[0].at == "b.weight/input");
    CHECK(net.groups.groups[0].taps[0].axes.empty());
    CHECK(net.groups.groups[0].members[0].role == MemberRole::kOut);
    CHECK(net.groups.groups[0].members[6].role == MemberRole::kIn);
  }
  SECTION("one dimension") {
    check({{"a.weight", {6, 3, 3}}, {"b.weight", {4, 6, 2}}},
          "return torch.conv1d(torch.conv1d(x, self.a.weight).relu(), self.b.weight)",
          at::randn({3, 3, 7}), {6, 0, {"a 6: a.weight@0 b.weight@1"}});
  }
  SECTION("three dimensions, a strided kernel") {
    check({{"a.weight", {6, 3, 2, 2, 2}}, {"b.weight", {4, 6, 1, 1, 1}}},
          "return torch.conv3d(torch.conv3d(x, self.a.weight, None, [2, 2, 2]).relu(), "
          "self.b.weight)",
          at::randn({3, 3, 4, 4, 4}), {6, 0, {"a 6: a.weight@0 b.weight@1"}});
  }
  SECTION("groups tie the blocks of their input and output") {
    check({{"a.weight", {6, 3, 1, 1}}, {"g.weight", {8, 3, 3, 3}}, {"b.weight", {2, 8, 1, 1}}},
          R"(h = torch.relu(torch.conv2d(x, self.a.weight))
h = torch.relu(torch.conv2d(h, self.g.weight, None, [1, 1], [1, 1], [1, 1], 2))
return torch.conv2d(h, self.b.weight)
)",
          images(),
          {14,
           0,
           {"a.blocks 2:", "a 6/2 in a.blocks: a.weight@0 g.weight@1/2",
            "g 8/2 in a.blocks: g.weight@0 b.weight@1"}});
  }
  SECTION("depthwise") {
    check({{"a.weight", {4, 3, 1, 1}}, {"d.weight", {4, 1, 3, 3}}, {"b.weight", {2, 4, 1, 1}}},
          R"(h = torch.relu(torch.conv2d(x, self.a.weight))
h = torch.relu(torch.conv2d(h, self.d.weight, None, [1, 1], [1, 1], [1, 1], 4))
return torch.conv2d(h, self.b.weight)
)",
          images(), {4, 0, {"a 4: a.weight@0 d.weight@0 b.weight@1"}});
  }
  SECTION("depthwise with a multiplier") {
    check({{"a.weight", {4, 3, 1, 1}}, {"d.weight", {8, 1, 3, 3}}, {"b.weight", {2, 8, 1, 1}}},
          R"(h = torch.relu(torch.conv2d(x, self.a.weight))
h = torch.relu(torch.conv2d(h, self.d.weight, None, [1, 1], [1, 1], [1, 1], 4))
return torch.conv2d(h, self.b.weight)
)",
          images(), {12, 0, {"a 4: a.weight@0", "d 8/4 in a: d.weight@0 b.weight@1"}});
  }
  SECTION("transposed") {
    check({{"a.weight", {6, 3, 1, 1}},
           {"t.weight", {6, 5, 2, 2}},
           {"t.bias", {5}},
           {"b.weight", {2, 5, 1, 1}}},
          R"(h = torch.relu(torch.conv2d(x, self.a.weight))
h = torch.relu(torch.conv_transpose2d(h, self.t.weight, self.t.bias, [2, 2]))
return torch.conv2d(h, self.b.weight)
)",
          images(), {11, 0, {"a 6: a.weight@0 t.weight@0", "t 5: t.weight@1 t.bias@0 b.weight@1"}});
  }
  SECTION("transposed with groups") {
    check({{"a.weight", {6, 3, 1, 1}}, {"t.weight", {6, 2, 2, 2}}, {"b.weight", {2, 4, 1, 1}}},
          R"(h = torch.relu(torch.conv2d(x, self.a.weight))
h = torch.relu(torch.conv_transpose2d(h, self.t.weight, None, [2, 2], [0, 0], [0, 0], 2))
return torch.conv2d(h, self.b.weight)
)",
          images(),
          {10,
           0,
           {"a.blocks 2:", "a 6/2 in a.blocks: a.weight@0 t.weight@0",
            "t 4/2 in a.blocks: t.weight@1/2 b.weight@1"}});
  }
  SECTION("weights computed from parameters") {
    check({{"a.weight", {6, 3, 3, 3}}, {"gain", {6, 1, 1, 1}}, {"b.weight", {2, 6, 1, 1}}},
          R"(h = torch.conv2d(x, self.a.weight * self.gain.exp()).relu()
return torch.conv2d(h, self.b.weight)
)",
          images(), {6, 0, {"gain 6: gain@0 a.weight@0 b.weight@1"}});
  }
}

TEST_CASE("matrix products", "[operator_rules]") {
  at::manual_seed(2);
  SECTION("linear") {
    const auto net =
        check({{"a.weight", {8, 5}}, {"a.bias", {8}}, {"b.weight", {3, 8}}, {"b.bias", {3}}},
              R"(h = torch.relu(torch.linear(x, self.a.weight, self.a.bias))
return torch.linear(h, self.b.weight, self.b.bias)
)",
              vectors(), {8, 0, {"a 8: a.weight@0 a.bias@0 b.weight@1"}});
    CHECK(net.groups.groups[0].taps.at(0).at == "b.weight/input");
  }
  SECTION("matmul") {
    check({{"w1", {5, 8}}, {"w2", {8, 3}}},
          "return torch.matmul(torch.relu(torch.matmul(x, self.w1)), self.w2)", vectors(),
          {8, 0, {"w1 8: w1@1 w2@0"}});
  }
  SECTION("addmm and mm") {
    check({{"w1", {5, 8}}, {"c", {8}}, {"w2", {8, 3}}},
          "return torch.mm(torch.relu(torch.addmm(self.c, x, self.w1)), self.w2)", vectors(),
          {8, 0, {"c 8: c@0 w1@1 w2@0"}});
  }
  SECTION("bmm with an expanded weight") {
    check({{"w1", {1, 6, 8}}, {"w2", {1, 8, 3}}},
          R"(h = torch.relu(torch.bmm(x, self.w1.expand(3, 6, 8)))
return torch.bmm(h, self.w2.expand(3, 8, 3))
)",
          tokens(), {8, 0, {"w1 8: w1@2 w2@1"}});
  }
  SECTION("einsum") {
    check({{"w1", {8, 6}}, {"w2", {3, 8}}},
          R"(h = torch.relu(torch.einsum("bti,oi->bto", [x, self.w1]))
return torch.einsum("...o,po->...p", [h, self.w2])
)",
          tokens(), {8, 0, {"w1 8: w1@0 w2@1"}});
  }
  SECTION("einsum over heads") {
    check({{"w1", {6, 2, 4}}, {"w2", {2, 4, 3}}},
          R"(h = torch.relu(torch.einsum("bti,ihd->bthd", [x, self.w1]))
return torch.einsum("bthd,hdp->btp", [h, self.w2])
)",
          tokens(), {6, 0, {"w1[0:2] 2: w1@1 w2@0", "w1[0:4] 4: w1@2 w2@1"}});
  }
  SECTION("bilinear") {
    check({{"a.weight", {4, 5}}, {"w", {6, 4, 5}}, {"b.weight", {3, 6}}},
          R"(h = torch.linear(x, self.a.weight).tanh()
return torch.linear(torch.bilinear(h, x, self.w, None).tanh(), self.b.weight)
)",
          vectors(), {10, 0, {"a 4: a.weight@0 w@1", "w 6: w@0 b.weight@1"}});
  }
}

TEST_CASE("norms", "[operator_rules]") {
  at::manual_seed(3);
  SECTION("layer norm") {
    check_between(8, 8, "y = torch.layer_norm(h, [8], self.n.weight, self.n.bias)\n",
                  {8, 0, {"a 8: a.weight@0 n.weight@0 n.bias@0 b.weight@1"}},
                  {{"n.weight", {8}}, {"n.bias", {8}}});
  }
  SECTION("RMS norm by hand") {
    check_between(8, 8, "y = h * torch.rsqrt(h.pow(2).mean([-1], True) + 1e-5) * self.scale\n",
                  {8, 0, {"a 8: a.weight@0 scale@0 b.weight@1"}}, {{"scale", {8}}});
  }
  SECTION("group norm moves whole groups") {
    const auto net =
        check({{"a.weight", {8, 3, 3, 3}},
               {"n.weight", {8}},
               {"n.bias", {8}},
               {"b.weight", {2, 8, 1, 1}}},
              R"(h = torch.group_norm(torch.conv2d(x, self.a.weight), 4, self.n.weight, self.n.bias)
return torch.conv2d(h.relu(), self.b.weight)
)",
              images(), {8, 0, {"a 8/4: a.weight@0 n.weight@0 n.bias@0 b.weight@1"}});
    CHECK(net.derivation.rigid.empty());
  }
  SECTION("instance norm") {
    check({{"a.weight", {8, 3, 3, 3}},
           {"n.weight", {8}},
           {"n.bias", {8}},
           {"b.weight", {2, 8, 1, 1}}},
          R"(h = torch.conv2d(x, self.a.weight)
h = torch.instance_norm(h, self.n.weight, self.n.bias, None, None, True, 0.1, 1e-5, False)
return torch.conv2d(h.relu(), self.b.weight)
)",
          images(), {8, 0, {"a 8: a.weight@0 n.weight@0 n.bias@0 b.weight@1"}});
  }
  SECTION("instance norm of units that stand along its positions") {
    check_between(
        12, 12,
        R"(y = torch.instance_norm(h.view(3, 3, 4), None, None, None, None, True, 0.1, 1e-5, False)
y = y.flatten(1)
)",
        {12, 0, {"a 12/3: a.weight@0 b.weight@1"}});
  }
  SECTION("a batch's own statistics of units that stand along its positions") {
    check_between(
        12, 12,
        R"(y = torch.batch_norm(h.view(3, 3, 4), None, None, None, None, True, 0.1, 1e-5, False)
y = y.flatten(1)
)",
        {12, 0, {"a 12/3: a.weight@0 b.weight@1"}});
  }
  SECTION("softmax over heads") {
    check_between(8, 8, "y = torch.softmax(h.view(3, 4, 2), 1).flatten(1)\n",
                  {8, 0, {"a 8/2: a.weight@0{0,2,4,6,1,3,5,7} b.weight@1{0,2,4,6,1,3,5,7}"}});
  }
  SECTION("softmax over all units") {
    check_between(8, 8, "y = torch.softmax(h, -1)\n", {8, 0, {"a 8: a.weight@0 b.weight@1"}});
  }
}

TEST_CASE("the spectral norm of a convolution's flattened weight leaves its units free",
          "[operator_rules]") {
  at::manual_seed(5);
  // The vectors of the power iteration move with the rows and the columns.
  check({{"a.weight", {4, 3, 3, 3}},
         {"b.weight", {6, 4, 3, 3}},
         {"b.weight_u", {6}},
         {"b.weight_v", {36}},
         {"c.weight", {2, 6, 1, 1}}},
        R"(h = torch.conv2d(x, self.a.weight, None, [1, 1], [1, 1]).relu()
sigma = torch.dot(self.b.weight_u, torch.mv(self.b.weight.reshape(6, -1), self.b.weight_v))
y = torch.conv2d(h, self.b.weight / sigma, None, [1, 1], [1, 1]).relu()
return torch.conv2d(y, self.c.weight)
)",
        images(),
        {10,
         0,
         {"a 4: a.weight@0 b.weight@1 b.weight_v@0", "b 6: b.weight@0 b.weight_u@0 c.weight@1"}});
}

TEST_CASE("embeddings", "[operator_rules]") {
  at::manual_seed(10);
  const at::Tensor words = at::randint(10, {3, 4}, at::kLong);
  SECTION("plain") {
    check({{"e.weight", {10, 8}}, {"b.weight", {3, 8}}},
          "return torch.linear(torch.embedding(self.e.weight, x), self.b.weight)", words,
          {8, 0, {"e 8: e.weight@1 b.weight@1"}});
  }
  SECTION("with positions, tied to the output") {
    check(
        {{"e.weight", {10, 8}}, {"position", {4, 8}}, {"a.weight", {12, 8}}, {"b.weight", {8, 12}}},
        R"(h = torch.embedding(self.e.weight, x) + self.position
h = h + torch.linear(torch.linear(h, self.a.weight).relu(), self.b.weight)
return torch.linear(h, self.e.weight)
)",
        words,
        {20,
         0,
         {"e 8: e.weight@1 position@1 a.weight@1 b.weight@0", "a 12: a.weight@0 b.weight@1"}});
  }
}

TEST_CASE("distances and sampling", "[operator_rules]") {
  at::manual_seed(54);
  SECTION("distances to learned points") {
    check_between(8, 6, "y = torch.cdist(h, self.points)\n",
                  {14, 0, {"a 8: a.weight@0 points@1", "points 6: points@0 b.weight@1"}},
                  {{"points", {6, 8}}});
  }
  SECTION("distances of pairs") {
    check_between(8, 1,
                  "y = torch.pairwise_distance(h, torch.relu(torch.linear(x, self.c)), 2., 1e-6, "
                  "True)\n",
                  {8, 0, {"a 8: a.weight@0 c@0"}}, {{"c", {8, 5}}});
  }
  SECTION("a spatial transformer: positions from a matrix, channels free") {
    check({{"a.weight", {4, 3, 3, 3}},
           {"t.weight", {5, 4}},
           {"m.weight", {6, 5}},
           {"b.weight", {2, 4, 1, 1}}},
          R"(h = torch.relu(torch.conv2d(x, self.a.weight, None, [1, 1], [1, 1]))
t = torch.relu(torch.linear(h.mean([2, 3]), self.t.weight))
m = torch.linear(t, self.m.weight).view(3, 2, 3)
h = torch.grid_sampler(h, torch.affine_grid_generator(m, [3, 4, 4, 4], False), 0, 0, False)
return torch.conv2d(h, self.b.weight)
)",
          images(),
          {9, 6, {"a 4: a.weight@0 t.weight@1 b.weight@1", "t 5: t.weight@0 m.weight@1"}});
  }
  SECTION("pairs of units as complex numbers, turned by a position") {
    check({{"q.weight", {8, 6}}, {"k.weight", {8, 6}}, {"b.weight", {3, 5}}},
          R"(q = torch.view_as_complex(torch.linear(x, self.q.weight).view(3, 5, 4, 2))
k = torch.view_as_complex(torch.linear(x, self.k.weight).view(3, 5, 4, 2))
turn = torch.polar(torch.ones([5, 1], dtype=x.dtype), torch.arange(5, dtype=x.dtype).unsqueeze(1))
q = torch.view_as_real(q * turn).flatten(2)
k = torch.view_as_real(k * turn).flatten(2)
return torch.linear(torch.matmul(q, k.transpose(1, 2)), self.b.weight)
)",
          tokens(), {16, 0, {"q 4: q.weight@0 k.weight@0"}});
  }
}

TEST_CASE("unpooling ties what is put to where it was found", "[operator_rules]") {
  at::manual_seed(55);
  check({{"a.weight", {4, 3, 1, 1}}, {"c.weight", {4, 4, 1, 1}}, {"d.weight", {2, 4, 1, 1}}},
        R"(h, i = torch.max_pool2d_with_indices(torch.conv2d(x, self.a.weight), [2, 2])
h = torch.max_unpool2d(torch.conv2d(h, self.c.weight), i, [4, 4])
return torch.conv2d(h, self.d.weight)
)",
        images(), {4, 0, {"a 4: a.weight@0 c.weight@0 c.weight@1 d.weight@1"}});
}
