#include "weightsmith/data/image_file.h"

// libjpeg's header needs these two before it.
#include <cstddef>
#include <cstdio>

#include <jpeglib.h>
// Needs jpeglib.h before it.
#include <jerror.h>
#include <png.h>

#include <ATen/Functions.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <csetjmp>
#include <cstring>
#include <string>
#include <vector>

#include "weightsmith/core/atomic_file.h"
#include "weightsmith/core/error.h"

namespace weightsmith {
namespace {

constexpr std::int64_t kMostPixels = std::int64_t{1} << 28;

/// Rows of interleaved values.
struct Pixels {
  std::int64_t height = 0;
  std::int64_t width = 0;
  std::int64_t channels = 0;
  std::vector<std::uint8_t> values;
};

/// Both libraries leave a failed call by longjmp: everything with a destructor lives outside the
/// functions that call them.
struct Failure {
  std::jmp_buf jump = {};
  char message[JMSG_LENGTH_MAX] = {};
};

// ---- JPEG ----

struct JpegErrors {
  jpeg_error_mgr manager;  // first, so that libjpeg's pointer is ours
  Failure* failure;
};

[[noreturn]] void fail_jpeg(j_common_ptr info) {
  Failure& failure = *reinterpret_cast<JpegErrors*>(info->err)->failure;
  info->err->format_message(info, failure.message);
  std::longjmp(failure.jump, 1);
}

/// A warning means that pixels are made up, but for these three.
void judge_jpeg_message(j_common_ptr info, int level) {
  const int code = info->err->msg_code;
  const bool harmless = level >= 0 || code == JWRN_EXTRANEOUS_DATA || code == JWRN_ADOBE_XFORM ||
                        code == JWRN_JFIF_MAJOR;
  if (!harmless) fail_jpeg(info);
}

bool decode_jpeg(const std::string& bytes, Pixels& pixels, Failure& failure) {
  jpeg_decompress_struct info = {};
  JpegErrors errors = {};
  info.err = jpeg_std_error(&errors.manager);
  errors.manager.error_exit = fail_jpeg;
  errors.manager.emit_message = judge_jpeg_message;
  errors.failure = &failure;
  if (setjmp(failure.jump) != 0) {
    jpeg_destroy_decompress(&info);
    return false;
  }
  jpeg_create_decompress(&info);
  jpeg_mem_src(&info, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
  jpeg_read_header(&info, TRUE);
  // libjpeg turns everything into RGB but inks.
  const bool inks = info.jpeg_color_space == JCS_CMYK || info.jpeg_color_space == JCS_YCCK;
  info.out_color_space = inks ? JCS_CMYK : JCS_RGB;
  const auto count = static_cast<std::int64_t>(info.image_width) * info.image_height;
  if (count > kMostPixels) {
    std::strcpy(failure.message, "too many pixels");
    jpeg_destroy_decompress(&info);
    return false;
  }
  jpeg_start_decompress(&info);
  pixels.height = info.output_height;
  pixels.width = info.output_width;
  pixels.channels = info.output_components;
  pixels.values.resize(count * pixels.channels);
  while (info.output_scanline < info.output_height) {
    JSAMPROW row = pixels.values.data() + info.output_scanline * pixels.width * pixels.channels;
    jpeg_read_scanlines(&info, &row, 1);
  }
  jpeg_finish_decompress(&info);
  jpeg_destroy_decompress(&info);
  return true;
}

// ---- PNG ----

struct PngSource {
  const std::string* bytes;
  std::size_t at;
};

void read_png_bytes(png_structp png, png_bytep to, png_size_t count) {
  auto& source = *static_cast<PngSource*>(png_get_io_ptr(png));
  if (count > source.bytes->size() - source.at) png_error(png, "the file is cut short");
  std::memcpy(to, source.bytes->data() + source.at, count);
  source.at += count;
}

[[noreturn]] void fail_png(png_structp png, png_const_charp message) {
  Failure& failure = *static_cast<Failure*>(png_get_error_ptr(png));
  std::snprintf(failure.message, sizeof failure.message, "%s", message);
  std::longjmp(failure.jump, 1);
}

void ignore_png_warning(png_structp /*png*/, png_const_charp /*message*/) {}

bool decode_png(const std::string& bytes, Pixels& pixels, std::vector<png_bytep>& rows,
                Failure& failure) {
  png_structp png =
      png_create_read_struct(PNG_LIBPNG_VER_STRING, &failure, fail_png, ignore_png_warning);
  png_infop info = png == nullptr ? nullptr : png_create_info_struct(png);
  if (info == nullptr) {
    png_destroy_read_struct(&png, nullptr, nullptr);
    std::strcpy(failure.message, "libpng found no memory");
    return false;
  }
  PngSource source{&bytes, 0};
  if (setjmp(failure.jump) != 0) {
    png_destroy_read_struct(&png, &info, nullptr);
    return false;
  }
  png_set_read_fn(png, &source, read_png_bytes);
  png_read_info(png, info);
  pixels.height = png_get_image_height(png, info);
  pixels.width = png_get_image_width(png, info);
  pixels.channels = 3;
  if (pixels.height * pixels.width > kMostPixels) png_error(png, "too many pixels");
  png_set_expand(png);
  png_set_strip_16(png);
  png_set_gray_to_rgb(png);
  png_set_strip_alpha(png);
  png_set_interlace_handling(png);
  png_read_update_info(png, info);
  if (static_cast<std::int64_t>(png_get_rowbytes(png, info)) != pixels.width * 3)
    png_error(png, "an unknown kind of pixel");
  pixels.values.resize(pixels.height * pixels.width * 3);
  rows.resize(pixels.height);
  for (std::int64_t y = 0; y < pixels.height; ++y)
    rows[y] = pixels.values.data() + y * pixels.width * 3;
  png_read_image(png, rows.data());
  png_read_end(png, nullptr);
  png_destroy_read_struct(&png, &info, nullptr);
  return true;
}

// ---- both ----

/// Adobe's files hold inks inverted: 255 is none.
std::uint8_t without_ink(std::uint8_t light, std::uint8_t black) {
  return static_cast<std::uint8_t>((light * black + 127) / 255);
}

at::Tensor planes_of(const Pixels& pixels) {
  at::Tensor planes = at::empty({3, pixels.height, pixels.width}, at::kByte);
  auto* out = planes.data_ptr<std::uint8_t>();
  const std::int64_t count = pixels.height * pixels.width;
  const std::uint8_t* in = pixels.values.data();
  for (std::int64_t i = 0; i < count; ++i, in += pixels.channels)
    for (std::int64_t c = 0; c < 3; ++c)
      out[c * count + i] = pixels.channels == 4 ? without_ink(in[c], in[3]) : in[c];
  return planes;
}

}  // namespace

bool is_image_name(const std::filesystem::path& path) {
  std::string extension = path.extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return extension == ".jpg" || extension == ".jpeg" || extension == ".png";
}

at::Tensor read_image(const std::filesystem::path& path) {
  const std::string bytes = read_text(path);
  const auto starts = [&](std::string_view magic) {
    return bytes.compare(0, magic.size(), magic) == 0;
  };
  Pixels pixels;
  Failure failure;
  std::vector<png_bytep> rows;
  bool read = false;
  if (starts("\xFF\xD8\xFF")) {
    read = decode_jpeg(bytes, pixels, failure);
  } else if (starts("\x89PNG\r\n\x1A\n")) {
    read = decode_png(bytes, pixels, rows, failure);
  } else {
    std::strcpy(failure.message, bytes.empty() ? "is empty" : "is neither JPEG nor PNG");
  }
  if (!read)
    throw Error(ErrorKind::kInput, path.string(),
                fmt::format("not a sound image: {}", failure.message),
                "replace it, or leave such files out with \"on_error\": \"skip\"");
  return planes_of(pixels);
}

}  // namespace weightsmith
