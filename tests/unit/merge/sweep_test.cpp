#include "weightsmith/merge/sweep.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "support/expect_error.h"
#include "support/files.h"
#include "support/temporary_folder.h"
#include "weightsmith/eval/fingerprint.h"
#include "weightsmith/merge/networks.h"
#include "weightsmith/merge/statistics_cache.h"
#include "weightsmith/model/builtin.h"
#include "weightsmith/tensor/safetensors.h"

namespace weightsmith {
namespace {

using nlohmann::json;
using testing::expect_error;
using testing::TemporaryFolder;

SweepPoint point(double balance, double weight, double activation) {
  SweepPoint p;
  p.balance = balance;
  p.agreement = {weight, activation};
  return p;
}

UnitGroups two_groups() {
  UnitGroups groups;
  groups.groups.push_back({"a", 3, 1, {}, {}, "", {}});
  groups.groups.push_back({"b", 2, 1, {}, {}, "", {}});
  return groups;
}

std::vector<Matching> matchings() {
  return {make_matching({2, 3}, 3, {0, 1, 2, 2, 0, 1}, 0.5),
          make_matching({2, 2}, 2, {0, 0, 0, 1}, 0.25)};
}

TEST_CASE("the dual objective weighs both spaces by their best", "[merge]") {
  const std::vector<SweepPoint> points{point(0, 0.1, 0.8), point(0.5, 0.18, 0.72),
                                       point(1, 0.2, 0.4)};
  const std::vector<double> objective = dual_objective(points);
  CHECK(objective[0] == Approx((0.5 + 1.0) / 2));
  CHECK(objective[1] == Approx((0.9 + 0.9) / 2));
  CHECK(objective[2] == Approx((1.0 + 0.5) / 2));
  CHECK(best_point(points) == 1);
  // A space in which nothing agrees does not count.
  CHECK(dual_objective({point(0, -0.1, 0.8), point(1, -0.2, 0.4)})[1] == Approx(0.5));
}

TEST_CASE("with labels accuracy decides, then loss, then the order", "[merge]") {
  std::vector<SweepPoint> points{point(0.1, 0, 0.9), point(0.5, 0, 0.1), point(0.9, 0, 0.1),
                                 point(1.0, 0, 0.1)};
  const std::vector<Evaluation> scores{
      make_evaluation(100, 60, 0.1, 0), make_evaluation(100, 70, 0.9, 0),
      make_evaluation(100, 70, 0.8, 0), make_evaluation(100, 70, 0.8, 0)};
  for (std::size_t i = 0; i < 4; ++i) points[i].selection = scores[i];
  CHECK(best_point(points) == 2);
}

TEST_CASE("a finished point is found again under its key alone", "[merge]") {
  const TemporaryFolder folder;
  const UnitGroups groups = two_groups();
  SweepPoint p = point(0.3, 0.1, 0.2);
  p.matched.matchings = matchings();
  p.matched.objective = 0.375;
  p.matched.objective_history = {0.3, 0.375};
  p.matched.groups_matched = 5;
  p.matched.groups_skipped = 1;
  p.selection = make_evaluation(50, 40, 0.7, 0.05);
  const auto file = folder / "point.safetensors";
  write_sweep_point(file, groups, p, "key");
  const auto read = read_sweep_point(file, groups, 2, "key");
  REQUIRE(read.has_value());
  CHECK(read->balance == 0.3);
  CHECK((read->matched.matchings == p.matched.matchings));
  CHECK(read->matched.objective == 0.375);
  CHECK(read->matched.objective_history == p.matched.objective_history);
  CHECK(read->matched.groups_matched == 5);
  CHECK(read->agreement.activation == 0.2);
  CHECK(read->selection->correct == 40);
  CHECK(read->selection->accuracy_low == p.selection->accuracy_low);

  CHECK_FALSE(read_sweep_point(file, groups, 2, "another key").has_value());
  CHECK_FALSE(read_sweep_point(folder / "missing", groups, 2, "key").has_value());
  CHECK_FALSE(read_sweep_point(file, groups, 3, "key").has_value());
  testing::write_bytes(file, "damaged");
  CHECK_FALSE(read_sweep_point(file, groups, 2, "key").has_value());
}

TEST_CASE("matchings survive a file, and files that do not fit are refused", "[merge]") {
  const TemporaryFolder folder;
  const UnitGroups groups = two_groups();
  const auto file = folder / "matching.safetensors";
  write_matchings(file, groups, matchings());
  CHECK((read_matchings(file, groups, 2).matchings == matchings()));
  const auto refused = [&](const std::vector<std::string>& parts, const UnitGroups& wanted,
                           std::int64_t models) {
    expect_error(ErrorKind::kInput, parts, [&] { read_matchings(file, wanted, models); });
  };
  refused({"matching.safetensors", "group a", "[2, 3]", "[3, 3] wanted"}, groups, 3);
  UnitGroups other = groups;
  other.groups[1].units = 4;
  refused({"group b"}, other, 2);
  other.groups[1] = {"c", 2, 1, {}, {}, "", {}};
  refused({"no matching of group c"}, other, 2);
  other.groups.pop_back();
  refused({"describes 2 groups, the network has 1"}, other, 2);

  SafetensorsFile raw = read_safetensors(file);
  const auto damaged = [&](const std::vector<std::string>& parts, auto change) {
    TensorMap tensors;
    for (const auto& [name, tensor] : raw.tensors) tensors[name] = tensor.clone();
    change(tensors);
    write_safetensors(file, tensors, raw.metadata);
    refused(parts, groups, 2);
  };
  damaged({"group a", "-1"}, [](TensorMap& t) { t.at("slot/a")[0][0] = -1; });
  damaged({"group a", "6"}, [](TensorMap& t) { t.at("slot/a")[0][0] = 6; });
  damaged({"group a", "empty"}, [](TensorMap& t) { t.at("slot/a").fill_(1); });
  damaged({"group b", "int32"},
          [](TensorMap& t) { t.at("slot/b") = t.at("slot/b").to(at::kLong); });
  damaged({"group b", "value"},
          [](TensorMap& t) { t.at("value/b").fill_(std::numeric_limits<double>::quiet_NaN()); });
  write_safetensors(file, raw.tensors, {});
  refused({"no matching of this version"}, groups, 2);
}

TEST_CASE("the cache gives back what was stored under a key, and nothing else", "[merge]") {
  struct Warnings final : Progress {
    void begin(std::string_view, std::int64_t, std::string_view) override {}
    void update(std::int64_t, std::string_view) override {}
    void end() override {}
    void warn(std::string_view message) override { last = message; }
    std::string last;
  };
  const TemporaryFolder folder;
  const UnitGroups groups = two_groups();
  at::manual_seed(1);
  std::vector<PackedSimilarity> stored;
  for (const UnitGroup& g : groups.groups)
    stored.push_back(
        packed(all_pairs_similarity(at::randn({2 * g.units, 2 * g.units}), 2, "test")));
  const std::string key(64, 'a');
  const StatisticsCache cache(folder / "cache", key);
  Warnings warnings;
  const auto load = [&](const StatisticsCache& from) {
    return from.load(groups, Similarity::Scope::kAllPairs, 2, warnings);
  };
  CHECK_FALSE(load(cache).has_value());
  cache.store(groups, stored);
  const auto found = load(cache);
  REQUIRE(found.has_value());
  for (std::size_t g = 0; g < 2; ++g) CHECK(at::equal((*found)[g].values, stored[g].values));
  CHECK_FALSE(load(StatisticsCache(folder / "cache", std::string(64, 'b'))).has_value());
  CHECK(warnings.last.empty());

  // The same first digits, another key: said, and not used.
  CHECK_FALSE(load(StatisticsCache(folder / "cache", std::string(16, 'a') + "b")).has_value());
  CHECK_THAT(warnings.last, Catch::Contains("something else"));
  testing::write_bytes(folder / "cache/activations-aaaaaaaaaaaaaaaa.safetensors", "damaged");
  CHECK_FALSE(load(cache).has_value());
  CHECK_THAT(warnings.last, Catch::Contains("again"));
  // Without a folder nothing is kept.
  const StatisticsCache off({}, key);
  off.store(groups, stored);
  CHECK_FALSE(load(off).has_value());
}

TEST_CASE("a fingerprint follows contents, not names or places", "[merge]") {
  const auto model = [](std::uint64_t seed, std::int64_t width, const std::string& where) {
    return ScriptModel(build_builtin("mlp", {{"hidden", {width}}}, seed), where);
  };
  const auto of_model = [](const ScriptModel& m) { return Fingerprint("test").add(m).hex(); };
  CHECK(of_model(model(1, 4, "a")) == of_model(model(1, 4, "b")));
  CHECK(of_model(model(1, 4, "a")) != of_model(model(2, 4, "a")));
  CHECK(of_model(model(1, 4, "a")) != of_model(model(1, 5, "a")));
  Dataset data;
  data.images = at::arange(8, at::kFloat).view({2, 4});
  data.labels = at::zeros({2}, at::kLong);
  data.classes = 2;
  const auto of_data = [](const Dataset& d) { return Fingerprint("test").add(d).hex(); };
  const std::string before = of_data(data);
  Dataset other = data;
  other.images = data.images.view({4, 2});
  CHECK(of_data(other) != before);
  other = data;
  other.mean = {0.5};
  CHECK(of_data(other) != before);
  other = data;
  other.where = "elsewhere";
  CHECK(of_data(other) == before);
  CHECK(Fingerprint("a").add("bc").hex() != Fingerprint("ab").add("c").hex());
}

}  // namespace
}  // namespace weightsmith
