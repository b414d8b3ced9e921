#pragma once

#include <ATen/core/Tensor.h>

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "weightsmith/data/augment.h"
#include "weightsmith/data/batch_mixing.h"
#include "weightsmith/data/dataset.h"
#include "weightsmith/data/device_batches.h"

namespace weightsmith {

struct LoaderOptions {
  std::int64_t batch_size = 128;
  std::int64_t seed = 0;
  bool shuffle = true;              ///< anew every epoch
  std::vector<Pipeline> pipelines;  ///< one view of every sample a pipeline; empty: one, unchanged
  bool same_samples = true;         ///< in all views of a batch; else an order a pipeline
  int threads = 1;                  ///< that prepare batches
  std::int64_t prefetch = 4;        ///< batches prepared ahead of the consumer, at most
  /// Where the samples lie and batches are made, by the consumer's thread: the loader's only draw
  /// them. None: the loader's threads make them on the CPU.
  std::optional<at::Device> device = std::nullopt;
};

/// Where in the endless sequence of batches a run is.
struct LoaderPosition {
  std::int64_t epoch = 0;
  std::int64_t batch = 0;  ///< within the epoch
};

/// Tensors lie on the loader's device, where it has one, else on the CPU.
struct Batch {
  LoaderPosition position;
  std::vector<at::Tensor> views;   ///< one a pipeline: (B, ...) float32, normalised
  std::vector<at::Tensor> labels;  ///< one a view: (B) int64
  std::vector<Mixing> mixing;      ///< one a view: what mixup or cutmix mixed into it
};

/// Batches that an epoch over `samples` samples has; see Loader.
std::int64_t batches_per_epoch(std::int64_t samples, std::int64_t batch_size);

/// Shuffled, augmented, normalised batches, prepared by threads of its own, which also decode the
/// samples that a data set has on demand, once for all pipelines that show the same ones. What a
/// batch holds depends on (seed, epoch, sample, pipeline) and, for mixed batches, its number alone:
/// not on the number of threads, nor on where reading began, so a run resumes from a
/// LoaderPosition. On a device the same is drawn, and images are the same, on the CPU to the bit.
///
/// An epoch visits every sample once in every view, in the same order or, without `same_samples`,
/// in one of each pipeline's own. Its last batch may be smaller; one that would hold a single
/// sample is left out, because batch statistics of one sample mean nothing (unless it is the only
/// batch).
class Loader {
 public:
  /// `dataset` must outlive the loader. Throws Error{kConfig} when a pipeline is asked of samples
  /// that are not images (C, H, W), or changes of colour of images that are not bytes of one or
  /// three channels; with a device as DeviceBatches does.
  Loader(const Dataset& dataset, LoaderOptions options, LoaderPosition start = {});
  /// Stops the threads and waits for them.
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  /// The next batch, epoch after epoch without end. Rethrows what went wrong while preparing it.
  Batch next();

  std::int64_t batches_per_epoch() const { return batches_per_epoch_; }

 private:
  struct Slot {
    std::optional<Batch> batch;
    std::optional<DeviceBatches::Plan> plan;  // what a device has to do for the batch
    std::exception_ptr error;
  };

  void work();
  /// Working memory of a thread.
  struct Scratch {
    std::vector<std::uint8_t> decoded;  // a batch
    Image<std::uint8_t> bytes;
    Image<float> values;
  };

  void prepare(std::int64_t number, Scratch& scratch, Slot& slot) const;
  /// The samples of a batch that a pipeline shows.
  std::vector<std::int64_t> samples_at(LoaderPosition position, std::size_t pipeline) const;
  std::vector<std::int64_t> labels_of(const std::vector<std::int64_t>& samples) const;
  /// The random numbers of one view of a sample, and of what mixes a view of a batch.
  Rng sample_stream(LoaderPosition position, std::int64_t sample, std::size_t pipeline) const;
  Rng mixing_stream(LoaderPosition position, std::size_t pipeline) const;
  DeviceBatches::Plan draw(LoaderPosition position) const;
  at::Tensor prepare_view(std::size_t pipeline, LoaderPosition position,
                          const std::vector<std::int64_t>& samples,
                          const std::vector<const void*>& stored, Scratch& scratch) const;
  /// Where the values of the samples are, decoded where need be.
  std::vector<const void*> stored_samples(const std::vector<std::int64_t>& samples,
                                          Scratch& scratch) const;
  /// The sample with these stored values, augmented, into `out`.
  void prepare_image(const Pipeline& pipeline, const void* stored, Rng& rng, Scratch& scratch,
                     float* out) const;
  std::vector<std::int64_t> sample_order(std::int64_t epoch, std::size_t pipeline) const;

  const Dataset& dataset_;
  LoaderOptions options_;
  std::vector<std::int64_t> sample_shape_;
  bool is_bytes_;  // else floats
  Normalisation normalisation_;
  std::int64_t batches_per_epoch_;
  std::optional<DeviceBatches> device_;

  mutable std::mutex order_mutex_;
  mutable std::int64_t order_epoch_ = -1;
  mutable std::vector<std::vector<std::int64_t>> orders_;  // of order_epoch_: one, or a pipeline's

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Slot> slots_;  // batch number n stands in slot n mod prefetch
  std::int64_t claimed_;     // next number a thread takes
  std::int64_t consumed_;    // next number the consumer takes
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace weightsmith
