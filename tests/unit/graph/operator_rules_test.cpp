#include "weightsmith/graph/operator_rules.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "unit/graph/derived_network.h"

using namespace weightsmith;
using testing::DerivedNetwork;
using testing::make_network;
using testing::NamedTensors;
using testing::Shapes;

namespace {

/// What a network's groups must be; see testing::line_of.
struct Wanted {
  std::int64_t free = 0;
  std::int64_t pinned = 0;
  std::vector<std::string> groups;
};

DerivedNetwork check(const torch::jit::Module& net, const std::vector<c10::IValue>& inputs,
                     const Wanted& wanted) {
  DerivedNetwork derived(net, inputs);
  INFO(derived.describe());
  CHECK(derived.derivation.free_units == wanted.free);
  CHECK(derived.derivation.pinned_units == wanted.pinned);
  CHECK(derived.lines() == wanted.groups);
  testing::check_proved(derived);
  return derived;
}

DerivedNetwork check(const Shapes& shapes, const std::string& forward, const at::Tensor& x,
                     const Wanted& wanted, const NamedTensors& buffers = {}) {
  return check(make_network(shapes, forward, buffers), {x}, wanted);
}

at::Tensor images(std::int64_t channels = 3) { return at::randn({3, channels, 4, 4}); }
at::Tensor vectors() { return at::randn({3, 5}); }
at::Tensor tokens() { return at::randn({3, 5, 6}); }

/// " name[0:units] name[units:2 units] ...", one stretch a gate.
std::string gates(const std::string& name, std::int64_t units, std::int64_t count) {
  std::string text;
  for (std::int64_t g = 0; g < count; ++g)
    text += fmt::format(" {}[{}:{}]", name, g * units, (g + 1) * units);
  return text;
}

/// Fully connected layers around some statements that turn h (3, in) into y (3, out).
DerivedNetwork check_between(std::int64_t in, std::int64_t out, const std::string& statements,
                             const Wanted& wanted, Shapes more = {},
                             const NamedTensors& buffers = {}) {
  more.insert(more.end(), {{"a.weight", {in, 5}}, {"b.weight", {4, out}}});
  return check(more,
               "h = torch.tanh(torch.linear(x, self.a.weight))\n" + statements +
                   "return torch.linear(y, self.b.weight)\n",
               vectors(), wanted, buffers);
}

}  // namespace

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

TEST_CASE("attention", "[operator_rules]") {
  at::manual_seed(6);
  const Shapes packed{{"qkv.weight", {24, 6}}, {"qkv.bias", {24}}, {"out.weight", {6, 8}}};
  const std::string split =
      R"(qkv = torch.linear(x, self.qkv.weight, self.qkv.bias).view(3, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
q = qkv[0]
k = qkv[1]
v = qkv[2]
)";
  const std::string join = R"(y = torch.matmul(torch.softmax(a, -1), v).transpose(1, 2)
return torch.linear(y.reshape(3, 5, 8), self.out.weight)
)";
  const auto queries_and_keys = [](const std::string& within) {
    return "qkv[0:8] 8/2 in " + within + ":" + gates("qkv.weight@0", 8, 2) +
           gates("qkv.bias@0", 8, 2);
  };
  const auto values = [](const std::string& within) {
    return "qkv[16:24] 8/2 in " + within + ": qkv.weight@0[16:24] qkv.bias@0[16:24] out.weight@1";
  };
  SECTION("packed queries, keys and values share one order of heads") {
    const auto net =
        check(packed, split + "a = torch.matmul(q, k.transpose(-2, -1)) * 0.5\n" + join, tokens(),
              {16, 0, {"qkv.blocks 2:", queries_and_keys("qkv.blocks"), values("qkv.blocks")}});
    REQUIRE(net.groups.groups[1].taps.size() == 2);  // queries and keys
  }
  // The heads are counted themselves: the bias gives them a place in the parameters.
  SECTION("a bias for each head has the order of heads") {
    Shapes shapes = packed;
    shapes.push_back({"bias", {2, 5, 5}});
    check(shapes, split + "a = torch.matmul(q, k.transpose(-2, -1)) * 0.5 + self.bias\n" + join,
          tokens(), {18, 0, {"bias 2: bias@0", queries_and_keys("bias"), values("bias")}});
  }
  const Shapes separate{
      {"q.weight", {16, 6}}, {"k.weight", {8, 6}}, {"v.weight", {8, 6}}, {"out.weight", {6, 16}}};
  SECTION("heads that share keys and values") {
    const std::string twice = "{0,4,1,5,2,6,3,7,8,12,9,13,10,14,11,15}";
    check(separate, R"(q = torch.linear(x, self.q.weight).view(3, 5, 4, 4).transpose(1, 2)
k = torch.linear(x, self.k.weight).view(3, 5, 2, 4).transpose(1, 2)
v = torch.linear(x, self.v.weight).view(3, 5, 2, 4).transpose(1, 2)
k = k.unsqueeze(2).expand(3, 2, 2, 5, 4).reshape(3, 4, 5, 4)
v = torch.repeat_interleave(v, 2, 1)
y = torch.matmul(torch.softmax(torch.matmul(q, k.transpose(-2, -1)), -1), v).transpose(1, 2)
return torch.linear(y.reshape(3, 5, 16), self.out.weight)
)",
          tokens(),
          {16,
           0,
           {"q.blocks 2:", "q 8/2 in q.blocks: q.weight@0" + twice + " k.weight@0",
            "v 8/2 in q.blocks: v.weight@0 out.weight@1" + twice}});
  }
  const Shapes heads{
      {"q.weight", {16, 6}}, {"k.weight", {16, 6}}, {"v.weight", {16, 6}}, {"out.weight", {6, 16}}};
  const std::string rotary = R"(q = torch.linear(x, self.q.weight).view(3, 5, 2, 8).transpose(1, 2)
k = torch.linear(x, self.k.weight).view(3, 5, 2, 8).transpose(1, 2)
v = torch.linear(x, self.v.weight).view(3, 5, 2, 8).transpose(1, 2)
q = q * cos + torch.cat([-q[:, :, :, 4:], q[:, :, :, :4]], -1) * sin
k = k * cos + torch.cat([-k[:, :, :, 4:], k[:, :, :, :4]], -1) * sin
y = torch.matmul(torch.softmax(torch.matmul(q, k.transpose(-2, -1)), -1), v).transpose(1, 2)
return torch.linear(y.reshape(3, 5, 16), self.out.weight)
)";
  // Pairs of a head's units stand at positions of their own; whole heads can still move.
  const Wanted rotated{
      24, 0, {"q 2: q.weight@0 k.weight@0", "v 16/2 in q: v.weight@0 out.weight@1"}};
  SECTION("rotary positions computed on the way") {
    const auto net = check(heads, R"(t = torch.arange(5, dtype=x.dtype)
f = torch.arange(4, dtype=x.dtype) * 0.3 + 0.2
angles = torch.outer(t, f)
angles = torch.cat([angles, angles], -1)
cos = angles.cos()
sin = angles.sin()
)" + rotary,
                           tokens(), rotated);
    CHECK_FALSE(net.derivation.rigid.empty());
  }
  SECTION("rotary positions kept in buffers") {
    const at::Tensor half = at::outer(at::arange(5.0), at::arange(4.0) * 0.3 + 0.2);
    const at::Tensor angles = at::cat({half, half}, -1);
    check(heads, "cos = self.cos\nsin = self.sin\n" + rotary, tokens(), rotated,
          {{"cos", angles.cos()}, {"sin", angles.sin()}});
  }
  SECTION("learned tokens can be exchanged, unless attention is causal") {
    // The queries' tokens are summed over, so nothing but a mask tells them apart.
    const auto source = [](const char* is_causal) {
      return fmt::format(
          R"(q = self.latents.unsqueeze(0).expand(3, 6, 8)
y = torch._scaled_dot_product_attention(q, q, q, None, 0., False, {})[0]
return torch.linear((y * y).sum([1]), self.b.weight) * x.sum()
)",
          is_causal);
    };
    const Shapes own{{"latents", {6, 8}}, {"b.weight", {3, 8}}};
    const DerivedNetwork open(make_network(own, source("False")), {vectors()});
    CHECK(open.lines() == std::vector<std::string>{"latents[0:6] 6: latents@0",
                                                   "latents[0:8] 8: latents@1 b.weight@1"});
    testing::check_proved(open);
    const DerivedNetwork causal(make_network(own, source("True")), {vectors()});
    CHECK(causal.lines() == std::vector<std::string>{"latents 8: latents@1 b.weight@1"});
    testing::check_proved(causal);
  }
}

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
    pinned("y = torch.fft_fft(h).abs()\n", "no rule for this operator", "aten::fft_fft");
  }
  SECTION("argmax beside another use") {
    pinned("y = h + torch.argmax(h, 1, True)\n", "depends on the order", "aten::argmax");
  }
  SECTION("an index that depends on the data") {
    pinned("y = h[:, torch.argsort(h[0])]\n", "depends on the order", "aten::");
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
  CHECK(operator_rule("fft_fft") == nullptr);
  const std::vector<std::string> known = known_operators();
  CHECK(std::find(known.begin(), known.end(), "layer_norm") != known.end());
}
