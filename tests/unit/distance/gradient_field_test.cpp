// Fields, distances and their files beside slow twins, and what they refuse.
#include "weightsmith/distance/gradient_field.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <thread>

#include "support/expect_error.h"
#include "support/files.h"
#include "support/networks.h"
#include "support/temporary_folder.h"
#include "weightsmith/core/rng.h"
#include "weightsmith/distance/field_distance.h"
#include "weightsmith/distance/field_file.h"
#include "weightsmith/distance/rank_statistics.h"
#include "weightsmith/model/fast_network.h"

namespace weightsmith {
namespace {

using testing::expect_error;
using testing::make_network;
using testing::TemporaryFolder;

ScriptModel network(const std::string& forward, const testing::NamedTensors& buffers = {}) {
  at::manual_seed(3);
  return ScriptModel(make_network({{"w", {5, 12}}, {"c", {4, 1, 3, 3}}}, forward, buffers), "net");
}

ScriptModel smooth() {
  return network(
      "h = torch.tanh(torch.conv2d(x, self.c, padding=1)).mean(1)\n"
      "return torch.matmul(h.flatten(1) * x.flatten(1), self.w.t())");
}

FieldInputs some_inputs(std::int64_t samples) {
  at::manual_seed(5);
  const at::Tensor x = at::randn({samples, 1, 3, 4});
  return {x, at::randn_like(x) * 0.2, at::arange(samples, at::kLong).remainder(5)};
}

/// One sample, one step, one sum at a time, in double, by finite differences.
at::Tensor slow_field(ScriptModel& model, const FieldInputs& inputs, const FieldOptions& options) {
  for (auto& [name, value] : model.state_dict()) value.set_data(value.to(at::kDouble));
  const PathPoints path = path_points(options.rule, options.steps);
  const std::int64_t samples = inputs.inputs.size(0), d = inputs.inputs[0].numel();
  at::Tensor field = at::zeros({samples, options.steps, d}, at::kDouble);
  const at::NoGradGuard no_grad;
  for (std::int64_t s = 0; s < samples; ++s) {
    const at::Tensor x = inputs.inputs.narrow(0, s, 1).to(at::kDouble);
    const at::Tensor base = inputs.baselines.narrow(0, s, 1).to(at::kDouble);
    const auto c = options.target == FieldTarget::kLabel
                       ? inputs.classes[s].item<std::int64_t>()
                       : model.forward(x)[0].argmax().item<std::int64_t>();
    at::Tensor sum = at::zeros({d}, at::kDouble);
    for (std::int64_t t = 0; t < options.steps; ++t) {
      const at::Tensor z = base + path.alphas[t] * (x - base);
      at::Tensor gradient = at::zeros({d}, at::kDouble);
      for (std::int64_t k = 0; k < d; ++k) {
        const auto value = [&](double shift) {
          at::Tensor moved = z.clone();
          moved.view({-1})[k] += shift;
          return model.forward(moved)[0][c].item<double>();
        };
        gradient[k] = (value(1e-5) - value(-1e-5)) / 2e-5;
      }
      sum = options.cumulative ? sum + path.weights[t] * gradient : path.weights[t] * gradient;
      field[s][t] = options.multiply_by_inputs ? sum * (x - base).flatten() : sum;
    }
  }
  return field;
}

TEST_CASE("fields equal those of a slow twin", "[distance]") {
  const FieldInputs inputs = some_inputs(3);
  for (const bool cumulative : {true, false}) {
    for (const FieldTarget target : {FieldTarget::kLabel, FieldTarget::kPrediction}) {
      FieldOptions options{PathRule::kRiemannTrapezoid, 5, cumulative, cumulative, target};
      ScriptModel model = smooth(), twin = smooth();
      const at::Tensor field = GradientField(model, options).compute(inputs).field;
      CHECK((field - slow_field(twin, inputs, options)).abs().max().item<double>() < 1e-5);
    }
  }
}

TEST_CASE("fields do not depend on the size of the batch", "[distance]") {
  const FieldInputs inputs = some_inputs(5);
  FieldOptions options;
  options.steps = 7;
  ScriptModel model = smooth();
  const FieldChunk whole = GradientField(model, options, 100).compute(inputs);
  const double largest = whole.field.abs().max().item<double>();
  for (const std::int64_t batch : {1, 2, 5, 7, 13}) {
    const FieldChunk part = GradientField(model, options, batch).compute(inputs);
    CHECK((part.field - whole.field).abs().max().item<double>() <= 1e-6 * largest);
    CHECK((part.integral - whole.integral).abs().max().item<double>() <= 1e-5);
  }
  // A smooth function, 7 Gauss points: the integral is the difference of the ends.
  CHECK((whole.integral - whole.difference).abs().max().item<double>() < 1e-4);
}

TEST_CASE("fields of networks with convolutions do not depend on the size of the batch",
          "[distance]") {
  at::manual_seed(8);
  const at::Tensor x = at::randn({6, 3, 16, 16});
  const FieldInputs inputs{x, at::zeros_like(x), {}};
  FieldOptions options;
  options.steps = 9;
  for (const char* name : {"convnet", "resnet20", "vgg11"}) {
    ModelRef ref;
    ref.builtin = name;
    ref.options = std::string(name) == "convnet" ? nlohmann::json{{"channels", 3}, {"width", 8}}
                                                 : nlohmann::json{{"width", 0.25}};
    ScriptModel plain = ScriptModel::load(ref, {});
    ScriptModel fast = fast_network(plain);
    for (ScriptModel* model : {&plain, &fast}) {
      const at::Tensor whole = GradientField(*model, options, 54).compute(inputs).field;
      for (const std::int64_t batch : {1, 4, 25}) {
        INFO(name << (model == &fast ? ", faster" : "") << ", batch " << batch);
        const at::Tensor part = GradientField(*model, options, batch).compute(inputs).field;
        CHECK(((part - whole).norm() / whole.norm()).item<double>() <= 1e-6);
      }
    }
  }
}

TEST_CASE("parameters take no gradient, and the steps kept are those asked for", "[distance]") {
  ScriptModel model = smooth();
  FieldOptions options;
  options.steps = 5;
  const FieldInputs inputs = some_inputs(2);
  const at::Tensor all = GradientField(model, options).compute(inputs).field;
  for (const auto& [name, parameter] : model.parameters()) CHECK_FALSE(parameter.requires_grad());
  options.subset = StepSubset::kOdd;
  const at::Tensor odd = GradientField(model, options).compute(inputs).field;
  CHECK(at::equal(odd, all.index_select(1, at::tensor({1, 3}, at::kLong))));
  CHECK(kept_steps(StepSubset::kLastHalf, 5) == std::vector<std::int64_t>{2, 3, 4});
  CHECK(kept_steps(StepSubset::kFirstHalf, 5) == std::vector<std::int64_t>{0, 1});
}

TEST_CASE("the batch is halved until memory suffices", "[distance]") {
  const std::string forward =
      "assert x.size(0) <= 6, 'out of memory'\n"
      "return torch.matmul(torch.tanh(x).flatten(1), self.w.t())";
  ScriptModel model = network(forward);
  FieldOptions options;
  options.steps = 10;
  GradientField field(model, options);
  const FieldInputs inputs = some_inputs(3);
  CHECK(field.compute(inputs).field.size(0) == 3);
  CHECK(field.batch_points() <= 6);
  // Looking at a network needs no more memory than its field; one that must be run with as many
  // points as it was told is not run with more.
  ScriptModel small = network(
      "assert x.size(0) <= 4, 'out of memory'\n"
      "return torch.matmul(torch.tanh(x).flatten(1), self.w.t())");
  GradientField(small, options).check(inputs);
  GradientField(small, options, 4).check(inputs);
  expect_error(ErrorKind::kNumeric, {"net", "6 points", "batch_size"},
               [&] { GradientField(small, options, 6).check(inputs); });
  expect_error(ErrorKind::kNumeric, {"net", "10 points", "batch_size"},
               [&] { GradientField(model, options, 10).compute(some_inputs(1)); });
}

TEST_CASE("networks without a field are refused by name", "[distance]") {
  FieldOptions options;
  options.steps = 3;
  const FieldInputs inputs = some_inputs(4);
  const auto refused = [&](ErrorKind kind, const std::vector<std::string>& parts,
                           ScriptModel model) {
    expect_error(kind, parts, [&] {
      GradientField field(model, options);
      field.check(inputs);
      field.compute(inputs);
    });
  };
  const std::string linear = "torch.matmul(x.flatten(1), self.w.t())";
  refused(ErrorKind::kInput, {"net", "no gradient"}, network("return " + linear + ".detach()"));
  refused(ErrorKind::kInput, {"net", "Long", "no gradient"},
          network("return " + linear + ".long()"));
  refused(ErrorKind::kInput, {"net", "(B, K)", "prediction"}, network("return x"));
  refused(ErrorKind::kInput, {"net", "depends on the rest of the batch"},
          network("return torch.matmul((x - x.mean(0)).flatten(1), self.w.t())"));
  refused(ErrorKind::kInput, {"net", "depends on the rest of the batch"},
          network("return torch.matmul((x - x.mean(0)).flatten(1), self.w.t()) * 1e-9"));
  refused(ErrorKind::kInput, {"net", "depends on the rest of the batch"},
          network("return torch.matmul(torch.dropout(x, 0.5, True).flatten(1), "
                  "self.w.t())"));
  // A batch norm that was traced in train mode stays in it, whatever the network is told.
  refused(ErrorKind::kInput, {"net", "depends on the rest of the batch"},
          network("h = torch.batch_norm(x, None, None, None, None, True, 0.1, 1e-5, False)\n"
                  "return torch.matmul(h.flatten(1), self.w.t())"));
  // No row a sample.
  refused(ErrorKind::kInput, {"net"},
          network("return torch.matmul(x.flatten(1), self.w.t()).sum()"));
  refused(ErrorKind::kInput, {"net"},
          network("return torch.matmul(x.flatten(1), self.w.t())[:, 0]"));
  // The slope of sqrt at 0 is infinite, and 0 times that is nothing.
  refused(ErrorKind::kNumeric, {"net", "sample 0", "not finite"},
          network("return torch.matmul(torch.sqrt(x * 0.0).flatten(1), "
                  "self.w.t())"));
  // Outputs without a value, whose gradients have one.
  refused(ErrorKind::kNumeric, {"net", "outputs at sample 0", "not finite"},
          network("return torch.matmul(x.flatten(1), self.w.t()) + torch.log(-1.0 - "
                  "x.flatten(1)[:, :5].detach().abs())"));
  options.target = FieldTarget::kLabel;
  FieldInputs bad = inputs;
  bad.classes = at::tensor({0, 1, 7, 2}, at::kLong);
  ScriptModel model = smooth();
  expect_error(ErrorKind::kInput, {"net", "sample 2 has class 7", "5 outputs"},
               [&] { GradientField(model, options).check(bad); });
  expect_error(ErrorKind::kInput, {"net", "sample 2 has class 7"},
               [&] { GradientField(model, options).compute(bad); });
}

TEST_CASE("distances equal their definitions, in stretches of any size", "[distance]") {
  at::manual_seed(9);
  std::vector<at::Tensor> stored;
  for (int m = 0; m < 4; ++m) stored.push_back(at::randn({3, 4, 7}));
  stored[1][2][3].zero_();
  std::vector<FieldSource> fields;
  for (const at::Tensor& field : stored) fields.push_back(source_of(field));
  const auto standardised = [](const at::Tensor& x) {
    const at::Tensor rows = x.to(at::kDouble).view({-1, 7});
    return ((rows - rows.mean(0)) / rows.std(0, true)).view({3, 4, 7});
  };
  for (const auto& [kind, name] : enum_names(DistanceKind{})) {
    CAPTURE(name);
    const FieldDistances all = field_distances(fields, kind);
    const FieldDistances pieces = field_distances(fields, kind, {}, 1);
    const FieldDistances one = field_distances(fields, kind, 2, 3000);
    CHECK((all.mean - pieces.mean).abs().max().item<double>() < 1e-5);
    CHECK(all.zero_norms == std::vector<std::int64_t>{0, 1, 0, 0});
    for (int i = 0; i < 4; ++i) {
      CHECK(one.mean[i].item<double>() == Approx(all.mean[i][2].item<double>()).margin(1e-5));
      for (int j = 0; j < 4; ++j) {
        double sum = 0;
        for (int s = 0; s < 3; ++s) {
          const bool norm = kind == DistanceKind::kCosineNormalised;
          const at::Tensor a = (norm ? standardised(stored[i]) : stored[i].to(at::kDouble))[s];
          const at::Tensor b = (norm ? standardised(stored[j]) : stored[j].to(at::kDouble))[s];
          const auto cosine = [](const at::Tensor& u, const at::Tensor& v) {
            return (u * v).sum().item<double>() / std::max(u.norm().item<double>(), 1e-8) /
                   std::max(v.norm().item<double>(), 1e-8);
          };
          double total = 0, most = 0;
          for (int t = 0; t < 4; ++t) {
            const at::Tensor gap = a[t] - b[t];
            const bool euclidean =
                kind == DistanceKind::kEuclidean || kind == DistanceKind::kFrechetEuclidean;
            const double value = kind == DistanceKind::kAbsolute ? gap.abs().mean().item<double>()
                                 : euclidean                     ? gap.norm().item<double>()
                                                                 : 1 - cosine(a[t], b[t]);
            total += value / 4;
            most = std::max(most, value);
          }
          const bool frechet =
              kind == DistanceKind::kFrechetCosine || kind == DistanceKind::kFrechetEuclidean;
          sum += (kind == DistanceKind::kInverseCosine ? cosine(a.flatten(), b.flatten())
                  : frechet                            ? most
                                                       : total) /
                 3;
        }
        if (kind == DistanceKind::kInverseCosine) sum = 1 / sum;
        CHECK(all.mean[i][j].item<double>() == Approx(sum).epsilon(1e-4).margin(2e-6));
      }
    }
  }
  fields.push_back(source_of(at::randn({3, 4, 6})));
  expect_error(ErrorKind::kInput, {"field 4", "(3, 4, 6)"},
               [&] { field_distances(fields, DistanceKind::kCosine); });
}

TEST_CASE("bootstrap limits enclose the mean and narrow with the samples", "[distance]") {
  at::manual_seed(2);
  const at::Tensor values = at::randn({2, 400}, at::kDouble);
  const BootstrapLimits wide =
      bootstrap_limits(values.narrow(1, 0, 25), DistanceKind::kCosine, 1000, 1);
  const BootstrapLimits narrow = bootstrap_limits(values, DistanceKind::kCosine, 1000, 1);
  for (int k = 0; k < 2; ++k) {
    const double width = (narrow.high - narrow.low)[k].item<double>();
    CHECK(width == Approx(2 * 1.96 / 20).epsilon(0.15));
    CHECK((wide.high - wide.low)[k].item<double>() > 2 * width);
    CHECK(narrow.low[k].item<double>() < values[k].mean().item<double>());
    CHECK(narrow.high[k].item<double>() > values[k].mean().item<double>());
  }
}

TEST_CASE("a field file goes on where it stopped, and knows what it holds", "[distance]") {
  const TemporaryFolder folder;
  const auto path = folder / "f.safetensors";
  const FieldFileWriter::Shape shape{5, 2, 3};
  at::manual_seed(4);
  const FieldChunk all{0, at::randn({5, 2, 3}), at::randn({5}, at::kDouble),
                       at::randn({5}, at::kDouble)};
  const auto part = [&](std::int64_t begin, std::int64_t count) {
    return FieldChunk{begin, all.field.narrow(0, begin, count),
                      all.integral.narrow(0, begin, count), all.difference.narrow(0, begin, count)};
  };
  {
    FieldFileWriter writer(path, "key", shape, FieldStorage::kFloat32, true);
    writer.add(part(0, 2));
    writer.add(part(2, 1));
  }
  CHECK_FALSE(std::filesystem::exists(path));
  const auto half = std::filesystem::path(path.string() + ".part");
  // A kill in the middle of a sample, and one of other settings.
  std::filesystem::resize_file(half, std::filesystem::file_size(half) - 5);
  const auto saved = testing::read_bytes(half);
  CHECK(FieldFileWriter(path, "other", shape, FieldStorage::kFloat32, true).done() == 0);
  testing::write_bytes(half, saved);
  {
    FieldFileWriter writer(path, "key", shape, FieldStorage::kFloat32, true);
    REQUIRE(writer.done() == 2);
    writer.add(part(2, 3));
    writer.finish();
  }
  const FieldFile file(path, "key");
  CHECK(at::equal(file.source().rows(0, 10), all.field.view({10, 3})));
  CHECK(at::equal(file.source().rows(3, 4), all.field.view({10, 3}).narrow(0, 3, 4)));
  CHECK(file.completeness_error() ==
        Approx(((all.integral - all.difference).abs().sum() / all.difference.abs().sum())
                   .item<double>()));
  expect_error(ErrorKind::kInput, {"f.safetensors", "another model"},
               [&] { FieldFile(path, "other"); });
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
  expect_error(ErrorKind::kInput, {"f.safetensors", "truncated"}, [&] { FieldFile(path, "key"); });

  FieldFileWriter narrow(path, "key", shape, FieldStorage::kFloat16, false);
  narrow.add(part(0, 5));
  narrow.finish();
  CHECK((FieldFile(path, "key").source().rows(0, 10) - all.field.view({10, 3}))
            .abs()
            .max()
            .item<double>() < 2e-3);
  FieldChunk large = all;
  large.field = all.field * 1e6;
  {
    FieldFileWriter refused(path, "key", shape, FieldStorage::kFloat16, false);
    expect_error(ErrorKind::kNumeric, {"float16", "field.store"}, [&] { refused.add(large); });
    // So small that halves have few bits left, or none.
    for (const double scale : {1e-6, 1e-9}) {
      FieldChunk small = all;
      small.field = all.field * scale;
      expect_error(ErrorKind::kNumeric, {"float16", "too small", "field.store"},
                   [&] { refused.add(small); });
    }
    FieldChunk none = all;
    none.field = at::zeros_like(all.field);
    refused.add(none);
  }
  large.field = all.field.clone();
  large.field[3][1][2] = std::nan("");
  FieldFileWriter damaged(path, "key", shape, FieldStorage::kFloat32, false);
  damaged.add(large);
  damaged.finish();
  expect_error(ErrorKind::kNumeric, {"f.safetensors", "sample 3", "not finite"},
               [&] { FieldFile(path).source().rows(0, 10); });
}

TEST_CASE("two writers of one field take turns", "[distance]") {
  const TemporaryFolder folder;
  const auto path = folder / "f.safetensors";
  const FieldFileWriter::Shape shape{4, 1, 2};
  at::manual_seed(4);
  const FieldChunk all{0, at::randn({4, 1, 2}), at::randn({4}, at::kDouble),
                       at::randn({4}, at::kDouble)};
  std::atomic<bool> entered = false;
  std::thread second;
  {
    FieldFileWriter first(path, "key", shape, FieldStorage::kFloat32, true);
    second = std::thread([&] {
      FieldFileWriter writer(path, "key", shape, FieldStorage::kFloat32, true);
      entered = true;
      // The other has finished: this is another file, and the field is there.
      CHECK(writer.done() == 0);
      CHECK(std::filesystem::exists(path));
      writer.discard();
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    CHECK_FALSE(entered);
    first.add(all);
    CHECK_FALSE(entered);
    first.finish();
  }
  second.join();
  CHECK(entered);
  CHECK_FALSE(std::filesystem::exists(path.string() + ".part"));
  CHECK(at::equal(FieldFile(path, "key").source().rows(0, 4), all.field.view({4, 2})));
}

TEST_CASE("a rank correlation with something missing is missing", "[distance]") {
  CHECK(spearman({1, 2, 4}, {3, 5, 6}) == Approx(1));
  const double missing = std::nan("");
  CHECK(std::isnan(spearman({1, missing, 4}, {3, 5, 6})));
  CHECK(std::isnan(spearman({1, 2, 4}, {3, 5, missing})));
}

TEST_CASE("p-values of ranks are shares of all ways to choose", "[distance]") {
  // Of the 10 ways to choose 2 of 5, one is as near as the two nearest.
  CHECK(mann_whitney_p({1, 2}, {3, 4, 5}) == Approx(0.1));
  CHECK(mann_whitney_p({1, 3}, {2, 4, 5}) == Approx(0.2));
  CHECK(mann_whitney_p({4, 5}, {1, 2, 3}) == Approx(1.0));
  CHECK(mann_whitney_p({1, 1}, {1, 1, 1}) == Approx(1.0));
  // Exact and approximate agree where both may be used.
  std::vector<double> near, far;
  Rng rng(3);
  for (int i = 0; i < 50; ++i) near.push_back(rng.normal() - 0.35);
  for (int i = 0; i < 50; ++i) far.push_back(rng.normal());
  const double exact = mann_whitney_p(near, far);
  far.push_back(0.02);
  CHECK(mann_whitney_p(near, far) == Approx(exact).epsilon(0.25));
  CHECK(exact > 1e-4);
  CHECK(exact < 0.3);
}

TEST_CASE("intervals and thresholds say little with few models", "[distance]") {
  const Interval few = auc_interval(1, 3, 4), many = auc_interval(1, 50, 50);
  CHECK(few.high == 1);
  CHECK(few.low < 0.8);
  CHECK(many.low > 0.93);
  CHECK(auc_interval(0.5, 20, 20).low == Approx(1 - auc_interval(0.5, 20, 20).high));
  CHECK(std::isnan(distance_threshold({1, 2, 3}, 0.1)));
  CHECK(distance_threshold({4, 2, 3, 1, 5, 6, 7, 8, 9}, 0.1) == 1);
  CHECK(distance_threshold({4, 2, 3, 1, 5, 6, 7, 8, 9}, 0.2) == 2);
}

TEST_CASE("columns of similarities are standardised after their largest value is lowered",
          "[distance]") {
  // Column 0: 1 is lowered to 1.1 * 0.5; column 1 keeps its 0.52, which is below 1.1 * 0.5.
  const auto scores = column_scores({{1.0, 0.5, 7}, {0.5, 0.52, 7}, {0.2, 0.1, 7}});
  const std::vector<double> first{0.55, 0.5, 0.2};
  const double mean = (0.55 + 0.5 + 0.2) / 3;
  double square = 0;
  for (const double x : first) square += (x - mean) * (x - mean) / 3;
  for (std::size_t r = 0; r < 3; ++r)
    CHECK(scores[r][0] == Approx((first[r] - mean) / std::sqrt(square)));
  CHECK(scores[1][1] > scores[0][1]);
  CHECK(scores[0][1] > scores[2][1]);
  double sum = 0;
  for (std::size_t r = 0; r < 3; ++r) sum += scores[r][1];
  CHECK(sum == Approx(0).margin(1e-12));
  for (std::size_t r = 0; r < 3; ++r) CHECK(scores[r][2] == 0);
}

}  // namespace
}  // namespace weightsmith
