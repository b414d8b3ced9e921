// Units that an operator takes out of their axis one by one: nothing else tells them apart.
#include "unit/graph/derived_network.h"
#include "weightsmith/core/rng.h"
#include "weightsmith/graph/unit_orders.h"

using namespace weightsmith;
using namespace weightsmith::testing;

namespace {

/// Free units, and how many are pinned, of a network proved with 3 samples of 10 inputs.
std::pair<std::int64_t, std::int64_t> free_and_pinned(const Shapes& parameters,
                                                      const std::string& body) {
  INFO(body);
  const DerivedNetwork net(make_network(parameters, body), {at::randn({3, 10})});
  check_proved(net);
  return {net.derivation.free_units, net.derivation.pinned_units};
}

}  // namespace

TEST_CASE("a unit that is taken alone stays, and the others are free", "[derive_groups]") {
  using Counts = std::pair<std::int64_t, std::int64_t>;
  const Shapes two{{"a.weight", {6, 10}}, {"b.weight", {3, 6}}};
  const std::string hidden = "h = torch.tanh(torch.linear(x, self.a.weight))\n";
  const auto gated_by = [&](const std::string& taken) {
    return free_and_pinned(two,
                           hidden + "return torch.linear(h, self.b.weight) * (1 + " + taken + ")");
  };
  for (const char* taken : {"h[:, 2:3]", "h[:, 2].unsqueeze(1)", "h.narrow(1, 2, 1)"})
    CHECK(gated_by(taken) == Counts{5, 1});
  // These take every unit alone, though only one is used.
  for (const char* taken : {"h.chunk(6, 1)[2]", "h.unbind(1)[2].unsqueeze(1)"})
    CHECK(gated_by(taken) == Counts{0, 6});
  SECTION("outputs one by one") {
    for (const char* taken : {"y[:, 0], y[:, 1] * y[:, 2]", "y[:, 0], y[:, 1], y[:, 2]",
                              "y[:, 0:1], y.unbind(1)[1], torch.sigmoid(y[:, 2])",
                              "torch.stack([y[:, 2], y[:, 1], y[:, 0]], 1)"}) {
      const DerivedNetwork net(
          make_network(two, hidden + "y = torch.linear(h, self.b.weight)\nreturn " + taken),
          {at::randn({3, 10})});
      INFO(taken);
      CHECK(net.derivation.output_units == 3);
      CHECK(net.derivation.pinned_units == 0);
    }
    CHECK(free_and_pinned(two, hidden + "y = torch.linear(h, self.b.weight)\n"
                                        "return y[:, 0], y[:, 1] * y[:, 2]")
              .first == 6);
  }
  SECTION("parameters one by one") {
    const Shapes fused{
        {"a.weight", {6, 10}}, {"b.weight", {6, 10}}, {"w", {2}}, {"c.weight", {3, 6}}};
    CHECK(free_and_pinned(fused,
                          "h = self.w[0] * torch.relu(torch.linear(x, self.a.weight)) + "
                          "self.w[1] * torch.tanh(torch.linear(x, self.b.weight))\n"
                          "return torch.linear(h, self.c.weight)")
              .first == 6);
    const Shapes stacked{{"a.weight", {6, 10}}, {"w", {2, 6, 6}}, {"c.weight", {3, 6}}};
    CHECK(free_and_pinned(stacked, hidden + "h = torch.tanh(h @ self.w[0])\n"
                                            "h = torch.tanh(h @ self.w[1])\n"
                                            "return torch.linear(h, self.c.weight)")
              .first == 6);
  }
}

TEST_CASE("random orders leave no unit in its place", "[derive_groups]") {
  UnitGroups groups;
  groups.groups.push_back({"plain", 5, 1, {}, {}, "", {}});
  groups.groups.push_back({"blocks", 12, 4, {}, {}, "", {}});
  groups.groups.push_back({"one", 1, 1, {}, {}, "", {}});
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    Rng rng(seed);
    const UnitOrders orders = random_orders(groups, rng);
    for (std::size_t g = 0; g < 2; ++g)
      for (std::size_t u = 0; u < orders[g].size(); ++u)
        CHECK(orders[g][u] != static_cast<std::int64_t>(u));
    for (std::size_t u = 0; u < 12; ++u) CHECK(orders[1][u] / 3 == orders[1][u / 3 * 3] / 3);
    CHECK(orders[2] == std::vector<std::int64_t>{0});
  }
}

TEST_CASE("units met by a number that was taken out of the data stay", "[derive_groups]") {
  using Counts = std::pair<std::int64_t, std::int64_t>;
  const Shapes two{{"a.weight", {6, 10}}, {"b.weight", {3, 6}}};
  const auto with = [&](const std::string& lines, const std::string& gate) {
    return free_and_pinned(two, "h = torch.tanh(torch.linear(x, self.a.weight))\n" + lines +
                                    "\nreturn torch.linear(h, self.b.weight) * (1 + " + gate + ")");
  };
  // For these samples it is 2; for others it need not be.
  const std::string k = "k = int(x[0, 0] * 0.001 + 2)";
  for (const char* gate : {"h[:, k:k + 1]", "h[:, k].unsqueeze(1)", "h.narrow(1, k, 1)",
                           "h.unbind(1)[k].unsqueeze(1)", "h.roll([k], [1])[:, 0:1]",
                           "(h * (torch.arange(6) < k)).sum(1, True)", "h[:, torch.tensor([k])]"})
    CHECK(with(k, gate) == Counts{0, 6});
  CHECK(with("k = x.select(0, 0).max().item()", "h[:, 0 * int(k) + 2].unsqueeze(1)") ==
        Counts{0, 6});
  CHECK(with(k + "\ns = h.sum(1, True)\nfor i in range(k):\n    s = s + h[:, i:i + 1]", "s") ==
        Counts{0, 6});
  CHECK(with("q: List[float] = h[0].tolist()", "q[3]") == Counts{0, 6});
  // Numbers that are the same for all data, or that no unit is found by.
  CHECK(with("k = int(torch.arange(10)[2])", "h[:, k:k + 1]") == Counts{5, 1});
  CHECK(with("k = x.size(0) - 1", "h[:, k:k + 1]") == Counts{5, 1});
  CHECK(with("k = float(x[0, 0])", "(h * k).sum(1, True)") == Counts{6, 0});
  CHECK(with("k = float(h.sum())", "k") == Counts{6, 0});
}
