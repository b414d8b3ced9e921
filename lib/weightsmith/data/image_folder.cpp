#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>

#include "weightsmith/core/error.h"
#include "weightsmith/core/progress.h"
#include "weightsmith/core/stop.h"
#include "weightsmith/data/formats.h"
#include "weightsmith/data/image_file.h"

namespace weightsmith::formats {
namespace fs = std::filesystem;
namespace {

/// Decoded together, between two looks at whether to stop.
constexpr std::int64_t kReadsPerThread = 16;

fs::path folder_of(const fs::path& folder, DataConfig::Split split) {
  if (split == DataConfig::Split::kAll) return folder;
  if (split == DataConfig::Split::kTrain) return folder / "train";
  return fs::is_directory(folder / "test") ? folder / "test" : folder / "val";
}

/// Their names decide, in the order of bytes, so that every machine numbers classes alike.
std::vector<fs::path> sorted(std::vector<fs::path> paths) {
  std::sort(paths.begin(), paths.end(),
            [](const fs::path& a, const fs::path& b) { return a.string() < b.string(); });
  return paths;
}

at::Tensor resized(const at::Tensor& images, std::int64_t height, std::int64_t width) {
  if (images.size(2) == height && images.size(3) == width) return images;
  const at::Tensor floats = at::_upsample_bilinear2d_aa(images.to(at::kFloat), {height, width},
                                                        /*align_corners=*/false);
  if (images.scalar_type() != at::kByte) return floats;
  return floats.round().clamp(0, 255).to(at::kByte);
}

ImageList list_folder_of_classes(const fs::path& folder, DataConfig::Split split) {
  ImageList list;
  list.folder = folder_of(folder, split);
  if (!fs::is_directory(list.folder))
    throw Error(ErrorKind::kInput, list.folder.string(), "is not a folder",
                "it holds one subfolder a class; without a split, name that folder itself");
  std::vector<fs::path> classes;
  for (const auto& entry : fs::directory_iterator(list.folder))
    if (entry.is_directory()) classes.push_back(entry.path());
  classes = sorted(std::move(classes));
  for (const fs::path& path : classes) {
    std::vector<fs::path> files;
    for (const auto& entry : fs::recursive_directory_iterator(path))
      if (entry.is_regular_file() && is_image_name(entry.path())) files.push_back(entry.path());
    files = sorted(std::move(files));
    list.labels.insert(list.labels.end(), files.size(), list.classes++);
    list.files.insert(list.files.end(), files.begin(), files.end());
  }
  if (list.files.empty())
    throw Error(ErrorKind::kInput, list.folder.string(),
                classes.empty() ? "has no subfolder" : "has no .jpg, .jpeg or .png file",
                "it holds one subfolder of images a class");
  return list;
}

}  // namespace

ImageList list_images(const fs::path& folder, DataConfig::Split split) {
  try {
    return list_folder_of_classes(folder, split);
  } catch (const fs::filesystem_error& e) {
    throw Error(ErrorKind::kInput, e.path1().string(), e.code().message(),
                "may this folder be read?");
  }
}

at::Tensor Squaring::apply(const at::Tensor& images, const std::string& where) const {
  at::Tensor result = images;
  if (resize && !crop) result = resized(images, *resize, *resize);
  if (!crop) return result;
  const auto h = images.size(2);
  const auto w = images.size(3);
  if (resize) {
    const double scale = static_cast<double>(*resize) / static_cast<double>(std::min(h, w));
    const auto longer = static_cast<std::int64_t>(scale * static_cast<double>(std::max(h, w)));
    result = h < w ? resized(images, *resize, longer) : resized(images, longer, *resize);
  }
  const std::int64_t top = result.size(2) - *crop;
  const std::int64_t left = result.size(3) - *crop;
  if (top < 0 || left < 0)
    throw Error(ErrorKind::kInput, where,
                fmt::format("a crop of {0} × {0} does not fit in {1} × {2}", *crop, result.size(2),
                            result.size(3)),
                "set `resize`, or a smaller `crop`");
  return result.narrow(2, top / 2, *crop).narrow(3, left / 2, *crop).contiguous();
}

ImageBatch read_images(const ImageList& list, const std::vector<std::int64_t>& indices,
                       const Squaring& squaring, bool skip, double most_bytes, Progress* progress) {
  NoProgress quiet;
  const auto count = static_cast<std::int64_t>(indices.size());
  Phase phase(progress == nullptr ? quiet : *progress, "read images", count, "images");
  const std::int64_t at_a_time = kReadsPerThread * at::get_num_threads();
  ImageBatch batch;
  for (std::int64_t done = 0; done < count; done += at_a_time) {
    stop_here_if_requested();
    const std::int64_t many = std::min(at_a_time, count - done);
    std::vector<at::Tensor> images(static_cast<std::size_t>(many));
    std::vector<std::string> errors(images.size());
    at::parallel_for(0, many, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const fs::path& path = list.files[indices[done + i]];
        try {
          images[i] = squaring.apply(read_image(path).unsqueeze(0), path.string());
        } catch (const Error& e) {
          if (!skip) throw;
          errors[i] = e.what();
        }
      }
    });
    for (std::int64_t i = 0; i < many; ++i) {
      const at::Tensor& image = images[i];
      if (!image.defined()) {
        batch.skipped.push_back(errors[i]);
        continue;
      }
      if (batch.read.empty()) {
        const double fits = most_bytes / static_cast<double>(image.numel());
        const auto most =
            static_cast<std::int64_t>(std::min(static_cast<double>(count), std::max(fits, 0.0)));
        batch.images = at::empty({most, 3, image.size(2), image.size(3)}, at::kByte);
      }
      if (image.sizes().slice(1) != batch.images.sizes().slice(1))
        throw Error(ErrorKind::kInput, list.files[indices[done + i]].string(),
                    fmt::format("is {} × {}, but {} is {} × {}", image.size(2), image.size(3),
                                list.files[batch.read.front()].string(), batch.images.size(2),
                                batch.images.size(3)),
                    "set `resize`, and `crop` to keep proportions");
      const auto place = static_cast<std::int64_t>(batch.read.size());
      if (place < batch.images.size(0)) batch.images[place].copy_(image[0]);
      batch.read.push_back(indices[done + i]);
    }
    phase.update(done + many);
  }
  if (batch.read.empty())
    throw Error(ErrorKind::kInput, list.folder.string(),
                fmt::format("none of {} images could be read; the first: {}", count,
                            batch.skipped.empty() ? "" : batch.skipped.front()),
                "check the files");
  const std::int64_t kept =
      std::min(batch.images.size(0), static_cast<std::int64_t>(batch.read.size()));
  batch.images = batch.images.narrow(0, 0, kept);
  return batch;
}

}  // namespace weightsmith::formats
