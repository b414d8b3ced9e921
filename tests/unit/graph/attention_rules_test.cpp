#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include <torch/csrc/jit/runtime/operator.h>

#include "unit/graph/rule_checks.h"

using namespace weightsmith;
using namespace weightsmith::testing;

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
    const bool is_old = !torch::jit::getAllOperatorsFor(
                             c10::Symbol::fromQualString("aten::_scaled_dot_product_attention"))
                             .empty();  // before LibTorch 2
    const auto source = [is_old](const char* is_causal) {
      return fmt::format(
          R"(q = self.latents.unsqueeze(0).expand(3, 6, 8)
y = torch.{}(q, q, q, None, 0., {}
return torch.linear((y * y).sum([1]), self.b.weight) * x.sum()
)",
          is_old ? "_scaled_dot_product_attention" : "scaled_dot_product_attention",
          is_old ? fmt::format("False, {})[0]", is_causal) : fmt::format("{})", is_causal));
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

namespace {

/// Queries in four heads of four, keys and values in two.
const Shapes kSharedHeads{
    {"q.weight", {16, 6}}, {"k.weight", {8, 6}}, {"v.weight", {8, 6}}, {"out.weight", {6, 16}}};
/// A head's units in two query heads that share it: {0,4,1,5,...}.
const std::string kTwice = "{0,4,1,5,2,6,3,7,8,12,9,13,10,14,11,15}";

}  // namespace

TEST_CASE("query heads that share keys and values by broadcasting", "[operator_rules]") {
  at::manual_seed(61);
  // Pairs of query heads move with their key and value head; within a head, units of queries and
  // keys, and units of values and outputs, move alike in all heads that share it.
  const Wanted shared{32,
                      0,
                      {"q.blocks 2:", "q 8/2 in q.blocks: q.weight@0" + kTwice + " k.weight@0",
                       "v 8/2 in q.blocks: v.weight@0 out.weight@1" + kTwice}};
  SECTION("a dimension of size one") {
    check(kSharedHeads,
          R"(q = torch.linear(x, self.q.weight).view(3, 5, 2, 2, 4).permute(0, 2, 3, 1, 4)
k = torch.linear(x, self.k.weight).view(3, 5, 2, 1, 4).permute(0, 2, 3, 1, 4)
v = torch.linear(x, self.v.weight).view(3, 5, 2, 1, 4).permute(0, 2, 3, 1, 4)
y = torch.matmul(torch.softmax(torch.matmul(q, k.transpose(-2, -1)), -1), v)
return torch.linear(y.permute(0, 3, 1, 2, 4).reshape(3, 5, 16), self.out.weight)
)",
          tokens(), shared);
  }
  SECTION("einsum") {
    check(kSharedHeads, R"(q = torch.linear(x, self.q.weight).view(3, 5, 2, 2, 4)
k = torch.linear(x, self.k.weight).view(3, 5, 2, 4)
v = torch.linear(x, self.v.weight).view(3, 5, 2, 4)
a = torch.softmax(torch.einsum("btgrd,bsgd->bgrts", [q, k]), -1)
y = torch.einsum("bgrts,bsge->btgre", [a, v])
return torch.linear(y.reshape(3, 5, 16), self.out.weight)
)",
          tokens(), shared);
  }
  SECTION("one key and value head for all") {
    const auto net = check({{"q.weight", {16, 6}},
                            {"k.weight", {4, 6}},
                            {"v.weight", {4, 6}},
                            {"out.weight", {6, 16}}},
                           R"(q = torch.linear(x, self.q.weight).view(3, 5, 4, 4).transpose(1, 2)
k = torch.linear(x, self.k.weight).unsqueeze(1)
v = torch.linear(x, self.v.weight).unsqueeze(1)
y = torch.matmul(torch.softmax(torch.matmul(q, k.transpose(-2, -1)), -1), v).transpose(1, 2)
return torch.linear(y.reshape(3, 5, 16), self.out.weight)
)",
                           tokens(),
                           {24,
                            0,
                            {"q 4:" + gates("q.weight@0", 4, 4) + " k.weight@0",
                             "v 4: v.weight@0" + gates("out.weight@1", 4, 4)}});
    // The order of heads is what has to stay.
    REQUIRE(net.derivation.rigid.size() == 1);
    CHECK_THAT(net.derivation.rigid[0].reason, Catch::Contains("two sets of units that cross"));
    CHECK_THAT(net.derivation.rigid[0].where, Catch::Contains("aten::matmul"));
  }
}

TEST_CASE("linear attention: keys times values first", "[operator_rules]") {
  at::manual_seed(62);
  const Shapes own{
      {"q.weight", {8, 6}}, {"k.weight", {8, 6}}, {"v.weight", {6, 6}}, {"out.weight", {6, 6}}};
  const std::string features = R"(q = torch.elu(torch.linear(x, self.q.weight)) + 1
k = torch.elu(torch.linear(x, self.k.weight)) + 1
v = torch.linear(x, self.v.weight)
)";
  SECTION("heads, normalised") {
    check(own, features + R"(q = q.view(3, 5, 2, 4).transpose(1, 2)
k = k.view(3, 5, 2, 4).transpose(1, 2)
v = v.view(3, 5, 2, 3).transpose(1, 2)
z = torch.matmul(q, k.sum([2], True).transpose(-2, -1)) + 0.1
y = torch.matmul(q, torch.matmul(k.transpose(-2, -1), v)) / z
return torch.linear(y.transpose(1, 2).reshape(3, 5, 6), self.out.weight)
)",
          tokens(),
          {14,
           0,
           {"q.blocks 2:", "q 8/2 in q.blocks: q.weight@0 k.weight@0",
            "v 6/2 in q.blocks: v.weight@0 out.weight@1"}});
  }
  SECTION("the product of keys and values moved about") {
    check(own, features + R"(q = q.view(3, 5, 2, 4).transpose(1, 2)
k = k.view(3, 5, 2, 4).permute(0, 2, 3, 1).reshape(6, 4, 5)
v = v.view(3, 5, 2, 3).transpose(1, 2).reshape(6, 5, 3)
c = torch.bmm(k, v).view(3, 2, 4, 3).transpose(2, 3).contiguous()
y = torch.matmul(c, q.transpose(-2, -1)).permute(0, 3, 1, 2)
return torch.linear(y.reshape(3, 5, 6), self.out.weight)
)",
          tokens(),
          {14,
           0,
           {"q.blocks 2:", "q 8/2 in q.blocks: q.weight@0 k.weight@0",
            "v 6/2 in q.blocks: v.weight@0 out.weight@1"}});
  }
  SECTION("one head, by einsum") {
    check(own, features + R"(c = torch.einsum("bsd,bse->bde", [k, v])
return torch.linear(torch.einsum("btd,bde->bte", [q, c]), self.out.weight)
)",
          tokens(), {14, 0, {"q 8: q.weight@0 k.weight@0", "v 6: v.weight@0 out.weight@1"}});
  }
}

TEST_CASE("one norm for all heads: heads move, and what stays has its reason", "[operator_rules]") {
  at::manual_seed(63);
  const auto net = check(
      {{"q.weight", {16, 6}},
       {"k.weight", {16, 6}},
       {"v.weight", {16, 6}},
       {"n.weight", {8}},
       {"n.bias", {8}},
       {"out.weight", {6, 16}}},
      R"(q = torch.linear(x, self.q.weight).view(3, 5, 2, 8)
q = torch.layer_norm(q, [8], self.n.weight, self.n.bias).transpose(1, 2)
k = torch.linear(x, self.k.weight).view(3, 5, 2, 8)
k = torch.layer_norm(k, [8], self.n.weight, self.n.bias).transpose(1, 2)
v = torch.linear(x, self.v.weight).view(3, 5, 2, 8).transpose(1, 2)
y = torch.matmul(torch.softmax(torch.matmul(q, k.transpose(-2, -1)), -1), v).transpose(1, 2)
return torch.linear(y.reshape(3, 5, 16), self.out.weight)
)",
      tokens(), {32, 0, {"q 2: q.weight@0 k.weight@0", "v 16/2 in q: v.weight@0 out.weight@1"}});
  REQUIRE(net.derivation.rigid.size() == 1);
  CHECK_THAT(net.derivation.rigid[0].reason, Catch::Contains("two sets of units that cross"));
  CHECK_THAT(net.derivation.rigid[0].where, Catch::Contains("aten::layer_norm"));
}

TEST_CASE("a constant for each head tells the heads apart, and a trained buffer does not",
          "[operator_rules]") {
  at::manual_seed(64);
  const Shapes shapes{
      {"q.weight", {8, 6}}, {"k.weight", {8, 6}}, {"v.weight", {8, 6}}, {"out.weight", {6, 8}}};
  const std::string forward = R"(q = torch.linear(x, self.q.weight).view(3, 5, 2, 4).transpose(1, 2)
k = torch.linear(x, self.k.weight).view(3, 5, 2, 4).transpose(1, 2)
v = torch.linear(x, self.v.weight).view(3, 5, 2, 4).transpose(1, 2)
t = torch.arange(5)
a = torch.matmul(q, k.transpose(-2, -1)) - (t.unsqueeze(0) - t.unsqueeze(1)).abs() * self.slopes
y = torch.matmul(torch.softmax(a, -1), v).transpose(1, 2)
return torch.linear(y.reshape(3, 5, 8), self.out.weight)
)";
  const at::Tensor slopes = at::tensor({0.5F, 0.25F}).view({2, 1, 1});
  check(shapes, forward, tokens(),
        {16,
         0,
         {"q[0:4] 4: q.weight@0[0:4] k.weight@0[0:4]", "q[4:8] 4: q.weight@0[4:8] k.weight@0[4:8]",
          "v[0:4] 4: v.weight@0[0:4] out.weight@1[0:4]",
          "v[4:8] 4: v.weight@0[4:8] out.weight@1[4:8]"}},
        {{"slopes", slopes}});
  // The same for all heads, or other ones in a model that it is merged with.
  check(shapes, forward, tokens(),
        {16,
         0,
         {"q.blocks 2:", "q 8/2 in q.blocks: q.weight@0 k.weight@0",
          "v 8/2 in q.blocks: v.weight@0 out.weight@1"}},
        {{"slopes", at::full({2, 1, 1}, 0.5)}});
  const ScriptModel first(make_network(shapes, forward, {{"slopes", slopes}}), "first");
  const ScriptModel second(make_network(shapes, forward, {{"slopes", slopes.flip(0)}}), "second");
  CHECK(differing_buffers({&first, &first}).empty());
  CHECK(differing_buffers({&first, &second}) == std::set<std::string>{"slopes"});
  const GroupDerivation moving =
      derive_unit_groups(first.module(), "first", {tokens()}, {"slopes"});
  REQUIRE(moving.groups.groups.size() == 3);
  CHECK(line_of(moving.groups.groups[0], first.state_dict()) == "slopes 2: slopes@0");
}

TEST_CASE("what training writes to a buffer moves with the units", "[operator_rules]") {
  at::manual_seed(65);
  const auto four = [] { return at::rand({8}) + 0.5; };
  // A frozen batch norm written out, and statistics under names of their own.
  check_between(8, 8, "y = h * self.n.weight * torch.rsqrt(self.n.running_var) + self.n.bias\n",
                {8, 0, {"a 8: a.weight@0 n.weight@0 n.running_var@0 n.bias@0 b.weight@1"}}, {},
                {{"n.weight", four()}, {"n.bias", four()}, {"n.running_var", four()}});
  check_between(8, 8,
                "y = torch.batch_norm(h, None, None, self.mean, self.variance, False, 0.1, 1e-5, "
                "False)\n",
                {8, 0, {"a 8: a.weight@0 mean@0 variance@0 b.weight@1"}}, {},
                {{"mean", four()}, {"variance", four()}});
  const DerivedNetwork constant =
      check_between(8, 8, "y = h * self.scale\n", {0, 8, {}}, {}, {{"scale", four()}});
  REQUIRE(constant.derivation.pinned.size() == 1);
  CHECK_THAT(constant.derivation.pinned[0].where, Catch::Contains("aten::mul"));
}
