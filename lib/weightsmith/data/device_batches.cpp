#include "weightsmith/data/device_batches.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <utility>

#include "weightsmith/core/error.h"
#include "weightsmith/model/jit_runtime.h"

namespace weightsmith {
namespace {

void check_fits(const Dataset& dataset) {
  if (fits_device_batches(dataset)) return;
  if (dataset.on_demand)
    throw Error(
        ErrorKind::kConfig, "augment_on",
        fmt::format("a device augments images that it holds; those of {} are decoded on demand",
                    dataset.where),
        "set it to \"cpu\", or cache_gb so that all of them are kept");
  throw Error(ErrorKind::kConfig, "augment_on",
              fmt::format("a device augments uint8; the samples of {} are {}", dataset.where,
                          at::toString(dataset.dtype())),
              "set it to \"cpu\"");
}

}  // namespace

DeviceBatches::DeviceBatches(const Dataset& dataset, at::Device device)
    : device_(device), where_(dataset.where), sample_shape_(dataset.sample_shape()) {
  check_fits(dataset);
  const Normalisation n = normalisation(dataset);
  std::vector<std::int64_t> shape(sample_shape_.size() + 1, 1);
  shape[1] = static_cast<std::int64_t>(n.scale.size());
  try {
    samples_ = dataset.images.to(device);
    scale_ = at::tensor(n.scale).view(shape).to(device);
    offset_ = at::tensor(n.offset).view(shape).to(device);
  } catch (const c10::Error& error) {
    throw Error(
        ErrorKind::kNumeric, "augment_on",
        fmt::format("the {} bytes of {} cannot be kept on the device: {}", dataset.images.nbytes(),
                    where_, jit_error_reason(error.what_without_backtrace())),
        "set it to \"cpu\"");
  }
}

DeviceBatches::Plan DeviceBatches::draw(const std::vector<Pipeline>& pipelines,
                                        const std::vector<Shown>& shown,
                                        std::vector<Streams> streams) const {
  WS_CHECK(streams.size() == pipelines.size() &&
           (shown.size() == 1 || shown.size() == pipelines.size()));
  Plan plan;
  TransferBuffer numbers;
  for (const Shown& own : shown)
    plan.shown.push_back({numbers.add(own.samples), numbers.add(own.labels)});
  for (std::size_t p = 0; p < pipelines.size(); ++p) {
    const auto& [samples, labels] = shown[std::min(p, shown.size() - 1)];
    Plan::View& view = plan.views.emplace_back();
    if (pipelines[p].empty()) continue;
    view.steps = draw_batch(pipelines[p], {sample_shape_[0], sample_shape_[1], sample_shape_[2]},
                            std::move(streams[p].samples), numbers);
    const auto [channels, height, width] = view.steps->shape();
    view.mixing = draw_mixing(pipelines[p], static_cast<std::int64_t>(samples.size()), height,
                              width, streams[p].mixing);
    std::vector<std::int64_t> partner_labels;
    for (const std::int64_t partner : view.mixing.partners)
      partner_labels.push_back(labels[partner]);
    view.partners = numbers.add(view.mixing.partners);
    view.partner_labels = numbers.add(partner_labels);
  }
  try {
    plan.numbers = numbers.finish(device_);
  } catch (...) {
    throw_jit_error(ErrorKind::kNumeric, where_, "a batch could not be made ready for the device",
                    "set augment_on to \"cpu\"");
  }
  return plan;
}

DeviceBatches::Made DeviceBatches::make(const Plan& plan) const {
  try {
    Made made;
    const at::Tensor numbers = plan.numbers.to(device_, /*non_blocking=*/true);
    at::Tensor samples;
    at::Tensor labels;
    for (std::size_t v = 0; v < plan.views.size(); ++v) {
      const Plan::View& view = plan.views[v];
      if (v < plan.shown.size()) {
        samples = samples_.index_select(0, TransferBuffer::get(numbers, plan.shown[v].samples));
        labels = TransferBuffer::get(numbers, plan.shown[v].labels);
      }
      made.labels.push_back(labels);
      made.views.push_back(make_view(view, samples, numbers));
      Mixing& mixing = made.mixing.emplace_back();
      mixing.share = view.mixing.share;
      if (!view.mixing.partners.empty())
        mixing.labels = TransferBuffer::get(numbers, view.partner_labels);
    }
    return made;
  } catch (...) {
    throw_jit_error(ErrorKind::kNumeric, where_, "no batch could be made on the device",
                    "use a smaller batch, or set augment_on to \"cpu\"");
  }
}

at::Tensor DeviceBatches::make_view(const Plan::View& view, const at::Tensor& samples,
                                    const at::Tensor& numbers) const {
  at::Tensor values = samples;
  // Other views may begin with the same samples.
  if (view.steps) values = view.steps->apply(samples.clone(), numbers);
  values = values.to(at::kFloat).mul(scale_).add_(offset_);
  if (!view.mixing.partners.empty())
    mix_tensors(view.mixing, TransferBuffer::get(numbers, view.partners), values);
  return values;
}

bool fits_device_batches(const Dataset& dataset) {
  return !dataset.on_demand && dataset.dtype() == at::kByte;
}

}  // namespace weightsmith
