// What mudsc-merge says of data and networks that are sound as files but cannot be merged so, and
// what it makes of units that say nothing.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <catch2/catch.hpp>
#include <limits>

#include "support/files.h"
#include "support/temporary_folder.h"
#include "tools.h"
#include "weightsmith/tensor/safetensors.h"

using namespace weightsmith;
using namespace weightsmith::testing;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

/// A data set of float images and labels, named in a configuration.
json data_set(const fs::path& path, const at::Tensor& images, const at::Tensor& labels) {
  write_safetensors(path, {{"images", images}, {"labels", labels}}, {{"classes", "10"}});
  return {{"format", "tensors"}, {"path", path.string()}};
}

json any_data(const fs::path& path, const std::vector<std::int64_t>& shape = {40, 1, 8, 8}) {
  at::manual_seed(1);
  return data_set(path, at::rand(shape), at::arange(shape[0], at::kLong).remainder(10));
}

json bad_merge_of(const TemporaryFolder& folder, const std::string& name, const json& options) {
  return {{"models",
           {save_builtin(folder / "a.pt", name, options, 1).string(),
            save_builtin(folder / "b.pt", name, options, 2).string()}},
          {"activations", {{"data", any_data(folder / "data.safetensors")}}}};
}

ProgramResult try_merge(const TemporaryFolder& folder, const json& config) {
  return mudsc_merge({"--config", write_config(folder / "merge.json", config), "--out",
                      (folder / "out").string(), "--quiet", "--overwrite"});
}

void check_unmergeable(const TemporaryFolder& folder, const json& config, int code,
                       const std::vector<std::string>& parts) {
  check_failure(try_merge(folder, config), "mudsc-merge", code, parts);
  check_nothing_half_written(folder / "out");
  CHECK_FALSE(fs::exists(folder / "out" / "merged.pt"));
}

/// Changes tensors of a saved network.
template <class Change>
void change_archive(const fs::path& path, const Change& change) {
  const at::NoGradGuard no_grad;
  ScriptModel model = load_archive(path);
  const TensorMap state = model.state_dict();
  change(state);
  model.save(path);
}

void check_all_finite(const fs::path& archive) {
  for (const auto& [name, tensor] : load_archive(archive).state_dict()) {
    INFO(name);
    CHECK(at::isfinite(tensor).all().item<bool>());
  }
}

const json kSmallPerceptron = {{"hidden", {12, 12}}};

}  // namespace

TEST_CASE("data that are not finite end with 3 and name the file and the sample") {
  const TemporaryFolder folder;
  at::manual_seed(1);
  at::Tensor images = at::rand({40, 1, 8, 8});
  images[17][0][3][3] = kNaN;
  const json broken = data_set(folder / "broken.safetensors", images, at::zeros({40}, at::kLong));
  const json config = bad_merge_of(folder, "convnet", {{"width", 4}});
  const auto refused = [&](const json& change) {
    INFO(change);
    json changed = config;
    changed.merge_patch(change);
    check_unmergeable(folder, changed, 3, {"broken.safetensors", "sample 17", "not finite"});
    CHECK_FALSE(fs::exists(folder / "out"));
  };
  refused({{"activations", {{"data", broken}}}});
  refused({{"normalization", {{"data", broken}}}});
  refused({{"normalization", {{"data", broken}, {"mode", "repair"}}}});
  refused({{"evaluation", {{"sets", {{{"name", "all"}, {"data", broken}}}}}}});
}

TEST_CASE("activations that are not finite end with 5 and name the layer") {
  const TemporaryFolder folder;
  // Finite weights whose products overflow.
  json config = bad_merge_of(folder, "mlp", kSmallPerceptron);
  for (const char* layer : {"fc1", "fc2"})
    change_archive(folder / "a.pt", [&](const TensorMap& state) {
      state.at(std::string(layer) + ".weight").fill_(1e22F);
    });
  check_unmergeable(folder, config, 5, {"fc2.weight/input", "model 0", "too large"});
  config = bad_merge_of(folder, "mlp", kSmallPerceptron);
  for (const char* layer : {"fc1", "fc2"})
    change_archive(folder / "b.pt", [&](const TensorMap& state) {
      state.at(std::string(layer) + ".weight").fill_(1e22F);
    });
  check_unmergeable(folder, config, 5, {"fc2.weight/input", "model 1", "too large"});

  // Batch norms and REPAIR measure before anything is compared: the first layer that sees it is
  // named.
  const auto overflow = [](const TensorMap& state) { state.at("conv1.weight").fill_(3e38F); };
  config = bad_merge_of(folder, "convnet", {{"width", 4}});
  change_archive(folder / "a.pt", overflow);
  config["method"] = "average";
  check_unmergeable(folder, config, 5, {"a.pt: ", "batch_norm", "bn1", "not finite"});
  config = bad_merge_of(folder, "convnet", {{"width", 4}, {"norm", "none"}});
  change_archive(folder / "a.pt", overflow);
  config["method"] = "average";
  config["normalization"] = {{"mode", "repair"}};
  check_unmergeable(folder, config, 5, {"a.pt", "conv1.bias", "not finite"});
}

TEST_CASE("activation data of the wrong shape are refused before anything is written") {
  const TemporaryFolder folder;
  json config = bad_merge_of(folder, "mlp", kSmallPerceptron);
  config["activations"]["data"] = any_data(folder / "wide.safetensors", {40, 1, 8, 9});
  check_unmergeable(folder, config, 3, {"a.pt", "fc1", "2x72 and 64x12"});
  CHECK_FALSE(fs::exists(folder / "out"));
  config = bad_merge_of(folder, "convnet", {{"width", 4}});
  config["activations"]["data"] = any_data(folder / "colour.safetensors", {40, 3, 8, 8});
  check_unmergeable(folder, config, 3, {"a.pt", "conv1", "[2, 3, 8, 8]"});
  config["activations"]["data"] = any_data(folder / "flat.safetensors", {40, 64});
  check_unmergeable(folder, config, 3, {"a.pt", "conv1", "[2, 64]"});
  CHECK_FALSE(fs::exists(folder / "out"));
}

TEST_CASE("data of the wrong shape are named by their key and file, whatever they are for") {
  const TemporaryFolder folder;
  const json config = bad_merge_of(folder, "convnet", {{"width", 4}});
  const json good = config["activations"]["data"];
  const json colour = any_data(folder / "colour.safetensors", {40, 3, 8, 8});
  const std::string file = (folder / "colour.safetensors").string();
  const auto refused = [&](const std::string& key, const json& change) {
    INFO(change);
    json changed = config;
    changed.merge_patch(change);
    check_unmergeable(folder, changed, 3,
                      {key + ": " + file + ": samples of shape [3, 8, 8]: ", "a.pt",
                       "[2, 3, 8, 8] to have 1 channels", "give inputs of the shape"});
    CHECK_FALSE(fs::exists(folder / "out"));
  };
  const auto sets = [](const json& first, const json& second) {
    return json{
        {"sets", {{{"name", "one"}, {"data", first}}, {{"name", "two"}, {"data", second}}}}};
  };
  const json none = {{"mode", "none"}};
  refused("activations.data", {{"activations", {{"data", colour}}}});
  refused("normalization.data", {{"normalization", {{"data", colour}}}});
  refused("normalization.data",
          {{"method", "average"}, {"normalization", {{"data", colour}, {"mode", "repair"}}}});
  // Nothing is compared on it, but batch norms are reset on it.
  refused("activations.data", {{"space", "weight"}, {"activations", {{"data", colour}}}});
  // Or it tells no more than what inputs look like.
  refused("activations.data",
          {{"space", "weight"}, {"normalization", none}, {"activations", {{"data", colour}}}});
  refused("normalization.data", {{"space", "weight"},
                                 {"normalization", {{"mode", "none"}, {"data", colour}}},
                                 {"activations", {{"data", nullptr}}}});
  refused("evaluation.sets[1].data", {{"evaluation", sets(good, colour)}});
  refused("evaluation.sets[0].data", {{"space", "weight"},
                                      {"normalization", none},
                                      {"activations", {{"data", nullptr}}},
                                      {"evaluation", sets(colour, good)}});
  json held_out = sets(good, good);
  held_out["sets"][1]["selection"] = colour;
  refused("evaluation.sets[1].selection",
          {{"balance", {0.3, 0.7}}, {"select_on", "two"}, {"evaluation", held_out}});
  refused("evaluation.sets[1].data",
          {{"method", "align"}, {"landscape", {{"line", 3}}}, {"evaluation", sets(good, colour)}});
}

TEST_CASE("evaluation sets that nothing can be scored on are refused") {
  const TemporaryFolder folder;
  json config = bad_merge_of(folder, "mlp", kSmallPerceptron);
  at::manual_seed(2);
  const json few = data_set(folder / "few.safetensors", at::rand({20, 1, 8, 8}),
                            at::arange(20, at::kLong).remainder(3));
  config["evaluation"]["sets"] = {{{"name", "all"}, {"data", few}}};
  config["evaluation"]["sets"][0]["data"]["classes"] = {0, 7};
  check_unmergeable(folder, config, 3, {"few.safetensors", "class 7 has no sample"});
  CHECK_FALSE(fs::exists(folder / "out"));

  config["evaluation"]["sets"][0]["data"].erase("classes");
  config["evaluation"]["objective"] = {{"type", "embedding"}, {"embeddings", "names.safetensors"}};
  write_safetensors(folder / "names.safetensors", {{"embeddings", at::rand({10, 12})}});
  check_unmergeable(folder, config, 3,
                    {"evaluation.sets[0].data: ", "few.safetensors: samples of shape [1, 8, 8]: ",
                     "outputs have shape [2, 10], expected (B, 12)"});
  write_safetensors(folder / "names.safetensors", {{"embeddings", at::rand({9, 10})}});
  check_unmergeable(folder, config, 3, {"names.safetensors", "[9, 10]", "10 classes"});

  // Labels that the networks have no output for are those of the set that has them.
  const json more = any_data(folder / "more.safetensors");
  write_safetensors(folder / "more.safetensors",
                    {{"images", at::rand({12, 1, 8, 8})}, {"labels", at::arange(12)}});
  config["evaluation"] = {
      {"sets", {{{"name", "few"}, {"data", few}}, {{"name", "more"}, {"data", more}}}}};
  check_unmergeable(
      folder, config, 3,
      {"evaluation.sets[1].data: ", "more.safetensors: ", "the data have 12 classes"});
  config["evaluation"]["sets"].erase(1);
  config["evaluation"]["sets"][0]["objective"] = {{"type", "regression"}};
  check_unmergeable(folder, config, 3,
                    {"evaluation.sets[0].data: ", "few.safetensors: ", "[2, 1, 8, 8]"});
  CHECK_FALSE(fs::exists(folder / "out"));
}

TEST_CASE("models of one name are refused where they are scored") {
  const TemporaryFolder folder;
  json config = bad_merge_of(folder, "mlp", kSmallPerceptron);
  fs::create_directory(folder / "other");
  config["models"][1] = save_builtin(folder / "other/a.pt", "mlp", kSmallPerceptron, 2).string();
  summary_of(try_merge(folder, config));
  config["evaluation"]["sets"] = {{{"name", "all"}, {"data", config["activations"]["data"]}}};
  check_failure(try_merge(folder, config), "mudsc-merge", 2,
                {"models[0] (", "a.pt) and models[1] (", "other/a.pt) are both called \"a\""});
  config["models"][1] = {{"name", "b"}, {"script", config["models"][1]}};
  CHECK(summary_of(try_merge(folder, config))["originals"].size() == 3);
}

TEST_CASE("dead and constant units are matched with what is left") {
  const TemporaryFolder folder;
  for (const char* archive : {"a.pt", "b.pt"}) {
    INFO(archive);
    json config = bad_merge_of(folder, "convnet", {{"width", 4}});
    // A unit that is never above zero, one without weights at all, one that is always the same.
    change_archive(folder / archive, [](const TensorMap& state) {
      state.at("bn1.bias")[0].fill_(-100);
      state.at("conv2.weight")[1].zero_();
      state.at("bn2.weight")[1].zero_();
      state.at("bn2.bias")[1].zero_();
      state.at("bn3.weight")[2].zero_();
      state.at("bn3.bias")[2].fill_(50);
    });
    for (const char* method : {"align", "zip"})
      for (const char* space : {"weight", "activation", "dual"})
        for (const char* similarity : {"correlation", "cosine"}) {
          INFO(method << " " << space << " " << similarity);
          config["method"] = method;
          config["space"] = space;
          config["similarity"] = similarity;
          summary_of(try_merge(folder, config));
          check_all_finite(folder / "out" / "merged.pt");
        }
    config["normalization"] = {{"mode", "repair"}};
    summary_of(try_merge(folder, config));
    check_all_finite(folder / "out" / "merged.pt");
  }
}

TEST_CASE("units that vary by 0.01 about 50 are told apart") {
  const TemporaryFolder folder;
  json config = bad_merge_of(folder, "mlp", kSmallPerceptron);
  change_archive(folder / "a.pt", [](const TensorMap& state) {
    for (const char* layer : {"fc1", "fc2"}) {
      at::manual_seed(3);
      const at::Tensor weight = state.at(std::string(layer) + ".weight");
      weight.copy_(at::randn_like(weight));
      // Centred, so that the second layer sees the differences of the first layer's units.
      weight.sub_(weight.mean(1, /*keepdim=*/true)).mul_(layer[2] == '1' ? 0.005 : 0.3);
      state.at(std::string(layer) + ".bias").fill_(50);
    }
  });
  REQUIRE(mudsc_merge({"explain", (folder / "a.pt").string(), "--permuted",
                       (folder / "b.pt").string(), "--input", "2x1x8x8", "--quiet"})
              .exit_code == 0);
  const TensorMap wanted = load_archive(folder / "a.pt").state_dict();
  CHECK_FALSE(at::equal(load_archive(folder / "b.pt").state_dict().at("fc2.weight"),
                        wanted.at("fc2.weight")));
  for (const char* method : {"align", "zip"}) {
    INFO(method);
    config["method"] = method;
    config["space"] = "activation";
    summary_of(try_merge(folder, config));
    const TensorMap merged = load_archive(folder / "out" / "merged.pt").state_dict();
    // The function of both, whichever order zip gives the slots.
    const at::Tensor x = at::rand({16, 1, 8, 8});
    const at::NoGradGuard no_grad;
    CHECK(at::allclose(load_archive(folder / "out" / "merged.pt").forward(x),
                       load_archive(folder / "a.pt").forward(x), 1e-4, 1e-2));
    if (std::string(method) == "align")
      for (const auto& [name, tensor] : wanted) CHECK(at::allclose(merged.at(name), tensor));
  }
}

TEST_CASE("networks of different data types are named, whatever the types") {
  const TemporaryFolder folder;
  const json config = bad_merge_of(folder, "mlp", kSmallPerceptron);
  const auto convert = [&](const char* name, at::ScalarType type) {
    ScriptModel model = load_archive(folder / name);
    model.module().to(type);
    model.save(folder / name);
  };
  convert("a.pt", at::kBFloat16);
  check_unmergeable(folder, config, 3, {"b.pt", "fc1.weight: Float, there BFloat16"});
  convert("b.pt", at::kHalf);
  check_unmergeable(folder, config, 3, {"b.pt", "fc1.weight: Half, there BFloat16"});
  convert("b.pt", at::kBFloat16);
  summary_of(try_merge(folder, config));
  CHECK(load_archive(folder / "out" / "merged.pt").state_dict().at("fc1.weight").scalar_type() ==
        at::kBFloat16);
}
