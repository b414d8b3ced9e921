#include "weightsmith/model/batch_norms.h"

#include <ATen/Functions.h>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "weightsmith/model/builtin.h"

using namespace weightsmith;
using torch::jit::Module;

TEST_CASE("batch norms that no mode moves are counted", "[batch_norms]") {
  const auto uses = [](const std::string& running, const std::string& training) {
    Module net("Net");
    net.register_buffer("mean", at::zeros({4}));
    net.register_attribute("training", c10::BoolType::get(), false);
    net.define(
        "def forward(self, x):\n    x = x.relu()\n"
        "    return torch.batch_norm(x, None, None, " +
        running + ", " + running + ", " + training + ", 0.1, 1e-5, False)\n");
    const BatchNormUses counted = batch_norm_uses(FlatGraph(net, "net"));
    return std::pair{counted.all, counted.frozen};
  };
  using Counts = std::pair<std::int64_t, std::int64_t>;
  CHECK(uses("self.mean", "False") == Counts{1, 1});
  CHECK(uses("self.mean", "True") == Counts{1, 0});
  CHECK(uses("self.mean", "self.training") == Counts{1, 0});
  CHECK(uses("None", "True") == Counts{0, 0});

  const auto builtin = [](const std::string& norm) {
    return batch_norm_uses(FlatGraph(build_builtin("convnet", {{"norm", norm}}, 1), "convnet"));
  };
  CHECK(builtin("batch").all == 4);
  CHECK(builtin("batch").frozen == 0);
  CHECK(builtin("group").all == 0);
}
