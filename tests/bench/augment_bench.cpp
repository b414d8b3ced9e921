// Images a second through augmentation pipelines, as the loader makes them, on one thread: image by
// image, and batch by batch with the operations that a GPU would run.
//   augment_bench FOLDER

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>
#include <optional>

#include "weightsmith/core/atomic_file.h"
#include "weightsmith/data/loader.h"

namespace {

using namespace weightsmith;
using Name = Augmentation::Name;

Augmentation named(Name name) {
  Augmentation a;
  a.name = name;
  return a;
}

/// Of processor time, so that a busy machine does not count; the best of three runs: batches of 128
/// taken from a loader with one thread of its own.
double images_per_second(const Dataset& dataset, const Pipeline& pipeline, std::int64_t batches,
                         std::optional<at::Device> device = std::nullopt) {
  LoaderOptions options;
  options.device = device;
  options.pipelines = {pipeline};
  options.prefetch = 1;
  double best = 0;
  for (int run = 0; run < 3; ++run) {
    Loader loader(dataset, options);
    loader.next();
    const std::clock_t start = std::clock();
    for (std::int64_t b = 0; b < batches; ++b) loader.next();
    const double time = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    best = std::max(best, static_cast<double>(batches * options.batch_size) / time);
  }
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: augment_bench FOLDER\n");
    return 2;
  }
  at::set_num_threads(1);
  at::manual_seed(1);
  const std::filesystem::path folder = argv[1];
  make_folder(folder);
  nlohmann::ordered_json measured = nlohmann::ordered_json::object();
  std::printf("augmentation images a second of processor time, one thread\n");
  std::printf("                                  singly   in batches  ratio\n");
  for (const std::int64_t side : {32, 224}) {
    Dataset dataset;
    const std::int64_t count = side == 32 ? 4096 : 256;
    // Noise that is smooth like a photograph's.
    dataset.images =
        at::upsample_bilinear2d(at::rand({count, 3, side / 4, side / 4}) * 255, {side, side}, false)
            .to(at::kByte)
            .contiguous();
    dataset.labels = at::zeros({count}, at::kLong);
    dataset.classes = 1;
    dataset.mean = {0.5, 0.5, 0.5};
    dataset.std = {0.25, 0.25, 0.25};
    const std::int64_t batches = side == 32 ? 128 : 4;
    const Pipeline base =
        side == 32 ? Pipeline{named(Name::kRandomCrop), named(Name::kHorizontalFlip)}
                   : Pipeline{named(Name::kRandomResizedCrop), named(Name::kHorizontalFlip)};
    for (const auto& [label, more] :
         {std::pair<const char*, Pipeline>{"crop, flip", {}},
          {"crop, flip, rotation", {named(Name::kRotation)}},
          {"crop, flip, AutoAugment", {named(Name::kAutoAugment)}},
          {"crop, flip, RandAugment", {named(Name::kRandAugment)}},
          {"crop, flip, TrivialAugment", {named(Name::kTrivialAugment)}},
          {"crop, flip, colour jitter", {named(Name::kColorJitter)}}}) {
      Pipeline pipeline = base;
      pipeline.insert(pipeline.end(), more.begin(), more.end());
      const double rate = images_per_second(dataset, pipeline, batches);
      const double batched = images_per_second(dataset, pipeline, batches, at::Device(at::kCPU));
      std::printf("  %3ld %-28s %9.0f  %9.0f  %6.3f\n", static_cast<long>(side), label, rate,
                  batched, batched / rate);
      measured[std::to_string(side)][label] = rate;
    }
  }
  write_text_atomically(folder / "augment.json", measured.dump());
  return 0;
}
