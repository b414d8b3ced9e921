#include "weightsmith/data/loader.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <span>
#include <utility>

#include "weightsmith/config/enum_names.h"
#include "weightsmith/core/error.h"
#include "weightsmith/core/rng.h"
#include "weightsmith/core/threads.h"
#include "weightsmith/data/random_stream.h"

namespace weightsmith {
namespace {

/// Writes (value · scale + offset) of every channel's `plane` values.
template <class T>
void normalise(const Normalisation& n, const T* values, std::int64_t channels, std::int64_t plane,
               float* out) {
  for (std::int64_t c = 0; c < channels; ++c) {
    const std::size_t k = n.scale.size() == 1 ? 0 : static_cast<std::size_t>(c);
    const float scale = n.scale[k];
    const float offset = n.offset[k];
    for (std::int64_t i = c * plane; i < (c + 1) * plane; ++i)
      out[i] = static_cast<float>(values[i]) * scale + offset;
  }
}

/// Starts an image from a stored sample of a shape (C, H, W).
template <class T>
void set_image(Image<T>& image, const std::vector<std::int64_t>& shape, const void* stored) {
  image.reshape(shape[0], shape[1], shape[2]);
  std::copy_n(static_cast<const T*>(stored), image.numel(), image.data());
}

}  // namespace

std::int64_t batches_per_epoch(std::int64_t samples, std::int64_t batch_size) {
  const std::int64_t full = samples / batch_size;
  const std::int64_t rest = samples % batch_size;
  return full + (rest > 1 || (rest == 1 && full == 0) ? 1 : 0);
}

Loader::Loader(const Dataset& dataset, LoaderOptions options, LoaderPosition start)
    : dataset_(dataset),
      options_(std::move(options)),
      sample_shape_(dataset.sample_shape()),
      is_bytes_(dataset.dtype() == at::kByte),
      normalisation_(normalisation(dataset)) {
  WS_CHECK(options_.batch_size > 0 && options_.threads > 0 && options_.prefetch > 0);
  WS_CHECK(dataset.size() > 0 && dataset.labels.is_contiguous() &&
           (dataset.on_demand || dataset.images.is_contiguous()));
  const std::int64_t channels = sample_shape_.front();
  const bool has_colours = is_bytes_ && (channels == 1 || channels == 3);
  if (options_.pipelines.empty()) options_.pipelines.emplace_back();
  for (const Pipeline& pipeline : options_.pipelines) {
    if (!pipeline.empty() && sample_shape_.size() != 3)
      throw Error(ErrorKind::kConfig, "augmentations",
                  fmt::format("{} holds samples of {} dimensions, not images (C, H, W)",
                              dataset.where, sample_shape_.size()),
                  "leave the pipelines empty");
    for (const Augmentation& a : pipeline)
      if (needs_colour(a) && !has_colours)
        throw Error(
            ErrorKind::kConfig, "augmentations",
            fmt::format("{} changes colours; the images of {} are {} of {} channels",
                        enum_name(a.name), dataset.where, at::toString(dataset.dtype()), channels),
            "it needs uint8 images of 1 or 3 channels");
  }
  if (options_.device) device_.emplace(dataset, *options_.device);
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
  Batch batch = *slot.batch;
  if (slot.plan) {
    lock.unlock();  // nobody else touches the slot until it is consumed
    DeviceBatches::Made made = device_->make(*slot.plan);
    batch.views = std::move(made.views);
    batch.labels = std::move(made.labels);
    batch.mixing = std::move(made.mixing);
    lock.lock();
  }
  slot = {};
  ++consumed_;
  lock.unlock();
  changed_.notify_all();
  return batch;
}

void Loader::work() {
  keep_to_one_thread();  // images on demand are resized by LibTorch
  Scratch scratch;
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stopping_ || claimed_ < consumed_ + options_.prefetch; });
    if (stopping_) return;
    const std::int64_t number = claimed_++;
    lock.unlock();
    Slot result;
    try {
      prepare(number, scratch, result);
    } catch (...) {
      result.error = std::current_exception();
    }
    lock.lock();
    slots_[static_cast<std::size_t>(number % options_.prefetch)] = std::move(result);
    changed_.notify_all();
  }
}

std::vector<std::int64_t> Loader::sample_order(std::int64_t epoch, std::size_t pipeline) const {
  std::vector<std::int64_t> order(static_cast<std::size_t>(dataset_.size()));
  std::iota(order.begin(), order.end(), std::int64_t{0});
  if (!options_.shuffle) return order;
  const auto seed = static_cast<std::uint64_t>(options_.seed);
  const auto of_epoch = static_cast<std::uint64_t>(epoch);
  Rng rng = options_.same_samples ? Rng(seed, {kShuffleStream, of_epoch})
                                  : Rng(seed, {kOwnOrderStream, of_epoch, pipeline});
  return random_permutation(dataset_.size(), rng);
}

std::vector<std::int64_t> Loader::samples_at(LoaderPosition position, std::size_t pipeline) const {
  const std::int64_t begin = position.batch * options_.batch_size;
  const std::int64_t count = std::min(options_.batch_size, dataset_.size() - begin);
  const std::lock_guard lock(order_mutex_);
  if (order_epoch_ != position.epoch) {
    orders_.resize(options_.same_samples ? 1 : options_.pipelines.size());
    for (std::size_t p = 0; p < orders_.size(); ++p) orders_[p] = sample_order(position.epoch, p);
    order_epoch_ = position.epoch;
  }
  const auto first = orders_[options_.same_samples ? 0 : pipeline].begin() + begin;
  return {first, first + count};
}

std::vector<std::int64_t> Loader::labels_of(const std::vector<std::int64_t>& samples) const {
  std::vector<std::int64_t> labels;
  for (const std::int64_t sample : samples)
    labels.push_back(dataset_.labels.data_ptr<std::int64_t>()[sample]);
  return labels;
}

Rng Loader::sample_stream(LoaderPosition position, std::int64_t sample, std::size_t p) const {
  return Rng(static_cast<std::uint64_t>(options_.seed),
             {kAugmentStream, static_cast<std::uint64_t>(position.epoch),
              static_cast<std::uint64_t>(sample), p});
}

Rng Loader::mixing_stream(LoaderPosition position, std::size_t p) const {
  return Rng(static_cast<std::uint64_t>(options_.seed),
             {kMixingStream, static_cast<std::uint64_t>(position.epoch),
              static_cast<std::uint64_t>(position.batch), p});
}

// Plain loops instead of tensor operations: those would start a pool of OpenMP threads in each of
// the loader's own threads.
void Loader::prepare(std::int64_t number, Scratch& scratch, Slot& slot) const {
  Batch& batch = slot.batch.emplace();
  batch.position = {number / batches_per_epoch_, number % batches_per_epoch_};
  if (device_) {
    slot.plan = draw(batch.position);
    return;
  }
  std::vector<std::int64_t> samples;
  std::vector<const void*> stored;
  at::Tensor labels;
  for (std::size_t p = 0; p < options_.pipelines.size(); ++p) {
    if (p == 0 || !options_.same_samples) {
      samples = samples_at(batch.position, p);
      stored = stored_samples(samples, scratch);
      const std::vector<std::int64_t> values = labels_of(samples);
      labels = at::empty({static_cast<std::int64_t>(values.size())}, at::kLong);
      std::copy(values.begin(), values.end(), labels.data_ptr<std::int64_t>());
    }
    batch.labels.push_back(labels);
    batch.views.push_back(prepare_view(p, batch.position, samples, stored, scratch));
    Rng rng = mixing_stream(batch.position, p);
    batch.mixing.push_back(mix_batch(options_.pipelines[p], batch.views.back(), labels, rng));
  }
}

DeviceBatches::Plan Loader::draw(LoaderPosition position) const {
  std::vector<DeviceBatches::Shown> shown;
  std::vector<DeviceBatches::Streams> streams;
  for (std::size_t p = 0; p < options_.pipelines.size(); ++p) {
    if (p == 0 || !options_.same_samples) {
      const std::vector<std::int64_t> samples = samples_at(position, p);
      shown.push_back({samples, labels_of(samples)});
    }
    DeviceBatches::Streams& own =
        streams.emplace_back(DeviceBatches::Streams{{}, mixing_stream(position, p)});
    for (const std::int64_t sample : shown.back().samples)
      own.samples.push_back(sample_stream(position, sample, p));
  }
  return device_->draw(options_.pipelines, shown, std::move(streams));
}

std::vector<const void*> Loader::stored_samples(const std::vector<std::int64_t>& samples,
                                                Scratch& scratch) const {
  std::vector<const void*> stored;
  if (const ImageFiles* files = dataset_.on_demand.get()) {
    const auto bytes = static_cast<std::size_t>(files->bytes_each());
    scratch.decoded.resize(samples.size() * bytes);
    for (const std::int64_t sample : samples) {
      std::uint8_t* place = scratch.decoded.data() + stored.size() * bytes;
      files->read(sample, place);
      stored.push_back(place);
    }
    return stored;
  }
  const auto* values = static_cast<const std::byte*>(dataset_.images.data_ptr());
  const auto bytes = static_cast<std::int64_t>(dataset_.images.nbytes()) / dataset_.size();
  for (const std::int64_t sample : samples) stored.push_back(values + sample * bytes);
  return stored;
}

at::Tensor Loader::prepare_view(std::size_t p, LoaderPosition position,
                                const std::vector<std::int64_t>& samples,
                                const std::vector<const void*>& stored, Scratch& scratch) const {
  const Pipeline& pipeline = options_.pipelines[p];
  std::vector<std::int64_t> shape = sample_shape_;
  shape.insert(shape.begin(), static_cast<std::int64_t>(samples.size()));
  if (shape.size() == 4) {
    const auto [height, width] = augmented_size(pipeline, shape[2], shape[3]);
    shape[2] = height;
    shape[3] = width;
  }
  at::Tensor view = at::empty(shape, at::kFloat);
  const std::int64_t numel = view.numel() / shape[0];
  for (std::size_t i = 0; i < samples.size(); ++i) {
    Rng rng = sample_stream(position, samples[i], p);
    prepare_image(pipeline, stored[i], rng, scratch,
                  view.data_ptr<float>() + static_cast<std::int64_t>(i) * numel);
  }
  return view;
}

void Loader::prepare_image(const Pipeline& pipeline, const void* stored, Rng& rng, Scratch& scratch,
                           float* out) const {
  const std::int64_t channels = sample_shape_.front();
  if (pipeline.empty()) {
    std::int64_t plane = 1;
    for (std::size_t d = 1; d < sample_shape_.size(); ++d) plane *= sample_shape_[d];
    if (is_bytes_) {
      normalise(normalisation_, static_cast<const std::uint8_t*>(stored), channels, plane, out);
    } else {
      normalise(normalisation_, static_cast<const float*>(stored), channels, plane, out);
    }
    return;
  }
  const std::span<const Augmentation> steps(pipeline);
  const std::size_t on_bytes = is_bytes_ ? steps_on_bytes(pipeline) : 0;
  Image<float>& values = scratch.values;
  if (is_bytes_) {
    Image<std::uint8_t>& bytes = scratch.bytes;
    set_image(bytes, sample_shape_, stored);
    augment(steps.first(on_bytes), bytes, rng);
    if (on_bytes == steps.size()) {
      normalise(normalisation_, bytes.data(), channels, bytes.plane(), out);
      return;
    }
    values.reshape(bytes.channels, bytes.height, bytes.width);
    std::copy(bytes.data(), bytes.data() + bytes.numel(), values.data());
  } else {
    set_image(values, sample_shape_, stored);
  }
  augment(steps.subspan(on_bytes), values, rng);
  normalise(normalisation_, values.data(), channels, values.plane(), out);
}

}  // namespace weightsmith
