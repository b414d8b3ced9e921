// What a training step costs beside the bare passes of the same network written by hand, and what
// optimisers and averages cost beside copies of as much memory. Everything is measured in turns, in
// one run; medians, and of ratios their quartiles.
//
//   train_bench FOLDER [THREADS [ROUNDS]]
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <spdlog/fmt/fmt.h>
#include <torch/nn.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "weightsmith/core/blas_kernels.h"
#include "weightsmith/eval/objective.h"
#include "weightsmith/model/channels_last.h"
#include "weightsmith/model/jit_runtime.h"
#include "weightsmith/model/script_model.h"
#include "weightsmith/train/methods.h"
#include "weightsmith/train/norm_statistics.h"
#include "weightsmith/train/parameter_arena.h"
#include "weightsmith/train/training_step.h"

namespace {

using namespace weightsmith;
namespace nn = torch::nn;

constexpr std::int64_t kBatch = 128;
constexpr std::int64_t kSide = 32;
constexpr std::int64_t kClasses = 10;

nn::Conv2d convolution(std::int64_t in, std::int64_t out, std::int64_t kernel,
                       std::int64_t stride) {
  return nn::Conv2d(
      nn::Conv2dOptions(in, out, kernel).stride(stride).padding(kernel / 2).bias(false));
}

struct BasicBlockImpl : nn::Module {
  BasicBlockImpl(std::int64_t in, std::int64_t out, std::int64_t stride)
      : conv1(register_module("conv1", convolution(in, out, 3, stride))),
        bn1(register_module("bn1", nn::BatchNorm2d(out))),
        conv2(register_module("conv2", convolution(out, out, 3, 1))),
        bn2(register_module("bn2", nn::BatchNorm2d(out))) {
    if (in != out || stride != 1)
      downsample = register_module(
          "downsample", nn::Sequential(convolution(in, out, 1, stride), nn::BatchNorm2d(out)));
  }
  at::Tensor forward(const at::Tensor& x) {
    at::Tensor y = bn1(conv1(x)).relu_();
    y = bn2(conv2(y));
    return y.add_(downsample.is_empty() ? x : downsample->forward(x)).relu_();
  }

  nn::Conv2d conv1;
  nn::BatchNorm2d bn1;
  nn::Conv2d conv2;
  nn::BatchNorm2d bn2;
  nn::Sequential downsample{nullptr};
};
TORCH_MODULE(BasicBlock);

/// The builtin resnet20 (`stages` 3) or resnet18 (4), by hand.
struct ResNetImpl : nn::Module {
  ResNetImpl(std::int64_t features, std::int64_t stages, std::int64_t blocks)
      : conv1(register_module("conv1", convolution(3, features, 3, 1))),
        bn1(register_module("bn1", nn::BatchNorm2d(features))) {
    std::int64_t in = features;
    for (std::int64_t stage = 0; stage < stages; ++stage) {
      nn::Sequential layer;
      for (std::int64_t i = 0; i < blocks; ++i) {
        layer->push_back(BasicBlock(in, features, stage > 0 && i == 0 ? 2 : 1));
        in = features;
      }
      layers.push_back(register_module(fmt::format("layer{}", stage + 1), layer));
      features *= 2;
    }
    fc = register_module("fc", nn::Linear(in, kClasses));
  }
  at::Tensor forward(at::Tensor x) {
    x = bn1(conv1(x)).relu_();
    for (nn::Sequential& layer : layers) x = layer->forward(x);
    return fc(torch::flatten(at::adaptive_avg_pool2d(x, {1, 1}), 1));
  }

  nn::Conv2d conv1;
  nn::BatchNorm2d bn1;
  std::vector<nn::Sequential> layers;
  nn::Linear fc{nullptr};
};
TORCH_MODULE(ResNet);

struct Network {
  const char* name;
  ModelRef builtin;
  std::int64_t features, stages, blocks;
};

std::vector<Network> networks() {
  ModelRef resnet20, wide, resnet18;
  resnet20.builtin = wide.builtin = "resnet20";
  wide.options = {{"width", 2}};
  resnet18.builtin = "resnet18";
  return {{"resnet20", resnet20, 16, 3, 3},
          {"resnet20, width 2", wide, 32, 3, 3},
          {"resnet18", resnet18, 64, 4, 2}};
}

double seconds_of(const std::function<void()>& action) {
  const auto start = std::chrono::steady_clock::now();
  action();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// The value below which `share` of the values lie.
double quantile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[static_cast<std::size_t>(share * static_cast<double>(values.size() - 1) + 0.5)];
}

std::vector<double> ratios(const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> all;
  for (std::size_t i = 0; i < a.size(); ++i) all.push_back(a[i] / b[i]);
  return all;
}

std::string spread(const std::vector<double>& values) {
  return fmt::format("{:.2f} ({:.2f} to {:.2f})", quantile(values, 0.5), quantile(values, 0.25),
                     quantile(values, 0.75));
}

/// Several actions in turns, `rounds` times after one that is not counted.
std::vector<std::vector<double>> in_turns(int rounds,
                                          const std::vector<std::function<double()>>& actions) {
  std::vector<std::vector<double>> times(actions.size());
  for (int round = -1; round < rounds; ++round)
    for (std::size_t i = 0; i < actions.size(); ++i) {
      const double time = actions[i]();
      if (round >= 0) times[i].push_back(time);
    }
  return times;
}

/// A network of lookaround-train in the middle of its training.
class Training {
 public:
  /// Batches will be like `example`, if one is given.
  explicit Training(const TrainConfig& config, const at::Tensor& example = {})
      : config_(config),
        model_(ScriptModel::load(config.model, {})),
        objective_(config.objective, kClasses),
        arena_(model_.parameters(), config.method.trained_heads(), model_.where()),
        method_(make_method(config, arena_, /*batches=*/1)),
        norms_(model_, config.method.norm_mode(), config.method.trained_heads()),
        step_(config_,
              {model_, objective_, nullptr, arena_, *method_, norms_, at::kCPU,
               example.defined() && takes_channels_last(model_, example), config.precision}) {
    model_.train(true);
  }

  double step(const Batch& batch) {
    return step_.run(batch, 0, 1e-3, "the benchmark").at(0);
  }
  ScriptModel& model() { return model_; }
  ParameterArena& arena() { return arena_; }
  TrainingMethod& method() { return *method_; }

 private:
  TrainConfig config_;
  ScriptModel model_;
  Objective objective_;
  ParameterArena arena_;
  std::unique_ptr<TrainingMethod> method_;
  NormStatistics norms_;
  TrainingStep step_;
};

TrainConfig config_of(const ModelRef& model) {
  TrainConfig config;
  config.model = model;
  config.epochs = 1;
  return config;
}

void copy_weights(ScriptModel& from, ResNet& to) {
  const at::NoGradGuard no_grad;
  const TensorMap weights = from.state_dict();
  std::size_t copied = 0;
  for (const auto& all : {to->named_parameters(), to->named_buffers()})
    for (const auto& item : all) {
      at::Tensor target = item.value();
      target.copy_(weights.at(item.key()));
      ++copied;
    }
  if (copied != weights.size()) throw std::runtime_error("the networks are not the same");
}

void measure_steps(const Network& network, int rounds) {
  const TrainConfig config = config_of(network.builtin);
  Batch batch;
  batch.views = {at::randn({kBatch, 3, kSide, kSide})};
  const at::Tensor example = batch.views[0].narrow(0, 0, 4);
  Training training(config, example);
  TrainConfig in_half = config;
  in_half.precision = Precision::kBFloat16;
  Training half(in_half, example);
  batch.labels = {at::randint(kClasses, {kBatch}, at::kLong)};
  batch.mixing.resize(1);

  ResNet plain(network.features, network.stages, network.blocks);
  copy_weights(training.model(), plain);
  ResNet inner(network.features, network.stages, network.blocks);
  copy_weights(training.model(), inner);
  for (at::Tensor& parameter : inner->parameters())
    if (parameter.dim() == 4)
      parameter.set_data(parameter.detach().contiguous(at::MemoryFormat::ChannelsLast));
  const at::Tensor x_inner = batch.views[0].contiguous(at::MemoryFormat::ChannelsLast);
  double losses[2];
  const auto bare = [&](ResNet& net, const at::Tensor& x, double& loss) {
    for (at::Tensor& parameter : net->parameters()) parameter.mutable_grad().reset();
    return seconds_of([&] {
      const at::Tensor value = at::cross_entropy_loss(net->forward(x), batch.labels[0]);
      value.backward();
      loss = value.item<double>();
    });
  };
  double ours = -1;
  const auto times = in_turns(rounds, {[&] { return bare(plain, batch.views[0], losses[0]); },
                                       [&] { return bare(inner, x_inner, losses[1]); },
                                       [&] {
                                         return seconds_of([&] {
                                           const double loss = training.step(batch);
                                           if (ours < 0) ours = loss;
                                         });
                                       },
                                       [&] { return seconds_of([&] { half.step(batch); }); }});
  // The networks by hand are not trained: but for rounding, their losses are our first.
  if (std::abs(losses[0] - ours) > 1e-3 || std::abs(losses[1] - ours) > 1e-3)
    throw std::runtime_error(fmt::format("losses differ: {} and {} by hand, {} of the training",
                                         losses[0], losses[1], ours));
  fmt::print("| {} | {:.0f} | {:.0f} | {:.0f} | {} | {} | {} |\n", network.name,
             quantile(times[0], 0.5) * 1e3, quantile(times[1], 0.5) * 1e3,
             quantile(times[2], 0.5) * 1e3, spread(ratios(times[2], times[0])),
             spread(ratios(times[2], times[1])), spread(ratios(times[3], times[2])));
  std::fflush(stdout);
}

/// Copies as much memory as `values` floats read or written are, all over a set of `held` floats.
class Copies {
 public:
  Copies(double values, double held)
      : count_(static_cast<std::size_t>(values / 2)),
        half_(std::max(count_, static_cast<std::size_t>(held / 2))),
        memory_(at::ones({static_cast<std::int64_t>(2 * half_)})) {}

  double time() {
    auto* from = memory_.data_ptr<float>();
    if (at_ + count_ > half_) at_ = 0;
    const double seconds = seconds_of([&] {
      at::parallel_for(0, static_cast<std::int64_t>(count_), kArenaGrain,
                       [&](std::int64_t begin, std::int64_t end) {
                         std::memcpy(from + half_ + at_ + begin, from + at_ + begin,
                                     static_cast<std::size_t>(end - begin) * sizeof(float));
                       });
    });
    at_ += count_;
    return seconds;
  }

 private:
  std::size_t count_, half_, at_ = 0;
  at::Tensor memory_;
};

struct Update {
  const char* name;
  MethodConfig method;
  OptimizerConfig optimizer;
  double touched;  // floats read or written a step and parameter
  double held;     // arrays that it works on in turn, gradients included
};

std::vector<Update> updates() {
  using Method = MethodConfig::Type;
  using Base = OptimizerConfig::Type;
  const auto method = [](Method type) {
    MethodConfig m;
    m.type = type;
    m.start_epoch = 0;
    return m;
  };
  const auto base = [](Base type, double momentum, bool nesterov = false) {
    OptimizerConfig o;
    o.type = type;
    o.momentum = momentum;
    o.nesterov = nesterov;
    return o;
  };
  const MethodConfig plain = method(Method::kSgd), lookaround = method(Method::kLookaround);
  const OptimizerConfig sgd = base(Base::kSgd, 0.9), adam = base(Base::kAdam, 0);
  const auto d = static_cast<double>(lookaround.heads), k = static_cast<double>(lookaround.k);
  MethodConfig often = lookaround;
  often.k = 1;
  MethodConfig swad = method(Method::kSwad);
  swad.validate_every = 1 << 20;  // never: that is an evaluation, not an update
  return {{"SGD without momentum", plain, base(Base::kSgd, 0), 3, 2},
          {"SGD, momentum", plain, sgd, 5, 3},
          {"SGD, Nesterov", plain, base(Base::kSgd, 0.9, true), 5, 3},
          {"Adam", plain, adam, 7, 4},
          {"AdamW", plain, base(Base::kAdamW, 0), 7, 4},
          {"SGD, lookaround, d 3, k 5", lookaround, sgd, 5 + 2 / k, 1 + 2 * d},
          {"SGD, lookaround, d 3, k 1", often, sgd, 5 + 2, 1 + 2 * d},
          {"Adam, lookaround, d 3, k 5", lookaround, adam, 7 + 2 / k, 1 + 3 * d},
          {"SGD, swa every step", method(Method::kSwa), sgd, 5 + 3, 4},
          {"SGD, swad", swad, sgd, 5 + 3, 4},
          {"SGD, ema", method(Method::kEma), sgd, 5 + 3, 4},
          {"SGD, lookahead, k 5", method(Method::kLookahead), sgd, 5 + 4 / k, 4}};
}

void measure_updates(const Network& network, int rounds) {
  constexpr int kSteps = 15;  // whole cycles of every method
  fmt::print("| {} | step, ms | copy, ms | ratio |\n|---|---:|---:|---:|\n", network.name);
  for (const Update& update : updates()) {
    TrainConfig config = config_of(network.builtin);
    config.method = update.method;
    config.augmentations.resize(static_cast<std::size_t>(config.method.trained_heads()));
    config.optimizer = update.optimizer;
    Training training(config);
    const std::vector<at::Tensor>& parameters = training.arena().parameters();
    std::vector<at::Tensor> gradients;
    double values = 0;
    for (const at::Tensor& parameter : parameters) {
      gradients.push_back(1e-3 * at::randn(parameter.sizes()));
      values += static_cast<double>(parameter.numel());
    }
    Copies copies(update.touched * values, update.held * values);
    const auto times = in_turns(rounds, {[&] {
                                           double sum = 0;
                                           for (int step = 0; step < kSteps; ++step) {
                                             for (std::size_t i = 0; i < parameters.size(); ++i)
                                               parameters[i].mutable_grad() = gradients[i];
                                             sum +=
                                                 seconds_of([&] { training.method().step(1e-3); });
                                           }
                                           return sum / kSteps;
                                         },
                                         [&] {
                                           double sum = 0;
                                           for (int step = 0; step < kSteps; ++step)
                                             sum += copies.time();
                                           return sum / kSteps;
                                         }});
    fmt::print("| {} | {:.3f} | {:.3f} | {} |\n", update.name, quantile(times[0], 0.5) * 1e3,
               quantile(times[1], 0.5) * 1e3, spread(ratios(times[0], times[1])));
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  restart_with_better_blas_kernels(argv);
  if (argc < 2) {
    std::fprintf(stderr, "usage: train_bench FOLDER [THREADS [ROUNDS]]\n");
    return 2;
  }
  const int threads = argc > 2 ? std::atoi(argv[2]) : 1;
  const int rounds = argc > 3 ? std::atoi(argv[3]) : 9;
  at::set_num_threads(threads);
  keep_freed_memory();
  at::manual_seed(1);
  const std::vector<Network> all = networks();  // steps on the first two, updates on first and last
  fmt::print("optimisers and averages, {} thread(s), medians (quartiles)\n", threads);
  measure_updates(all.front(), 3 * rounds);
  measure_updates(all.back(), (rounds + 2) / 3);
  fmt::print(
      "training steps, batch {}, {} x {}, {} thread(s), median of {} rounds (quartiles)\n"
      "| network | by hand, ms | by hand, channels innermost, ms | step, ms | to by hand | to "
      "channels innermost | bfloat16 to step |\n|---|---:|---:|---:|---:|---:|---:|\n",
      kBatch, kSide, kSide, threads, rounds);
  measure_steps(all[0], rounds);
  measure_steps(all[1], (rounds + 1) / 2);
  return 0;
}
