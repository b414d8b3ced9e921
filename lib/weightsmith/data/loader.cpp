#include "weightsmith/data/loader.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "weightsmith/core/error.h"
#include "weightsmith/core/rng.h"
#include "weightsmith/data/random_stream.h"

namespace weightsmith {
namespace {

/// The values of one stored sample as float.
void copy_sample(const at::Tensor& images, std::int64_t sample, std::int64_t numel, float* out) {
  if (images.scalar_type() == at::kByte) {
    const auto* from = images.data_ptr<std::uint8_t>() + sample * numel;
    std::transform(from, from + numel, out, [](std::uint8_t v) { return static_cast<float>(v); });
  } else {
    const auto* from = images.data_ptr<float>() + sample * numel;
    std::copy(from, from + numel, out);
  }
}

void normalise(const Normalisation& n, std::int64_t numel, std::int64_t channels, float* values) {
  const std::int64_t plane = numel / channels;
  for (std::int64_t c = 0; c < channels; ++c) {
    const std::size_t k = n.scale.size() == 1 ? 0 : static_cast<std::size_t>(c);
    const float scale = n.scale[k];
    const float offset = n.offset[k];
    for (float* v = values + c * plane; v != values + (c + 1) * plane; ++v)
      *v = *v * scale + offset;
  }
}

}  // namespace

std::int64_t batches_per_epoch(std::int64_t samples, std::int64_t batch_size) {
  const std::int64_t full = samples / batch_size;
  const std::int64_t rest = samples % batch_size;
  return full + (rest > 1 || (rest == 1 && full == 0) ? 1 : 0);
}

Loader::Loader(const Dataset& dataset, LoaderOptions options, LoaderPosition start)
    : dataset_(dataset), options_(std::move(options)), normalisation_(normalisation(dataset)) {
  WS_CHECK(options_.batch_size > 0 && options_.threads > 0 && options_.prefetch > 0);
  WS_CHECK(dataset.size() > 0 && dataset.images.is_contiguous() && dataset.labels.is_contiguous());
  if (options_.pipelines.empty()) options_.pipelines.emplace_back();
  for (const Pipeline& pipeline : options_.pipelines)
    if (!pipeline.empty() && dataset.images.dim() != 4)
      throw Error(ErrorKind::kConfig, "augmentations",
                  fmt::format("{} holds samples of {} dimensions, not images (C, H, W)",
                              dataset.where, dataset.images.dim() - 1),
                  "leave the pipelines empty");
  batches_per_epoch_ = weightsmith::batches_per_epoch(dataset.size(), options_.batch_size);
  claimed_ = consumed_ = start.epoch * batches_per_epoch_ + start.batch;
  slots_.resize(static_cast<std::size_t>(options_.prefetch));
  for (int i = 0; i < options_.threads; ++i) threads_.emplace_back([this] { work(); });
}

Loader::~Loader() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

Batch Loader::next() {
  std::unique_lock lock(mutex_);
  Slot& slot = slots_[static_cast<std::size_t>(consumed_ % options_.prefetch)];
  changed_.wait(lock, [&] { return slot.batch || slot.error; });
  // The position stays, so that a caller who carries on sees the error again and never hangs.
  if (slot.error) std::rethrow_exception(slot.error);
  Batch batch = std::move(*slot.batch);
  slot.batch.reset();
  ++consumed_;
  lock.unlock();
  changed_.notify_all();
  return batch;
}

void Loader::work() {
  std::vector<float> scratch;
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stopping_ || claimed_ < consumed_ + options_.prefetch; });
    if (stopping_) return;
    const std::int64_t number = claimed_++;
    lock.unlock();
    Slot result;
    try {
      result.batch = prepare(number, scratch);
    } catch (...) {
      result.error = std::current_exception();
    }
    lock.lock();
    slots_[static_cast<std::size_t>(number % options_.prefetch)] = std::move(result);
    changed_.notify_all();
  }
}

std::vector<std::int64_t> Loader::sample_order(std::int64_t epoch) const {
  std::vector<std::int64_t> order(static_cast<std::size_t>(dataset_.size()));
  std::iota(order.begin(), order.end(), std::int64_t{0});
  if (!options_.shuffle) return order;
  Rng rng(static_cast<std::uint64_t>(options_.seed),
          {kShuffleStream, static_cast<std::uint64_t>(epoch)});
  return random_permutation(dataset_.size(), rng);
}

// Plain loops instead of tensor operations: those would start a pool of OpenMP threads in each of
// the loader's own threads.
Batch Loader::prepare(std::int64_t number, std::vector<float>& scratch) const {
  Batch batch;
  batch.position = {number / batches_per_epoch_, number % batches_per_epoch_};
  const auto epoch = static_cast<std::uint64_t>(batch.position.epoch);
  const std::int64_t begin = batch.position.batch * options_.batch_size;
  const std::int64_t count = std::min(options_.batch_size, dataset_.size() - begin);
  std::vector<std::int64_t> samples;
  {
    const std::lock_guard lock(order_mutex_);
    if (order_epoch_ != batch.position.epoch) {
      order_ = sample_order(batch.position.epoch);
      order_epoch_ = batch.position.epoch;
    }
    samples.assign(order_.begin() + begin, order_.begin() + begin + count);
  }

  const at::Tensor& images = dataset_.images;
  const std::int64_t numel = images.numel() / images.size(0);
  const std::int64_t channels = images.size(1);
  std::vector<std::int64_t> shape = images.sizes().vec();
  shape[0] = count;
  batch.labels = at::empty({count}, at::kLong);
  for (std::int64_t i = 0; i < count; ++i)
    batch.labels.data_ptr<std::int64_t>()[i] = dataset_.labels.data_ptr<std::int64_t>()[samples[i]];
  for (std::size_t p = 0; p < options_.pipelines.size(); ++p) {
    at::Tensor view = at::empty(shape, at::kFloat);
    for (std::int64_t i = 0; i < count; ++i) {
      float* out = view.data_ptr<float>() + i * numel;
      copy_sample(images, samples[i], numel, out);
      if (!options_.pipelines[p].empty()) {
        Rng rng(static_cast<std::uint64_t>(options_.seed),
                {kAugmentStream, epoch, static_cast<std::uint64_t>(samples[i]), p});
        augment(options_.pipelines[p], {out, channels, images.size(2), images.size(3)}, rng,
                scratch);
      }
      normalise(normalisation_, numel, channels, out);
    }
    batch.views.push_back(std::move(view));
  }
  return batch;
}

}  // namespace weightsmith
