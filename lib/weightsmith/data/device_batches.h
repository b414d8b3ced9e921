#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "weightsmith/core/rng.h"
#include "weightsmith/data/augment.h"
#include "weightsmith/data/batch_mixing.h"
#include "weightsmith/data/batch_steps.h"
#include "weightsmith/data/dataset.h"
#include "weightsmith/data/transfer_buffer.h"

namespace weightsmith {

/// Makes augmented batches on a device that holds all samples of a data set, as bytes. What is
/// drawn for a batch is drawn on the CPU and goes over in one transfer.
class DeviceBatches {
 public:
  /// The samples of a view and their labels.
  struct Shown {
    std::vector<std::int64_t> samples, labels;
  };
  /// The random numbers of a view: of each of its samples, and of what mixes them.
  struct Streams {
    std::vector<Rng> samples;
    Rng mixing;
  };
  /// A batch that is drawn and not made yet.
  struct Plan {
    struct View {
      std::optional<BatchSteps> steps;  ///< none: an empty pipeline
      DrawnMixing mixing;
      TransferBuffer::Part partners, partner_labels;
    };
    /// Of all views, or of one each.
    struct Shown {
      TransferBuffer::Part samples, labels;
    };
    at::Tensor numbers;  ///< of all parts, on the CPU
    std::vector<Shown> shown;
    std::vector<View> views;
  };
  struct Made {
    std::vector<at::Tensor> views;   ///< (B, ...) float32, normalised
    std::vector<at::Tensor> labels;  ///< one a view: (B) int64
    std::vector<Mixing> mixing;      ///< one a view
  };

  /// Copies the samples to the device; on the CPU they are shared. Throws Error{kConfig} naming
  /// `augment_on` unless fits_device_batches(), Error{kNumeric} when the device has no room.
  DeviceBatches(const Dataset& dataset, at::Device device);

  /// Draws one view a pipeline, augmented as augment() does and mixed as mix_batch() does: of the
  /// samples `shown`, of which there is one for all views or one a view. Touches nothing on the
  /// device: any thread may call it.
  Plan draw(const std::vector<Pipeline>& pipelines, const std::vector<Shown>& shown,
            std::vector<Streams> streams) const;

  /// Makes a batch, all of it on the device, which is not waited for. Throws Error{kNumeric} when
  /// memory runs out.
  Made make(const Plan& plan) const;

 private:
  at::Tensor make_view(const Plan::View& view, const at::Tensor& samples,
                       const at::Tensor& numbers) const;

  at::Device device_;
  std::string where_;
  std::vector<std::int64_t> sample_shape_;
  at::Tensor samples_;         // (N, ...) uint8
  at::Tensor scale_, offset_;  // of the normalisation, to be broadcast over a batch
};

/// Whether DeviceBatches takes the samples: uint8, in memory.
bool fits_device_batches(const Dataset& dataset);

}  // namespace weightsmith
