#include <catch2/catch.hpp>
#include <string>
#include <vector>

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
