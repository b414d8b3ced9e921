#include "weightsmith/train/parameter_arena.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <spdlog/fmt/fmt.h>

#include <unordered_set>

#include "weightsmith/core/error.h"

namespace weightsmith {
namespace {

constexpr std::int64_t kAlignment = 16;

}  // namespace

ParameterArena::ParameterArena(const TensorMap& parameters, std::int64_t heads,
                               const std::string& where) {
  WS_CHECK(heads >= 1);
  std::unordered_set<const void*> seen;
  std::int64_t width = 0;
  for (const auto& [name, parameter] : parameters) {
    if (!parameter.requires_grad() || !seen.insert(parameter.unsafeGetTensorImpl()).second)
      continue;
    if (parameter.scalar_type() != at::kFloat)
      throw Error(ErrorKind::kInput, where,
                  fmt::format("parameter {} is {}, expected float32", name,
                              at::toString(parameter.scalar_type())),
                  "convert the network before training");
    if (!parameters_.empty() && parameter.device() != parameters_.front().device())
      throw Error(ErrorKind::kInput, where,
                  fmt::format("parameter {} is on {}, others on {}", name, parameter.device().str(),
                              parameters_.front().device().str()),
                  "move the network to one device");
    segments_.push_back({width, parameter.numel(), parameter.sizes().vec()});
    parameters_.push_back(parameter);
    width += (parameter.numel() + kAlignment - 1) / kAlignment * kAlignment;
  }
  if (parameters_.empty())
    throw Error(ErrorKind::kInput, where, "has no parameter to train",
                "export it with requires_grad left on, and freeze fewer");

  const at::NoGradGuard no_grad;
  values_ = at::zeros({heads, width}, parameters_.front().options().requires_grad(false));
  for (std::size_t i = 0; i < segments_.size(); ++i)
    values_.narrow(1, segments_[i].offset, segments_[i].numel).copy_(parameters_[i].reshape({-1}));
  for (std::int64_t h = 0; h < heads; ++h) views_.push_back(views_of(values_[h]));
  show(0);
}

ParameterArena::~ParameterArena() {
  const at::NoGradGuard no_grad;
  for (at::Tensor& parameter : parameters_) parameter.set_data(parameter.detach().clone());
}

std::vector<at::Tensor> ParameterArena::views_of(const at::Tensor& flat) const {
  std::vector<at::Tensor> views;
  views.reserve(segments_.size());
  for (const Segment& segment : segments_)
    views.push_back(flat.narrow(0, segment.offset, segment.numel).view(segment.shape));
  return views;
}

void ParameterArena::set_parameters(const std::vector<at::Tensor>& views) {
  const at::NoGradGuard no_grad;
  for (std::size_t i = 0; i < parameters_.size(); ++i) parameters_[i].set_data(views[i]);
}

void ParameterArena::show(std::int64_t head) {
  set_parameters(views_.at(static_cast<std::size_t>(head)));
}

void ParameterArena::show_values(const at::Tensor& flat) { set_parameters(views_of(flat)); }

void ParameterArena::show_mean() {
  if (!mean_.defined()) mean_ = at::empty_like(values_[0]);
  if (values_.is_cpu()) {
    float* target = mean_.data_ptr<float>();
    mean_into(&target, 1);
  } else {
    at::mean_out(mean_, values_, {0});
  }
  show_values(mean_);
}

void ParameterArena::average() {
  if (values_.is_cpu()) {
    std::vector<float*> targets;
    for (std::int64_t h = 0; h < heads(); ++h)
      targets.push_back(values_.data_ptr<float>() + h * width());
    mean_into(targets.data(), heads());
  } else {
    values_.copy_(values_.mean(0, /*keepdim=*/true).expand_as(values_));
  }
}

void ParameterArena::mean_into(float* const* targets, std::int64_t count) const {
  const float* first = values_.data_ptr<float>();
  const std::int64_t heads = values_.size(0);
  const std::int64_t width = values_.size(1);
  const float share = 1.0F / static_cast<float>(heads);
  constexpr std::int64_t kBlock = 1024;  // stays in the first-level cache for all heads
  at::parallel_for(0, (width + kBlock - 1) / kBlock, kArenaGrain / kBlock,
                   [&](std::int64_t begin, std::int64_t end) {
                     float sum[kBlock];
                     for (std::int64_t block = begin; block < end; ++block) {
                       const std::int64_t start = block * kBlock;
                       const std::int64_t size = std::min(kBlock, width - start);
                       for (std::int64_t i = 0; i < size; ++i) sum[i] = share * first[start + i];
                       for (std::int64_t h = 1; h < heads; ++h) {
                         const float* head = first + h * width + start;
                         for (std::int64_t i = 0; i < size; ++i) sum[i] += share * head[i];
                       }
                       for (std::int64_t t = 0; t < count; ++t)
                         std::copy(sum, sum + size, targets[t] + start);
                     }
                   });
}

}  // namespace weightsmith
