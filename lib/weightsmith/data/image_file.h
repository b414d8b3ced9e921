#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>

namespace weightsmith {

/// True for names that end in .jpg, .jpeg or .png, in any case.
bool is_image_name(const std::filesystem::path& path);

/// The pixels of a JPEG or PNG file, told apart by their first bytes: (3, H, W) uint8, red, green,
/// blue. Grey values are repeated, palettes looked up, 16 bits cut to 8; transparency is dropped
/// and a note of the camera's orientation ignored, as Pillow's convert("RGB") does. Throws
/// Error{kInput} naming the file when it is neither, damaged, cut short (what libjpeg only warns
/// of), or larger than 2^28 pixels. May be called from several threads.
at::Tensor read_image(const std::filesystem::path& path);

}  // namespace weightsmith
