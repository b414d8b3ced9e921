#include "weightsmith/eval/objective.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <nlohmann/json.hpp>

#include "support/expect_error.h"
#include "support/temporary_folder.h"
#include "weightsmith/config/fields.h"
#include "weightsmith/tensor/safetensors.h"

namespace weightsmith {
namespace {

using testing::error_of;

ObjectiveConfig parse(const std::string& text) {
  const nlohmann::json json = nlohmann::json::parse(text);
  const std::filesystem::path base = "/base";
  ObjectiveConfig config;
  from_config(ConfigNode{json, "objective", base}, config);
  return config;
}

/// −Σ_c q_c log softmax(s)_c with q = (1 − ε)·onehot + ε / C, in double, sample by sample.
double slow_cross_entropy(const at::Tensor& scores, const at::Tensor& labels, double smoothing) {
  double total = 0;
  const auto classes = scores.size(1);
  for (std::int64_t i = 0; i < scores.size(0); ++i) {
    double sum = 0;
    for (std::int64_t c = 0; c < classes; ++c) sum += std::exp(scores[i][c].item<double>());
    for (std::int64_t c = 0; c < classes; ++c) {
      const double q = (c == labels[i].item<std::int64_t>() ? 1 - smoothing : 0) +
                       smoothing / static_cast<double>(classes);
      total -= q * (scores[i][c].item<double>() - std::log(sum));
    }
  }
  return total / static_cast<double>(scores.size(0));
}

TEST_CASE("cross-entropy is the formula, with and without smoothing", "[eval]") {
  at::manual_seed(1);
  const at::Tensor logits = at::randn({6, 4});
  const at::Tensor labels = at::tensor({0, 3, 1, 1, 2, 0}, at::kLong);
  for (const double smoothing : {0.0, 0.2}) {
    ObjectiveConfig config;
    config.label_smoothing = smoothing;
    const Objective objective(config, 4);
    CHECK(objective.scores(logits).equal(logits));
    CHECK(objective.loss(logits, labels).item<double>() ==
          Approx(slow_cross_entropy(logits, labels, smoothing)).epsilon(1e-5));
  }
  CHECK(Objective(ObjectiveConfig{}, 4).output_width() == 4);
}

TEST_CASE("embedding scores are scaled cosines", "[eval]") {
  at::manual_seed(2);
  testing::TemporaryFolder folder;
  const at::Tensor rows = at::randn({5, 7});
  write_safetensors(folder / "e.safetensors", {{"embeddings", rows}}, {});
  ObjectiveConfig config;
  config.type = ObjectiveConfig::Type::kEmbedding;
  config.embeddings = folder / "e.safetensors";
  config.scale = 10;
  const Objective objective(config, 4);
  CHECK(objective.output_width() == 7);
  const at::Tensor outputs = at::randn({3, 7}).requires_grad_(true);
  const at::Tensor scores = objective.scores(outputs);
  REQUIRE(scores.sizes() == at::IntArrayRef({3, 4}));
  for (int i = 0; i < 3; ++i) {
    for (int c = 0; c < 4; ++c) {
      const double dot = (outputs[i] * rows[c]).sum().item<double>();
      const double cosine =
          dot / (outputs[i].norm().item<double>() * rows[c].norm().item<double>());
      CHECK(scores[i][c].item<double>() == Approx(10 * cosine).margin(1e-4));
    }
  }
  const at::Tensor labels = at::tensor({0, 3, 2}, at::kLong);
  const at::Tensor loss = objective.loss(outputs, labels);
  CHECK(loss.item<double>() == Approx(slow_cross_entropy(scores, labels, 0)).epsilon(1e-4));
  loss.backward();
  // Cosines do not see the length of an output, so the gradient is orthogonal to it.
  CHECK(at::allclose((outputs.grad() * outputs).sum(1), at::zeros({3}), 1e-4, 1e-4));
  CHECK(outputs.grad().norm().item<double>() > 1e-3);
  CHECK(objective.scores(at::zeros({1, 7})).equal(at::zeros({1, 4})));
}

TEST_CASE("classes that do not compete neither win nor count in the loss", "[eval]") {
  at::manual_seed(3);
  const at::Tensor logits = at::randn({5, 4});
  const at::Tensor labels = at::tensor({1, 3, 3, 1, 1}, at::kLong);
  for (const double smoothing : {0.0, 0.2}) {
    ObjectiveConfig config;
    config.label_smoothing = smoothing;
    const Objective objective = Objective(config, 4).restricted_to({1, 3});
    const at::Tensor scores = objective.scores(logits);
    CHECK(at::isinf(scores.select(1, 0)).all().item<bool>());
    CHECK(at::isinf(scores.select(1, 2)).all().item<bool>());
    // The loss is that of a problem with two classes.
    const at::Tensor two = logits.index_select(1, at::tensor({1, 3}, at::kLong));
    const at::Tensor renumbered = labels.eq(3).to(at::kLong);
    CHECK(objective.loss(logits, labels).item<double>() ==
          Approx(slow_cross_entropy(two, renumbered, smoothing)).epsilon(1e-5));
  }
}

TEST_CASE("random embeddings are unit vectors that nest and correlate as asked", "[eval]") {
  const auto rows_of = [](std::int64_t seed, double common, std::int64_t classes) {
    ObjectiveConfig config;
    config.type = ObjectiveConfig::Type::kEmbedding;
    config.random_embeddings = RandomEmbeddings{400, seed, common};
    config.scale = 1;
    // Scores of the unit axes are the embeddings' coordinates.
    return Objective(config, classes).scores(at::eye(400)).t().contiguous();
  };
  const at::Tensor rows = rows_of(0, 0.0, 10);
  CHECK(at::allclose(rows.norm(2, {1}, false), at::ones({10}), 1e-5, 1e-6));
  CHECK(rows_of(0, 0.0, 4).equal(rows.slice(0, 0, 4)));
  CHECK_FALSE(rows_of(1, 0.0, 10).equal(rows));
  const auto mean_cosine = [](const at::Tensor& r) {
    return (r.matmul(r.t()).sum().item<double>() - 10) / 90;
  };
  CHECK(mean_cosine(rows) == Approx(0).margin(0.05));
  CHECK(mean_cosine(rows_of(0, 0.75, 10)) == Approx(0.75).margin(0.05));
}

TEST_CASE("objectives that cannot work are refused", "[eval]") {
  const auto refused = [](const std::string& text) {
    return error_of(ErrorKind::kConfig, [&] { parse(text); });
  };
  CHECK_THAT(refused(R"({"type": "embedding"})"), Catch::Contains("needs `embeddings`"));
  CHECK_THAT(refused(R"({"embeddings": "x.safetensors"})"), Catch::Contains("cross_entropy"));
  CHECK_THAT(refused(R"({"type": "embedding", "embeddings": {"random": 0}})"),
             Catch::Contains("objective.embeddings"));
  CHECK_THAT(refused(R"({"type": "embedding", "embeddings": {"random": 8, "common": 1}})"),
             Catch::Contains("[0, 1)"));
  CHECK_THAT(refused(R"({"type": "embedding", "embeddings": "e", "scale": 0})"),
             Catch::Contains("scale"));
  CHECK_THAT(refused(R"({"label_smoothing": 1})"), Catch::Contains("label_smoothing"));
  CHECK_THAT(refused(R"({"label_smothing": 0.1})"), Catch::Contains("did you mean"));

  testing::TemporaryFolder folder;
  ObjectiveConfig config;
  config.type = ObjectiveConfig::Type::kEmbedding;
  config.embeddings = folder / "e.safetensors";
  const auto bad_file = [&](const TensorMap& tensors) {
    write_safetensors(config.embeddings, tensors, {});
    return error_of(ErrorKind::kInput, [&] { Objective(config, 3); });
  };
  CHECK_THAT(bad_file({{"text", at::ones({3, 2})}}), Catch::Contains("\"embeddings\""));
  CHECK_THAT(bad_file({{"embeddings", at::ones({2, 2})}}), Catch::Contains("[2, 2]"));
  CHECK_THAT(bad_file({{"embeddings", at::zeros({3, 2})}}), Catch::Contains("zero"));
  const std::string width = error_of(ErrorKind::kInput, [] {
    Objective(ObjectiveConfig{}, 4).scores(at::zeros({2, 5}));
  });
  CHECK_THAT(width, Catch::Contains("[2, 5]") && Catch::Contains("(B, 4)"));
}

TEST_CASE("an objective's configuration survives writing", "[eval]") {
  for (const char* text :
       {R"({"type": "cross_entropy", "label_smoothing": 0.1})",
        R"({"type": "embedding", "embeddings": "/a/b.safetensors", "scale": 100})",
        R"({"type": "embedding", "embeddings": {"random": 64, "seed": 3, "common": 0.75}})"}) {
    const nlohmann::json written = to_config(parse(text));
    CHECK(to_config(parse(written.dump())) == written);
  }
  CHECK(parse(R"({"type": "embedding", "embeddings": "b.st"})").embeddings == "/base/b.st");
}

TEST_CASE("a regression's target is the image or its edges", "[eval]") {
  at::manual_seed(9);
  const at::Tensor images = at::rand({3, 2, 5, 6});
  const Objective image(parse(R"({"type": "regression"})"), 10);
  CHECK(image.is_regression());
  CHECK(image.targets(images).equal(images));
  const at::Tensor outputs = at::randn({3, 60});
  const at::Tensor residuals = image.residuals(outputs, images);
  CHECK(residuals.equal(outputs - images.flatten(1)));
  CHECK(image.residuals(outputs.view({3, 2, 5, 6}), images).equal(residuals));
  CHECK(image.loss(outputs, {}, images).item<double>() ==
        Approx(residuals.square().mean().item<double>()));
  CHECK(image.targets(at::rand({2, 7})).dim() == 2);  // no images needed

  const Objective edges(parse(R"({"type": "regression", "target": "edges"})"), 10);
  const at::Tensor found = edges.targets(images);
  REQUIRE(found.sizes() == at::IntArrayRef{3, 1, 5, 6});
  // Sobel's sums, pixel by pixel, with the border repeated.
  for (std::int64_t b = 0; b < 3; ++b)
    for (std::int64_t y = 0; y < 5; ++y)
      for (std::int64_t x = 0; x < 6; ++x) {
        const auto grey = [&](std::int64_t dy, std::int64_t dx) {
          const auto row = std::clamp<std::int64_t>(y + dy, 0, 4);
          const auto column = std::clamp<std::int64_t>(x + dx, 0, 5);
          return (images[b][0][row][column].item<double>() +
                  images[b][1][row][column].item<double>()) /
                 2;
        };
        const double across = grey(-1, 1) + 2 * grey(0, 1) + grey(1, 1) - grey(-1, -1) -
                              2 * grey(0, -1) - grey(1, -1);
        const double down = grey(1, -1) + 2 * grey(1, 0) + grey(1, 1) - grey(-1, -1) -
                            2 * grey(-1, 0) - grey(-1, 1);
        CHECK(found[b][0][y][x].item<double>() ==
              Approx(std::hypot(across, down) / 4).margin(1e-6));
      }
  at::Tensor step = at::zeros({1, 1, 4, 4});
  step.narrow(3, 2, 2).fill_(1);
  CHECK(edges.targets(step)[0][0][1].equal(at::tensor({0.0F, 1.0F, 1.0F, 0.0F})));
}

TEST_CASE("a regression says what does not fit", "[eval]") {
  const at::Tensor images = at::rand({3, 1, 4, 4});
  const Objective edges(parse(R"({"type": "regression", "target": "edges"})"), 10);
  CHECK_THAT(error_of(ErrorKind::kInput,
                      [&] {
                        edges.check_outputs(at::rand({3, 10}), images);
                      }),
             Catch::Contains("[3, 10]") && Catch::Contains("[3, 1, 4, 4]") &&
                 Catch::Contains("16 outputs"));
  CHECK_THAT(error_of(ErrorKind::kInput,
                      [&] {
                        edges.targets(at::rand({3, 16}));
                      }),
             Catch::Contains("[3, 16]"));
  for (const char* text : {R"({"type": "regression", "embeddings": {"random": 8}})",
                           R"({"type": "regression", "label_smoothing": 0.1})",
                           R"({"type": "regression", "candidates": "data"})"})
    CHECK_FALSE(error_of(ErrorKind::kConfig, [&] { parse(text); }).empty());
}

}  // namespace
}  // namespace weightsmith
