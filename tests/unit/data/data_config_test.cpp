#include "weightsmith/data/data_config.h"

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "support/expect_error.h"
#include "weightsmith/config/fields.h"
#include "weightsmith/data/augment.h"

namespace weightsmith {
namespace {

using testing::error_of;

template <class C>
C parse(const std::string& text) {
  const nlohmann::json json = nlohmann::json::parse(text);
  const std::filesystem::path base = "/base";
  C config;
  from_config(ConfigNode{json, "data", base}, config);
  return config;
}

TEST_CASE("a data reference is read, and written so that it reads the same", "[data]") {
  const auto config = parse<DataConfig>(
      R"({"format": "cifar10", "path": "bins", "split": "test", "classes": [4, 2], "relabel": true,
          "limit": 100, "subset_seed": 3, "resize": 16, "mean": 0.5, "std": [0.1, 0.2, 0.3]})");
  CHECK(config.path == "/base/bins");
  CHECK(config.split == DataConfig::Split::kTest);
  CHECK(config.classes == std::vector<std::int64_t>{4, 2});
  CHECK(config.limit == 100);
  CHECK(config.mean == std::vector<double>{0.5});
  const nlohmann::json written = to_config(config);
  CHECK(written["mean"] == 0.5);
  CHECK(to_config(parse<DataConfig>(written.dump())) == written);
  CHECK(to_config(parse<DataConfig>(to_config(DataConfig{}).dump())) == to_config(DataConfig{}));
}

TEST_CASE("a data reference that contradicts itself is refused by key", "[data]") {
  const auto refused = [](const std::string& text) {
    return error_of(ErrorKind::kConfig, [&] { parse<DataConfig>(text).validate("data.train"); });
  };
  CHECK_THAT(refused(R"({"format": "cifar10"})"), Catch::Contains("data.train.path"));
  CHECK_THAT(refused(R"({"path": "x"})"), Catch::Contains("data.train.path"));
  CHECK_THAT(refused(R"({"format": "tensors", "path": "x", "split": "test"})"),
             Catch::Contains("data.train.split"));
  CHECK_THAT(refused(R"({"format": "idx", "path": "x", "images": "i"})"),
             Catch::Contains("data.train.labels"));
  CHECK_THAT(refused(R"({"format": "cifar100"})"), Catch::Contains("data.train.path"));
  CHECK_THAT(refused(R"({"format": "cifar100", "path": "x", "labels": "finer"})"),
             Catch::Contains("data.train.labels") && Catch::Contains("\"finer\"") &&
                 Catch::Contains("coarse"));
  CHECK_THAT(refused(R"({"format": "cifar100", "path": "x", "images": "i"})"),
             Catch::Contains("data.train.images"));
  CHECK_THAT(refused(R"({"format": "cifar10", "path": "x", "labels": "coarse"})"),
             Catch::Contains("data.train.labels") && Catch::Contains("cifar100"));
  CHECK_THAT(refused(R"({"classes": [1, 1]})"), Catch::Contains("twice"));
  CHECK_THAT(refused(R"({"relabel": true})"), Catch::Contains("data.train.relabel"));
  CHECK_THAT(refused(R"({"limit": 0})"), Catch::Contains("data.train.limit"));
  CHECK_THAT(refused(R"({"std": 0})"), Catch::Contains("data.train.std"));
  CHECK_THAT(refused(R"({"formta": "idx"})"), Catch::Contains("did you mean \"format\""));
  CHECK_THAT(refused(R"({"format": "folders"})"), Catch::Contains("known values"));
}

TEST_CASE("an augmentation is a name or an object with the parameters it has", "[data]") {
  CHECK(parse<Augmentation>(R"("vertical_flip")").name == Augmentation::Name::kVerticalFlip);
  const auto crop = parse<Augmentation>(R"({"name": "random_crop", "padding": 1})");
  CHECK(crop.padding == 1);
  CHECK(to_config(crop) == nlohmann::json::parse(R"({"name": "random_crop", "padding": 1})"));
  CHECK(to_config(parse<Augmentation>(R"("affine")")) ==
        nlohmann::json::parse(
            R"({"name": "affine", "degrees": 15.0, "shift": 0.125, "scale": 0.1})"));
  const auto refused = [](const std::string& text) {
    return error_of(ErrorKind::kConfig, [&] { parse<Augmentation>(text); });
  };
  CHECK_THAT(refused(R"({"name": "horizontal_flip", "padding": 1})"),
             Catch::Contains("padding") && Catch::Contains("unknown key"));
  CHECK_THAT(refused(R"("mixdown")"), Catch::Contains("known values"));
  CHECK_THAT(refused(R"({"name": "rotation", "degrees": 181})"), Catch::Contains("[0, 180]"));
  CHECK_THAT(refused(R"({"padding": 1})"), Catch::Contains("name"));
  CHECK_THAT(refused(R"({"name": "autoaugment", "policy": "svhn"})"),
             Catch::Contains("cifar10, imagenet"));
  CHECK_THAT(refused(R"({"name": "randaugment", "magnitude": 31})"), Catch::Contains("below bins"));
  CHECK_THAT(refused(R"({"name": "random_resized_crop", "area": [0.5, 0.2]})"),
             Catch::Contains("area"));
  CHECK_THAT(refused(R"({"name": "random_erasing", "ratio": [0, 1]})"), Catch::Contains("ratio"));
  CHECK_THAT(refused(R"({"name": "color_jitter", "hue": 0.6})"), Catch::Contains("hue"));
  CHECK_THAT(refused(R"({"name": "mixup", "alpha": 0})"), Catch::Contains("alpha"));
}

TEST_CASE("every augmentation keeps its parameters when it is written and read", "[data]") {
  for (const auto& [name, text] : enum_names(Augmentation::Name{})) {
    INFO(text);
    const auto by_name = parse<Augmentation>('"' + std::string(text) + '"');
    const nlohmann::json written = to_config(by_name);
    CHECK(written["name"] == text);
    CHECK(to_config(parse<Augmentation>(written.dump())) == written);
  }
  // One key, a range of each augmentation's own.
  CHECK(to_config(parse<Augmentation>(R"("random_erasing")"))["area"][0] == 0.02);
  CHECK(to_config(parse<Augmentation>(R"("random_resized_crop")"))["area"][0] == 0.08);
  CHECK(to_config(parse<Augmentation>(R"("mixup")"))["alpha"] == 0.2);
  CHECK(to_config(parse<Augmentation>(R"("cutmix")"))["alpha"] == 1.0);
}

TEST_CASE("batches are mixed at the end of a pipeline, and not twice alike", "[data]") {
  const auto pipeline = [](const std::string& text) {
    const nlohmann::json json = nlohmann::json::parse(text);
    const std::filesystem::path base;
    Pipeline steps;
    detail::read_value(ConfigNode{json, "p", base}, steps);
    return steps;
  };
  validate_pipeline(pipeline(R"(["random_crop", "mixup", "cutmix"])"), "p");
  for (const char* text : {R"(["mixup", "random_crop"])", R"(["cutmix", "cutmix"])"})
    CHECK_THAT(error_of(ErrorKind::kConfig, [&] { validate_pipeline(pipeline(text), "key"); }),
               Catch::Contains("key"));
}

}  // namespace
}  // namespace weightsmith
