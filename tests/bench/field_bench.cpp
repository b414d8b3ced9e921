// Gradient fields against the bare cost of their passes, and distances of all pairs.
//   field_bench FOLDER

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "weightsmith/core/atomic_file.h"
#include "weightsmith/core/blas_kernels.h"
#include "weightsmith/distance/field_distance.h"
#include "weightsmith/distance/field_file.h"
#include "weightsmith/distance/gradient_field.h"
#include "weightsmith/model/fast_network.h"
#include "weightsmith/model/jit_runtime.h"
#include "weightsmith/tensor/safetensors.h"

namespace {

using namespace weightsmith;

constexpr std::int64_t kSamples = 8;
constexpr std::int64_t kSteps = 50;

double seconds_of(const std::function<void()>& action, int runs = 3) {
  double best = 1e30;
  for (int run = 0; run < runs; ++run) {
    const auto start = std::chrono::steady_clock::now();
    action();
    best = std::min(
        best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

/// The forward and input-backward passes that a field needs, and nothing else.
double bare_passes(ScriptModel& model, const at::Tensor& x, std::int64_t batch) {
  const at::Tensor points = x.repeat_interleave(kSteps, 0);
  return seconds_of([&] {
    for (std::int64_t begin = 0; begin < points.size(0); begin += batch) {
      const at::Tensor z = points.narrow(0, begin, std::min(batch, points.size(0) - begin))
                               .detach()
                               .requires_grad_();
      const at::Tensor total = std::get<0>(model.forward(z).max(1)).sum();
      torch::autograd::grad({total}, {z});
    }
  });
}

}  // namespace

int main(int argc, char** argv) {
  restart_with_better_blas_kernels(argv);
  if (argc != 2) {
    std::fprintf(stderr, "usage: field_bench FOLDER\n");
    return 2;
  }
  at::set_num_threads(1);
  keep_freed_memory();
  at::manual_seed(1);
  const std::filesystem::path folder = argv[1];
  make_folder(folder);
  ModelRef ref;
  ref.builtin = "resnet20";
  ScriptModel model = ScriptModel::load(ref, {});
  model.save(folder / "resnet20.pt");
  const at::Tensor x = at::randn({kSamples, 3, 32, 32});
  write_safetensors(folder / "inputs.safetensors", {{"inputs", x}});
  FieldOptions options;
  options.steps = kSteps;
  GradientField field(model, options);
  const FieldInputs inputs{x, at::zeros_like(x), {}};
  at::Tensor result;
  const double ours = seconds_of([&] { result = field.compute(inputs).field; });
  double bare = 1e30;
  std::int64_t best_batch = 0;
  for (const std::int64_t batch : {25, 50, 100, 200}) {
    const double time = bare_passes(model, x, batch);
    if (time < bare) best_batch = batch;
    bare = std::min(bare, time);
  }
  std::printf("field, ResNet-20 at 32x32, %ld samples of %ld steps, one thread\n",
              static_cast<long>(kSamples), static_cast<long>(kSteps));
  std::printf("  ours %8.0f ms, bare passes %8.0f ms (batch %ld): %.2f x\n", ours * 1e3, bare * 1e3,
              static_cast<long>(best_batch), ours / bare);
  nlohmann::json seconds{{"plain", ours}};
  for (const auto& [what, fast] : {std::pair{"folded", FastNetworkOptions{false, false}},
                                   {"folded, channels last", FastNetworkOptions{true, false}},
                                   {"bfloat16", FastNetworkOptions{false, true}},
                                   {"bfloat16, channels last", FastNetworkOptions{true, true}}}) {
    ScriptModel faster = fast_network(model, fast);
    GradientField fast_field(faster, options);
    at::Tensor found;
    const double time = seconds_of([&] { found = fast_field.compute(inputs).field; });
    seconds[what] = time;
    std::printf("  %-24s %8.0f ms, %.2f x as fast, relative error %.1e, cosine distance %.1e\n",
                what, time * 1e3, ours / time,
                ((found - result).norm() / result.norm()).item<double>(),
                field_distances({source_of(result), source_of(found)}, DistanceKind::kCosine, 0)
                    .mean[1]
                    .item<double>());
  }
  write_safetensors(folder / "field.safetensors", {{"field", result}});
  write_text_atomically(folder / "field.json", seconds.dump());

  std::vector<FieldSource> sources;
  for (int m = 0; m < 20; ++m) sources.push_back(source_of(at::randn({16, kSteps, 3072})));
  const double pairs = seconds_of([&] { field_distances(sources, DistanceKind::kCosine); });
  const double rows = 20.0 * 16 * kSteps * 3072 * 4;
  std::printf("cosine of all pairs of 20 fields (16, 50, 3072): %.0f ms, %.2f GB/s of fields\n",
              pairs * 1e3, rows / pairs / 1e9);

  // From files, more than fits a stretch: every field is read once.
  constexpr std::int64_t kModels = 100, kReference = 256, kFew = 4, kValues = 3072;
  std::vector<FieldSource> stored;
  std::int64_t bytes_read = 0;
  for (std::int64_t m = 0; m < kModels; ++m) {
    const auto path = folder / ("model-" + std::to_string(m) + ".safetensors");
    write_safetensors(path, {{"field", at::randn({kReference, kFew, kValues})}});
    FieldSource source = FieldFile(path).source();
    source.rows = [inner = source.rows, &bytes_read](std::int64_t begin, std::int64_t count) {
      bytes_read += count * kValues * 4;
      return inner(begin, count);
    };
    stored.push_back(std::move(source));
  }
  const double many = seconds_of([&] { field_distances(stored, DistanceKind::kCosine); }, 1);
  std::printf(
      "all pairs of 100 stored fields (256, 4, 3072): %.2f s, %.2f GB/s; each read %.2f times\n",
      many, static_cast<double>(bytes_read) / many / 1e9,
      static_cast<double>(bytes_read) / (kModels * kReference * kFew * kValues * 4));
  return 0;
}
