#include "weightsmith/train/trainer.h"

#include <ATen/ATen.h>
#include <torch/csrc/jit/api/module.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <nlohmann/json.hpp>

#include "support/expect_error.h"
#include "support/temporary_folder.h"
#include "unit/train/trainer_runs.h"
#include "weightsmith/core/progress.h"
#include "weightsmith/data/loader.h"
#include "weightsmith/eval/normalization.h"
#include "weightsmith/tensor/safetensors.h"
#include "weightsmith/train/checkpoint.h"
#include "weightsmith/train/train_data.h"

namespace weightsmith {
namespace {

using namespace testing;

TEST_CASE("training writes the network, its weights, metrics and a checkpoint", "[train]") {
  TemporaryFolder folder;
  TrainConfig config = small_config(folder / "run");
  config.epochs = 12;
  config.data.train.limit = 200;
  NoProgress progress;
  const TrainResult result = train(config, {}, progress);
  CHECK(result.epochs == 12);
  CHECK(result.steps == 12 * 13 * 3);
  CHECK(result.test->samples == 40);
  CHECK(result.test->accuracy > 0.7);
  CHECK(train_result_json(result, config)["test"]["accuracy"] == result.test->accuracy);
  const auto rows = metrics_of(config.out);
  REQUIRE(rows.size() == 12);
  CHECK(rows[0]["epoch"] == 1);
  CHECK(rows[11]["train_loss"] < rows[0]["train_loss"]);
  CHECK(rows[11]["test"]["accuracy"] == result.test->accuracy);
  CHECK(std::filesystem::exists(result.model));
  std::int64_t values = 0;
  for (const auto& [name, tensor] : weights_of(config.out))
    if (name.find("running") == std::string::npos && name.find("num_") == std::string::npos)
      values += tensor.numel();
  CHECK(values == result.parameters);
}

TEST_CASE("the saved archive holds one network, not every head", "[train]") {
  TemporaryFolder folder;
  TrainConfig config = small_config(folder / "run");
  config.epochs = 1;
  config.model.options["width"] = 16;
  train_quietly(config);
  std::uintmax_t weights = std::filesystem::file_size(config.out / "model.safetensors");
  CHECK(std::filesystem::file_size(config.out / "model.pt") < 2 * weights);
  ModelRef ref;
  ref.script = config.out / "model.pt";
  CHECK(same(ScriptModel::load(ref, {}).state_dict(), weights_of(config.out)));
}

TEST_CASE("the same seed gives the same bits, another seed others", "[train]") {
  TemporaryFolder folder;
  train_quietly(small_config(folder / "a"));
  train_quietly(small_config(folder / "b"));
  CHECK(same(weights_of(folder / "a"), weights_of(folder / "b")));
  TrainConfig other = small_config(folder / "c");
  other.seed = 10;
  train_quietly(other);
  CHECK_FALSE(same(weights_of(folder / "a"), weights_of(folder / "c")));
}

TEST_CASE("training in bfloat16 ends near training in float32", "[train]") {
  TemporaryFolder folder;
  TrainConfig config = small_config(folder / "float32");
  config.epochs = 12;
  config.data.train.limit = 200;
  NoProgress progress;
  const TrainResult exact = train(config, {}, progress);
  config.precision = Precision::kBFloat16;
  config.out = folder / "bfloat16";
  const TrainResult half = train(config, {}, progress);
  const double first = metrics_of(folder / "float32")[0]["train_loss"].get<double>();
  CHECK(half.train_loss != exact.train_loss);
  CHECK(std::abs(half.train_loss - exact.train_loss) < 0.1 * (first - exact.train_loss));
  CHECK(half.test->accuracy > 0.7);
  for (const auto& [name, tensor] : weights_of(config.out)) {
    INFO(name);
    CHECK(tensor.scalar_type() != at::kBFloat16);
  }
}

TEST_CASE("float16 is refused on the CPU", "[train]") {
  TemporaryFolder folder;
  TrainConfig config = small_config(folder / "run");
  config.precision = Precision::kFloat16;
  for (const bool plan : {false, true})
    expect_error(ErrorKind::kConfig, {"precision", "float16", "bfloat16"}, [&] {
      if (plan)
        training_plan(config, {});
      else
        train_quietly(config);
    });
  CHECK_FALSE(std::filesystem::exists(config.out));
}

TEST_CASE("who augments changes nothing about a training on the CPU", "[train]") {
  TemporaryFolder folder;
  TrainConfig config = small_config(folder / "cpu");
  config.augmentations[2] = {augmentation(Augmentation::Name::kRandAugment),
                             augmentation(Augmentation::Name::kCutmix)};
  config.augment_on = AugmentOn::kCpu;
  train_quietly(config);
  const nlohmann::json lasting = lasting_config(config);
  config.augment_on = AugmentOn::kDevice;
  CHECK(lasting_config(config) == lasting);  // a run may be resumed either way
  config.out = folder / "device";
  train_quietly(config);
  const TensorMap expected = weights_of(folder / "cpu");
  CHECK(same(weights_of(folder / "device"), expected));
  config.augment_on = AugmentOn::kAuto;  // on the CPU: image by image
  config.out = folder / "auto";
  train_quietly(config);
  CHECK(same(weights_of(folder / "auto"), expected));
}

TEST_CASE("heads see the same samples, or each its own when they are drawn independently",
          "[train]") {
  const TemporaryFolder folder;
  TrainConfig config = small_config(folder / "same");
  config.augmentations = {{}, {}};
  config.method.heads = 2;
  config.method.batch_norm = NormMode::kPerHead;
  train_quietly(config);
  TrainConfig single = config;
  single.out = folder / "single";
  single.augmentations = {{}};
  single.method.heads = 1;
  train_quietly(single);
  // Without augmentation heads that see the same samples are one network.
  const TensorMap expected = weights_of(single.out);
  CHECK(same(weights_of(config.out), expected));
  config.data.draw = DrawMode::kIndependent;
  config.out = folder / "independent";
  train_quietly(config);
  CHECK_FALSE(same(weights_of(config.out), expected));
}

TEST_CASE("every head learns the labels of the samples that it sees", "[train]") {
  const TemporaryFolder folder;
  TrainConfig config = small_config(folder / "run");
  config.model.options["norm"] = "none";
  config.data.draw = DrawMode::kIndependent;
  config.epochs = 1;
  config.optimizer.lr = 1e-12;  // weights stay: the loss of the epoch by the definition
  config.schedule.min_lr = 0;
  NoProgress progress;
  const double loss = train(config, {}, progress).train_loss;
  const TrainData data = load_train_data(config.data, config.seed);
  LoaderOptions options;
  options.batch_size = config.batch_size;
  options.seed = config.seed;
  options.pipelines = config.augmentations;
  options.same_samples = false;
  Loader loader(data.train, options);
  LoadOptions load;
  load.seed = static_cast<std::uint64_t>(config.seed);
  ScriptModel model = ScriptModel::load(config.model, load);
  double sum = 0;
  for (std::int64_t b = 0; b < loader.batches_per_epoch(); ++b) {
    const Batch batch = loader.next();
    for (std::size_t v = 0; v < 3; ++v) {
      const at::Tensor scores = at::log_softmax(model.forward(batch.views[v]), 1).detach();
      sum -= scores.gather(1, batch.labels[v].unsqueeze(1)).mean().item<double>();
    }
  }
  CHECK(loss == Approx(sum / static_cast<double>(3 * loader.batches_per_epoch())).epsilon(1e-5));
}

TEST_CASE("a run goes on with the way of drawing that it began with", "[train]") {
  const TemporaryFolder folder;
  TrainConfig config = small_config(folder / "run");
  train_quietly(config);
  NoProgress progress;
  const auto refuse_other_way = [&] {
    TrainConfig other = config;
    other.data.draw = DrawMode::kIndependent;
    expect_error(ErrorKind::kConfig, {"data.draw"}, [&] {
      train(other, {at::kCPU, true}, progress);
    });
  };
  refuse_other_way();
  // As versions wrote it that knew one way, and no groups.
  for (const auto& path : checkpoints_in(config.out)) {
    Checkpoint older = read_checkpoint(path);
    REQUIRE(older.config["data"].erase("draw") == 1);
    REQUIRE(older.config["optimizer"].erase("groups") == 1);
    write_checkpoint(config.out, older, 2);
  }
  refuse_other_way();
  train(config, {at::kCPU, true}, progress);
  for (const auto& path : checkpoints_in(config.out))
    if (read_checkpoint(path).position.epoch == config.epochs) std::filesystem::remove(path);
  train(config, {at::kCPU, true}, progress);
  CHECK(read_checkpoint(checkpoints_in(config.out).front()).config == lasting_config(config));
}

TEST_CASE("augmentations that do not fit the data are refused before anything is removed",
          "[train]") {
  TemporaryFolder folder;
  TrainConfig config = small_config(folder / "run");
  train_quietly(config);
  const auto checkpoints = checkpoints_in(config.out);
  REQUIRE_FALSE(checkpoints.empty());
  show_colours(config, folder / "colours.safetensors");
  write_safetensors(config.data.train.path, {{"images", at::rand({90, 3, 8, 8})},
                                             {"labels", at::arange(90).remainder(10)}});
  config.augmentations[0] = {augmentation(Augmentation::Name::kColorJitter)};
  TrainOptions options;
  options.overwrite = true;
  NoProgress progress;
  expect_error(ErrorKind::kConfig, {"augmentations", "color_jitter", "uint8"},
               [&] { train(config, options, progress); });
  CHECK(checkpoints_in(config.out) == checkpoints);
}

TEST_CASE("every method makes as many steps on the same samples", "[train]") {
  TemporaryFolder folder;
  for (auto& [name, config] : all_kinds_of_runs(folder.path())) {
    INFO(name);
    NoProgress progress;
    const TrainResult result = train(config, {}, progress);
    CHECK(result.steps == 3 * 3 * 3);
    CHECK(training_plan(config, {})["steps"] == result.steps);
    for (const auto& [key, tensor] : weights_of(config.out))
      if (tensor.is_floating_point()) CHECK(at::isfinite(tensor).all().item<bool>());
  }
}

/// Running means of the first norm.
at::Tensor running_mean(const std::filesystem::path& out) {
  return weights_of(out).at("bn1.running_mean");
}

TEST_CASE("batch-norm statistics of an average: shared, a set a head, or recomputed", "[train]") {
  TemporaryFolder folder;
  const auto trained = [&](NormMode mode) {
    TrainConfig config = small_config(folder / std::to_string(static_cast<int>(mode)));
    config.method.batch_norm = mode;
    config.method.k = 5;  // 12 rounds: the run ends between two averages
    train_quietly(config);
    return config.out;
  };
  const auto shared = trained(NormMode::kShared);
  const auto per_head = trained(NormMode::kPerHead);
  const auto recomputed = trained(NormMode::kRecompute);
  // Statistics that are moved while training have no part in it.
  for (const auto& [name, tensor] : weights_of(shared))
    if (name.find("running") == std::string::npos && name.find("num_") == std::string::npos) {
      CHECK(weights_of(per_head).at(name).equal(tensor));
      CHECK(weights_of(recomputed).at(name).equal(tensor));
    }
  CHECK_FALSE(running_mean(shared).equal(running_mean(per_head)));
  CHECK_FALSE(running_mean(shared).equal(running_mean(recomputed)));
  // Each head has seen its own 12 batches, the shared statistics 36.
  CHECK(weights_of(shared).at("bn1.num_batches_tracked").item<std::int64_t>() == 36);
  CHECK(weights_of(per_head).at("bn1.num_batches_tracked").item<std::int64_t>() == 12);

  ModelRef ref;
  ref.script = recomputed / "model.pt";
  ScriptModel model = ScriptModel::load(ref, {});
  const TrainConfig config = small_config(folder / "unused");
  NoProgress progress;
  reset_batch_norm(model, load_train_data(config.data, config.seed).train, 16, at::kCPU, progress);
  CHECK(at::allclose(model.state_dict().at("bn1.running_mean"), running_mean(recomputed), 1e-5,
                     1e-6));
}

TEST_CASE("SWA's batch-norm statistics are those of the average", "[train]") {
  TemporaryFolder folder;
  TrainConfig config = small_config(folder / "auto");
  config.method.type = MethodConfig::Type::kSwa;
  config.method.start_epoch = 1;
  config.epochs = 6;
  NoProgress progress;
  const double recomputed = train(config, {}, progress).test->loss;
  const at::Tensor mean = running_mean(config.out);
  config.out = folder / "shared";
  config.method.batch_norm = NormMode::kShared;
  const double shared = train(config, {}, progress).test->loss;
  CHECK_FALSE(mean.equal(running_mean(config.out)));
  CHECK(recomputed < shared);
  // Training itself does not notice that its result was looked at.
  CHECK(metrics_of(folder / "auto").back()["train_loss"] ==
        metrics_of(folder / "shared").back()["train_loss"]);
}

TEST_CASE("a batch taken in parts has the gradient of the whole", "[train]") {
  TemporaryFolder folder;
  const auto trained = [&](std::int64_t parts) {
    TrainConfig config = small_config(folder / std::to_string(parts));
    config.model.options["norm"] = "none";  // batch statistics would be those of the parts
    config.optimizer.accumulate = parts;
    config.epochs = 1;
    NoProgress progress;
    const TrainResult result = train(config, {}, progress);
    return std::pair{weights_of(config.out), result.train_loss};
  };
  const auto [whole, loss] = trained(1);
  for (const std::int64_t parts : {2, 3, 100}) {
    INFO(parts);
    const auto [weights, own_loss] = trained(parts);
    CHECK(own_loss == Approx(loss).epsilon(1e-5));
    for (const auto& [name, tensor] : whole)
      CHECK(at::allclose(weights.at(name), tensor, 1e-4, 1e-6));
  }
}

TEST_CASE("a frozen parameter stays as it was, the others move", "[train]") {
  TemporaryFolder folder;
  TrainConfig config = small_config(folder / "run");
  config.freeze = {"conv[1-3]*", "bn*"};
  config.epochs = 1;
  LoadOptions load;
  load.seed = static_cast<std::uint64_t>(config.seed);
  ScriptModel before = ScriptModel::load(config.model, load);
  NoProgress progress;
  const TrainResult result = train(config, {}, progress);
  const TensorMap weights = weights_of(config.out);
  std::int64_t moved = 0;
  for (const auto& [name, parameter] : before.parameters()) {
    INFO(name);
    const bool frozen = name.starts_with("bn") || (name.starts_with("conv") && name[4] != '4');
    CHECK(weights.at(name).equal(parameter.detach()) == frozen);
    if (!frozen) moved += parameter.numel();
  }
  CHECK(result.parameters == moved);
  ModelRef ref;
  ref.script = result.model;
  for (const auto& [name, parameter] : ScriptModel::load(ref, {}).parameters())
    CHECK(parameter.requires_grad());
}

TEST_CASE("a student learns from its teacher alone, whatever the labels", "[train]") {
  TemporaryFolder folder;
  TrainConfig config = small_config(folder / "teacher");
  config.epochs = 12;
  config.data.train.limit = 200;
  NoProgress progress;
  const double teacher = train(config, {}, progress).test->accuracy;
  REQUIRE(teacher > 0.7);
  config.out = folder / "student";
  config.data.label_noise = 1.0;
  config.seed = 10;
  const double misled = train(config, {}, progress).test->accuracy;
  for (const auto type : {DistillationConfig::Type::kSoft, DistillationConfig::Type::kHard}) {
    config.out = folder / std::to_string(static_cast<int>(type));
    config.distillation.emplace();
    config.distillation->teacher.script = folder / "teacher" / "model.pt";
    config.distillation->type = type;
    std::vector<std::filesystem::path> inputs;
    TrainOptions options;
    options.on_start = [&](const auto& read) { inputs = read.files; };
    const double student = train(config, options, progress).test->accuracy;
    CHECK(student > teacher - 0.2);
    CHECK(student > misled + 0.2);
    CHECK(std::count(inputs.begin(), inputs.end(), config.distillation->teacher.script) == 1);
  }
}

/// A network with one batch norm whose training flag is `training`.
std::filesystem::path save_norm(const std::filesystem::path& path, const std::string& training) {
  torch::jit::Module net("Net");
  net.register_parameter("weight", at::rand({10, 64}).set_requires_grad(true), false);
  net.register_buffer("mean", at::zeros({64}));
  net.register_buffer("var", at::ones({64}));
  net.register_attribute("training", c10::BoolType::get(), true);
  net.define(
      "def forward(self, x):\n"
      "    x = torch.batch_norm(x.flatten(1), None, None, self.mean, self.var, " +
      training + ", 0.1, 1e-5, False)\n    return x.mm(self.weight.t())\n");
  net.save(path.string());
  return path;
}

TEST_CASE("batch norms that training would leave as they are are told of", "[train]") {
  TemporaryFolder folder;
  for (const auto& [training, is_frozen] : {std::pair{"False", true}, {"self.training", false}}) {
    INFO(training);
    TrainConfig config = small_config(folder / training);
    config.model = {};
    config.model.script = save_norm(folder / "net.pt", training);
    config.epochs = 1;
    Warnings progress;
    train(config, {}, progress);
    CHECK((progress.text.find("1 of 1 batch norms are fixed in eval mode") != std::string::npos) ==
          is_frozen);
    const at::Tensor mean = weights_of(config.out).at("mean");
    CHECK(mean.eq(0).all().item<bool>() == is_frozen);
    CHECK(training_plan(config, {}).contains("warnings") == is_frozen);
  }
}

TEST_CASE("test labels that do not compete are refused", "[train]") {
  TemporaryFolder folder;
  TrainConfig config = small_config(folder / "run");
  config.data.train.classes = {0, 1, 2};
  config.objective.candidates = Candidates::kData;
  config.epochs = 1;
  expect_error(ErrorKind::kConfig, {"data.test", "class 3 and 6 more", "data.test.classes"},
               [&] { train_quietly(config); });
  CHECK_FALSE(std::filesystem::exists(config.out));
  config.data.test->classes = {2, 0};
  train_quietly(config);
  // All classes compete: a label that was not trained on is a mistake, not infinite.
  config.objective.candidates = Candidates::kAll;
  config.data.test->classes.clear();
  config.out = folder / "all";
  NoProgress progress;
  CHECK(std::isfinite(train(config, {}, progress).test->loss));
}

TEST_CASE("a network that no file of ours could hold is refused at once", "[train]") {
  TemporaryFolder folder;
  torch::jit::Module net("Net");
  net.register_parameter("weight", at::rand({10, 64}).set_requires_grad(true), false);
  net.register_buffer("phase", at::ones({10}, at::kComplexFloat));
  net.define("def forward(self, x):\n    return x.flatten(1).mm(self.weight.t())\n");
  net.save((folder / "net.pt").string());
  TrainConfig config = small_config(folder / "run");
  config.model = {};
  config.model.script = folder / "net.pt";
  expect_error(ErrorKind::kInput, {"net.pt", "phase", "Complex"}, [&] { train_quietly(config); });
  CHECK_FALSE(std::filesystem::exists(config.out));
}

TEST_CASE("Lookaround with one head is SGD on its stream, bit for bit", "[train]") {
  TemporaryFolder folder;
  TrainConfig config = small_config(folder / "lookaround");
  config.augmentations = {{{Augmentation::Name::kRandomCrop}}};
  config.method.heads = 1;
  train_quietly(config);
  config.method.type = MethodConfig::Type::kSgd;
  config.out = folder / "sgd";
  train_quietly(config);
  CHECK(same(weights_of(folder / "lookaround"), weights_of(folder / "sgd")));
}

TEST_CASE("validation is scored every epoch and test data once at the end", "[train]") {
  TemporaryFolder folder;
  TrainConfig config = small_config(folder / "run");
  config.data.validation = 0.2;
  NoProgress progress;
  const TrainResult result = train(config, {}, progress);
  for (const auto& row : metrics_of(config.out)) {
    CHECK(row["validation"]["samples"] == 10);
    CHECK_FALSE(row.contains("test"));
  }
  CHECK(result.validation->samples == 10);
  CHECK(result.test->samples == 40);
}

TEST_CASE("a loss that is not finite ends the run and says what to do", "[train]") {
  TemporaryFolder folder;
  TrainConfig config = small_config(folder / "run");
  config.optimizer.lr = 1e30;
  config.schedule.min_lr = 0;
  config.model.options["norm"] = "none";
  const std::string error = error_of(ErrorKind::kNumeric, [&] { train_quietly(config); });
  CHECK_THAT(error, Catch::Contains("epoch 1") && Catch::Contains("optimizer.lr"));
  CHECK_FALSE(std::filesystem::exists(config.out / "model.pt"));
  // Read some steps later it is still the first such step that is named.
  TrainOptions later;
  later.losses_together = 4;
  NoProgress progress;
  CHECK(error_of(ErrorKind::kNumeric, [&] { train(config, later, progress); }) == error);
  CHECK(checkpoints_in(config.out).empty());
}

TEST_CASE("a network that does not fit the classes is refused", "[train]") {
  TemporaryFolder folder;
  TrainConfig config = small_config(folder / "run");
  config.model.options["outputs"] = 7;
  const std::string error = error_of(ErrorKind::kInput, [&] { train_quietly(config); });
  CHECK_THAT(error, Catch::Contains("(B, 10)"));
}

}  // namespace
}  // namespace weightsmith
