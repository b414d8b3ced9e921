#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "weightsmith/core/run_record.h"
#include "weightsmith/data/data_config.h"
#include "weightsmith/data/image_files.h"

namespace weightsmith {

class Progress;

/// A labelled data set, on the CPU: its samples in memory, or in files that are decoded where they
/// are used. stored_batch(), normalised_batch() and the Loader read either.
struct Dataset {
  at::Tensor images;  ///< (N, C, H, W) uint8 or float32; tensors may be (N, ...)
  /// In place of `images`, where they do not fit into the configured memory.
  std::shared_ptr<const ImageFiles> on_demand = nullptr;
  at::Tensor labels;              ///< (N) int64, each in [0, classes)
  std::int64_t classes = 0;       ///< of the whole label space, whatever was selected
  std::vector<double> mean, std;  ///< of the normalisation: one a channel, one for all, or empty
  std::string where;              ///< names the set in errors
  std::vector<std::filesystem::path> files;           ///< that it was read from
  std::optional<FileListing> listing = std::nullopt;  ///< of `files`, where they are a folder's
  /// With `on_error` skip: errors of the images that were left out.
  std::vector<std::string> skipped = {};

  std::int64_t size() const { return labels.size(0); }
  /// Of one sample: (C, H, W), or what tensors have.
  std::vector<std::int64_t> sample_shape() const;
  at::ScalarType dtype() const;
  /// What its samples take in memory.
  std::int64_t memory_bytes() const;
  /// What it was read from, for the run record: `listing`, else `files`.
  RunInputs inputs() const;
};

/// Reads what `config` names: the split, of it the classes, of those the first `limit` of a shuffle
/// seeded by `subset_seed` (in that order; without a limit the file's order), resized bilinearly
/// with anti-aliasing: to a square of side `resize`, or with `crop` so that the shorter side is
/// `resize`; then the central square of side `crop` is cut out.
///
/// - cifar10: records of 3,073 bytes, any number a file (10,000 officially).
/// - cifar100: records of 3,074 bytes, any number a file (50,000 and 10,000 officially).
/// - idx: `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and `t10k-…` for the test part, also
///   with a dot for the second dash, also gzipped. Label space: the largest label + 1.
/// - tensors: `images` (N, ...) uint8 or finite float32, `labels` (N) int64; label space: the
///   metadata's `classes`, else the largest label + 1.
/// - folder: JPEG and PNG files (data/image_file.h) anywhere below one subfolder a class, classes
/// in
///   the order of their names; train is the subfolder `train`, test is `test`, else `val`. Only the
///   images selected are read, by as many threads as LibTorch has. With `on_error` skip those that
///   cannot be read are left out. All are decoded once, to check them; where they take more than
///   `cache_gb`, the first so many are kept and the others decoded again at each use.
/// - digits: 1,257 training and 540 test images of 8 × 8 (data/digits/ATTRIBUTION.md).
///
/// Throws Error{kConfig} when `config` contradicts itself, and Error{kInput} naming the file: one
/// that is missing, has the wrong size (bytes seen and wanted), is not of the format or has no
/// labels; a sample of it (also one that is not selected) that is not finite, by its number in the
/// file; a selected class without a sample; images of different sizes without `resize` or `crop`;
/// a crop larger than the image; mean or std for another number of channels.
/// `progress` is told of images read.
Dataset load_dataset(const DataConfig& config, Progress* progress = nullptr);

/// "2 of 300 images of PATH were left out; the first: …", "" when none were.
std::string skipped_warning(const Dataset& dataset);

/// The samples of `indices`, in that order, with the same label space. O(bytes selected); those
/// decoded on demand share what is kept of them.
Dataset subset(const Dataset& dataset, const std::vector<std::int64_t>& indices);

/// The labels that occur, ascending.
std::vector<std::int64_t> classes_in(const Dataset& dataset);

/// The normalisation of a data set as y = scale[c] · x + offset[c] on the stored values: uint8 is
/// scaled to [0, 1] and float32 taken as it is, then (x − mean) / std.
struct Normalisation {
  std::vector<float> scale, offset;  ///< one a channel, or one for all
};
Normalisation normalisation(const Dataset& dataset);

/// Samples [begin, begin + count) as they are stored: (count, ...) uint8 or float32, shared with
/// the data set where that has them in memory. Those on demand are decoded by as many threads as
/// LibTorch has; throws as ImageFiles::read does.
at::Tensor stored_batch(const Dataset& dataset, std::int64_t begin, std::int64_t count);

/// The same as the network sees them: (count, ...) float32.
at::Tensor normalised_batch(const Dataset& dataset, std::int64_t begin, std::int64_t count);

}  // namespace weightsmith
