#include "weightsmith/data/image_files.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "weightsmith/core/error.h"
#include "weightsmith/data/image_file.h"

namespace weightsmith {

ImageFiles::ImageFiles(std::vector<std::filesystem::path> files, formats::Squaring squaring,
                       at::Tensor kept)
    : order_(files.size()) {
  WS_CHECK(kept.dim() == 4 && kept.scalar_type() == at::kByte && kept.is_contiguous() &&
           kept.size(0) <= static_cast<std::int64_t>(files.size()));
  std::iota(order_.begin(), order_.end(), std::int64_t{0});
  store_ = std::make_shared<const Store>(Store{std::move(files), squaring, std::move(kept)});
}

std::vector<std::int64_t> ImageFiles::shape() const { return store_->kept.sizes().slice(1).vec(); }

std::int64_t ImageFiles::bytes_each() const {
  const at::Tensor& kept = store_->kept;
  return kept.size(1) * kept.size(2) * kept.size(3);
}

std::int64_t ImageFiles::kept_bytes() const {
  return bytes_each() *
         std::count_if(order_.begin(), order_.end(), [this](auto n) { return is_kept(n); });
}

void ImageFiles::read(std::int64_t index, std::uint8_t* out) const {
  const std::int64_t number = order_.at(static_cast<std::size_t>(index));
  at::Tensor image;
  if (is_kept(number)) {
    image = store_->kept[number];
  } else {
    const std::filesystem::path& path = store_->files[static_cast<std::size_t>(number)];
    image = store_->squaring.apply(read_image(path).unsqueeze(0), path.string())[0];
    if (image.sizes() != store_->kept.sizes().slice(1))
      throw Error(ErrorKind::kInput, path.string(),
                  fmt::format("is {} × {}, but was {} × {} when the run began", image.size(1),
                              image.size(2), store_->kept.size(2), store_->kept.size(3)),
                  "leave images as they are while they are in use");
  }
  std::copy_n(image.data_ptr<std::uint8_t>(), image.numel(), out);
}

ImageFiles ImageFiles::subset(const std::vector<std::int64_t>& indices) const {
  ImageFiles chosen = *this;
  chosen.order_.clear();
  for (const std::int64_t index : indices)
    chosen.order_.push_back(order_.at(static_cast<std::size_t>(index)));
  return chosen;
}

}  // namespace weightsmith
