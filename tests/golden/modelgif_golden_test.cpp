// Fields and distances of the authors' implementation of ModelGiF (tests/data/golden/README.md).

#include <ATen/ATen.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <fstream>
#include <nlohmann/json.hpp>

#include "support/golden.h"
#include "weightsmith/distance/field_distance.h"
#include "weightsmith/distance/gradient_field.h"
#include "weightsmith/distance/linkage.h"
#include "weightsmith/distance/rank_statistics.h"
#include "weightsmith/tensor/safetensors.h"

namespace weightsmith {
namespace {

using nlohmann::json;
using testing::golden;

const SafetensorsFile& file() {
  static const SafetensorsFile stored = read_safetensors(golden("modelgif/fields.safetensors"));
  return stored;
}

const json& scalars() {
  static const json stored = json::parse(std::ifstream(golden("modelgif/scalars.json")));
  return stored;
}

const at::Tensor& tensor(const std::string& name) {
  CAPTURE(name);
  REQUIRE(file().tensors.contains(name));
  return file().tensors.at(name);
}

ScriptModel load(const std::string& name) {
  ModelRef ref;
  ref.script = golden("modelgif/" + name + ".pt");
  return ScriptModel::load(ref, {});
}

FieldInputs inputs(bool given_baseline) {
  const at::Tensor x = tensor("inputs");
  return {x, given_baseline ? tensor("baselines") : at::zeros_like(x), tensor("labels")};
}

void check_close(const at::Tensor& actual, const at::Tensor& wanted) {
  REQUIRE(actual.sizes() == wanted.sizes());
  const at::Tensor w = wanted.to(at::kDouble);
  CHECK(((actual.to(at::kDouble) - w).abs() - 1e-4 * w.abs()).max().item<double>() <= 2e-6);
}

at::Tensor field_of(const std::string& model, const FieldOptions& options, bool given_baseline,
                    std::int64_t batch = 0) {
  ScriptModel network = load(model);
  return GradientField(network, options, batch).compute(inputs(given_baseline)).field;
}

TEST_CASE("points and weights of the quadrature rules", "[golden]") {
  for (const auto& [rule, name] : enum_names(PathRule{})) {
    for (const int n : {6, 50}) {
      const std::string key = std::string("quad/") + name + "/" + std::to_string(n);
      CAPTURE(key);
      const PathPoints points = path_points(rule, n);
      const auto gap = [&](const std::vector<double>& ours, const char* part) {
        return (at::tensor(ours, at::kDouble) - tensor(key + part)).abs().max().item<double>();
      };
      // Riemann: the same float32 numbers, but for the last bit on processors of other vectors.
      const double tolerance = rule == PathRule::kGaussLegendre ? 1e-12 : 6e-8;
      CHECK(gap(points.alphas, "/alphas") <= tolerance);
      CHECK(gap(points.weights, "/steps") <= tolerance);
    }
  }
}

TEST_CASE("fields of scripted and traced networks", "[golden]") {
  int compared = 0;
  for (const char* model : {"tinycnn", "tinymlp"}) {
    for (const char* kind : {"_scripted", "_traced"}) {
      for (const auto& [rule, name] : enum_names(PathRule{})) {
        for (const int n : {6, 50}) {
          for (const bool cumulative : {true, false}) {
            for (const bool given : {false, true}) {
              const std::string key = std::string("field/") + model + "/" + name + "/n" +
                                      std::to_string(n) + (cumulative ? "/cumsum" : "/raw") +
                                      (given ? "/base_given" : "/base_zero");
              for (const auto& [target, end, multiply] :
                   {std::tuple{FieldTarget::kLabel, "/target_label", true},
                    {FieldTarget::kPrediction, "/target_argmax", true},
                    {FieldTarget::kAllClasses, "/target_allclasses", true},
                    {FieldTarget::kLabel, "/target_label/nomult", false}}) {
                if (!file().tensors.contains(key + end)) continue;
                CAPTURE(kind, key, end);
                FieldOptions options{rule, n, cumulative, multiply, target};
                check_close(field_of(std::string(model) + kind, options, given), tensor(key + end));
                ++compared;
              }
            }
          }
        }
      }
    }
  }
  CHECK(compared == 2 * 48);
}

TEST_CASE("fields in double precision, and the summed integral", "[golden]") {
  for (const std::string model : {"tinycnn", "tinymlp"}) {
    ScriptModel network = load(model + "_scripted");
    for (auto& [name, value] : network.state_dict())
      if (value.is_floating_point()) value.set_data(value.to(at::kDouble));
    const at::Tensor x = tensor("inputs").to(at::kDouble);
    const FieldOptions options{PathRule::kGaussLegendre, 6, true, true, FieldTarget::kLabel};
    const FieldChunk whole =
        GradientField(network, options).compute({x, at::zeros_like(x), tensor("labels")});
    const at::Tensor wanted =
        tensor("field64/" + model + "/gausslegendre/n6/cumsum/base_zero/target_label");
    CHECK((whole.field - wanted).abs().max().item<double>() < 1e-12);
    // The last step of a cumulative field is the integral itself.
    check_close(whole.field.select(1, 5).view({3, 3, 8, 8}),
                tensor("ig/" + model + "/gausslegendre/n6"));
    CHECK((whole.integral - wanted.select(1, 5).sum(1)).abs().max().item<double>() < 1e-12);
  }
}

TEST_CASE("fields of dense outputs", "[golden]") {
  FieldOptions options;
  options.steps = 5;
  options.channel_mean = true;
  for (const auto& [target, name] :
       {std::pair{FieldTarget::kFeatureMapMax, "encfield/exp1/n5/base_zero"},
        {FieldTarget::kChannelMax, "encfield/exp5/n5/base_zero"},
        {FieldTarget::kSegmentation, "encfield/exp5/n5/base_zero"}}) {
    CAPTURE(name);
    options.target = target;
    check_close(field_of("tinyenc_scripted", options, false), tensor(name));
  }
}

struct Case {
  DistanceKind kind;
  const char* name;
};
const std::vector<Case> kCases{{DistanceKind::kCosine, "get_field_cosdis"},
                               {DistanceKind::kEuclidean, "get_field_eucldis"},
                               {DistanceKind::kFrechetCosine, "get_field_cosfrechet"},
                               {DistanceKind::kFrechetEuclidean, "get_field_euclfrechet"},
                               {DistanceKind::kCosineNormalised, "get_field_cosdis_norm"},
                               {DistanceKind::kAbsolute, "get_field_absdis"},
                               {DistanceKind::kInverseCosine, "get_distance_new"}};

TEST_CASE("every distance between two fields", "[golden]") {
  const auto pair = [](const std::string& part) {
    const std::string end = "/gausslegendre/" + part + "/base_zero/target_label";
    return std::pair{tensor("field/tinycnn" + end), tensor("field/tinymlp" + end)};
  };
  const at::Tensor first = pair("n6/cumsum").first;
  for (const auto& [name, fields] : {std::pair{"n6_cumsum", pair("n6/cumsum")},
                                     {"n50_cumsum", pair("n50/cumsum")},
                                     {"n6_raw", pair("n6/raw")},
                                     {"n6_self", std::pair{first, first}},
                                     {"n6_neg", std::pair{first, -first}}}) {
    const json& wanted = scalars()["distances"];
    const auto check = [&](const at::Tensor& a, const at::Tensor& b, DistanceKind kind,
                           const std::string& what) {
      CAPTURE(name, what);
      const double value = wanted.at(name + ("/" + what)).get<double>();
      // Of values of the order of ten, the tolerance of their reciprocal.
      const double tolerance = kind == DistanceKind::kInverseCosine ? 1e-3 : 1e-5;
      const std::vector<FieldSource> sources{source_of(a), source_of(b)};
      const FieldDistances all = field_distances(sources, kind);
      CHECK(std::abs(all.mean[0][1].item<double>() - value) <= tolerance);
      CHECK(std::abs(all.mean[1][0].item<double>() - value) <= tolerance);
      // One row at a time, and to one model alone.
      const FieldDistances one = field_distances(sources, kind, 0, 1);
      CHECK(std::abs(one.mean[1].item<double>() - value) <= tolerance);
      CHECK(all.zero_norms == std::vector<std::int64_t>{0, 0});
    };
    const auto& [a, b] = fields;
    for (const Case& c : kCases) check(a, b, c.kind, c.name);
    for (const auto& [subset, what] : {std::pair{StepSubset::kLastHalf, "skip0_lasthalf"},
                                       {StepSubset::kFirstHalf, "skip1_firsthalf"},
                                       {StepSubset::kOdd, "skip2_odd"}}) {
      const at::Tensor steps = at::tensor(kept_steps(subset, a.size(1)), at::kLong);
      check(a.index_select(1, steps), b.index_select(1, steps), DistanceKind::kCosine, what);
    }
    const FieldDistances samples =
        field_distances({source_of(a), source_of(b)}, DistanceKind::kCosine);
    CHECK((samples.per_sample[0][1] -
           tensor(std::string("dist/") + name + "/cos_per_sample").to(at::kDouble))
              .abs()
              .max()
              .item<double>() <= 1e-5);
  }
}

TEST_CASE("AUC and rank correlation", "[golden]") {
  for (const auto& [name, test] : scalars()["eval"]["auc"].items()) {
    CAPTURE(name);
    CHECK(auc(test["derived"].get<std::vector<double>>(),
              test["independent"].get<std::vector<double>>()) ==
          Approx(test["auc"].get<double>()).margin(1e-12));
  }
  const json& test = scalars()["eval"]["spearman"];
  const auto distance = test["distance"].get<std::vector<std::vector<double>>>();
  const auto affinity = test["target_affinity"].get<std::vector<std::vector<double>>>();
  double mean = 0;
  for (std::size_t column = 0; column < distance.size(); ++column) {
    std::vector<double> a, b;
    for (std::size_t row = 0; row < distance.size(); ++row) {
      a.push_back(distance[row][column]);
      b.push_back(affinity[row][column]);
    }
    const double found = spearman(a, b);
    CHECK(found == Approx(test["per_column"][column].get<double>()).margin(1e-12));
    mean += found / static_cast<double>(distance.size());
  }
  CHECK(mean == Approx(test["mean"].get<double>()).margin(1e-12));
}

TEST_CASE("the tree of tasks and the order of its leaves", "[golden]") {
  const at::Tensor rows = (1 - tensor("tree/distance17")).log().contiguous();
  std::vector<std::vector<double>> points;
  for (std::int64_t r = 0; r < rows.size(0); ++r) {
    const auto* data = rows[r].data_ptr<double>();
    points.emplace_back(data, data + rows.size(1));
  }
  const auto merges = ward_linkage(points);
  const at::Tensor wanted = tensor("tree/linkage_ward");
  REQUIRE(merges.size() == 16);
  for (std::int64_t m = 0; m < 16; ++m) {
    CHECK(static_cast<double>(merges[m].left) == wanted[m][0].item<double>());
    CHECK(static_cast<double>(merges[m].right) == wanted[m][1].item<double>());
    CHECK(merges[m].height == Approx(wanted[m][2].item<double>()).epsilon(1e-9));
    CHECK(static_cast<double>(merges[m].size) == wanted[m][3].item<double>());
  }
  // The published order's neighbours are not the nearest possible of this very tree: ours are.
  const auto length = [&](const std::vector<std::int64_t>& leaves) {
    double sum = 0;
    for (std::size_t i = 1; i < leaves.size(); ++i)
      sum += (rows[leaves[i]] - rows[leaves[i - 1]]).norm().item<double>();
    return sum;
  };
  const auto leaves = leaves_of(optimally_ordered(merges, points));
  const auto published = scalars()["eval"]["tree"]["leaves_opt"].get<std::vector<std::int64_t>>();
  auto sorted = leaves;
  std::sort(sorted.begin(), sorted.end());
  for (std::int64_t leaf = 0; leaf < 17; ++leaf) CHECK(sorted[leaf] == leaf);
  CHECK(length(leaves) <= length(published) + 1e-9);
  CHECK(length(leaves) <= length(leaves_of(merges)) + 1e-9);
}

TEST_CASE("the order of reference samples", "[golden]") {
  const at::Tensor d = tensor("select/distance").to(at::kDouble);
  const auto columns = [&](std::int64_t begin, std::int64_t end) {
    std::vector<std::vector<double>> rows;
    for (std::int64_t s = 0; s < d.size(0); ++s) {
      rows.emplace_back();
      for (std::int64_t m = begin; m < end; ++m) rows.back().push_back(d[s][m].item<double>());
    }
    return rows;
  };
  const auto near = columns(0, 6);
  const auto far = columns(6, 26);
  for (const auto& [statistic, name] : enum_names(SampleStatistic{})) {
    CAPTURE(name);
    const json& wanted = scalars()["eval"]["select"][name];
    CHECK(sample_order(SampleRule::kGap, statistic, near, far) ==
          wanted["sort_by_gap"].get<std::vector<std::int64_t>>());
    CHECK(sample_order(SampleRule::kIndependents, statistic, near, far) ==
          wanted["sort_by_distance_irr"].get<std::vector<std::int64_t>>());
  }
}

}  // namespace
}  // namespace weightsmith
