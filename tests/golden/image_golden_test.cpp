// JPEG and PNG files of every kind, and folders of them (scripts/image_goldens.py).

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "support/expect_error.h"
#include "support/files.h"
#include "support/golden.h"
#include "support/temporary_folder.h"
#include "weightsmith/core/atomic_file.h"
#include "weightsmith/data/dataset.h"
#include "weightsmith/data/image_file.h"

namespace weightsmith {
namespace {

namespace fs = std::filesystem;
using testing::error_of;
using testing::golden;
using testing::read_bytes;
using testing::write_bytes;

/// FOLDER/SPLIT/CLASS with copies of golden files.
void fill_class(const fs::path& folder, const std::vector<std::string>& files) {
  fs::create_directories(folder);
  for (const std::string& file : files) fs::copy_file(golden("images/" + file), folder / file);
}

DataConfig folder_config(const fs::path& path) {
  DataConfig config;
  config.format = DataConfig::Format::kFolder;
  config.path = path;
  return config;
}

TEST_CASE("images hold the pixels that Pillow reads", "[golden]") {
  const auto pixels = nlohmann::json::parse(read_text(golden("images/pixels.json")))["pixels"];
  CHECK(pixels.size() == 10);
  for (const auto& [name, planes] : pixels.items()) {
    INFO(name);
    CHECK(is_image_name(name));
    const at::Tensor ours = read_image(golden("images/" + name));
    const std::vector<std::int64_t> shape = name == "small.png"
                                                ? std::vector<std::int64_t>{3, 5, 5}
                                                : std::vector<std::int64_t>{3, 12, 17};
    REQUIRE(ours.sizes() == at::IntArrayRef(shape));
    std::vector<std::int64_t> values;
    for (const auto& plane : planes)
      for (const auto& row : plane)
        for (const auto& value : row) values.push_back(value);
    const at::Tensor theirs = at::tensor(values).view(shape);
    const auto most = (ours.to(at::kLong) - theirs).abs().max().item<std::int64_t>();
    // Decoders may round the cosine transform in other ways; PNG loses nothing.
    CHECK(most <= (name.ends_with(".png") ? 0 : 2));
  }
}

TEST_CASE("damaged images are errors that name the file, wherever they are cut", "[golden]") {
  const testing::TemporaryFolder folder;
  for (const char* name : {"rgb.png", "rgb.jpg", "progressive.JPG"}) {
    const std::string whole = read_bytes(golden(std::string("images/") + name));
    for (const double share : {0.0, 0.02, 0.3, 0.7, 0.95}) {
      INFO(name << " " << share);
      const auto length = static_cast<std::size_t>(share * static_cast<double>(whole.size()));
      write_bytes(folder / name, whole.substr(0, length));
      CHECK_THAT(error_of(ErrorKind::kInput, [&] { read_image(folder / name); }),
                 Catch::Contains(name));
    }
  }
  write_bytes(folder / "text.png", "not an image");
  CHECK_THAT(error_of(ErrorKind::kInput, [&] { read_image(folder / "text.png"); }),
             Catch::Contains("neither JPEG nor PNG"));
  std::string flipped = read_bytes(golden("images/rgb.png"));
  flipped[flipped.size() - 30] = static_cast<char>(flipped[flipped.size() - 30] ^ 0x10);
  write_bytes(folder / "flipped.png", flipped);
  CHECK_THAT(error_of(ErrorKind::kInput, [&] { read_image(folder / "flipped.png"); }),
             Catch::Contains("flipped.png"));
}

TEST_CASE("subfolders are classes in the order of their names", "[golden]") {
  const testing::TemporaryFolder folder;
  fill_class(folder / "train" / "b_cat", {"rgb.jpg", "grey.png"});
  fill_class(folder / "train" / "a_dog" / "deeper", {"palette.png"});
  fill_class(folder / "val" / "a_dog", {"rgb.png"});
  write_bytes(folder / "train" / "b_cat" / "notes.txt", "no image");
  DataConfig config = folder_config(folder.path());
  config.split = DataConfig::Split::kTrain;
  const Dataset train = load_dataset(config);
  CHECK(train.classes == 2);
  CHECK(train.labels.equal(at::tensor({0, 1, 1}, at::kLong)));
  CHECK(train.images.sizes() == at::IntArrayRef({3, 3, 12, 17}));
  CHECK(train.images[0].equal(read_image(golden("images/palette.png"))));
  CHECK(train.images[1].equal(read_image(golden("images/grey.png"))));  // g before r
  CHECK(train.files.size() == 3);
  CHECK(skipped_warning(train).empty());
  config.split = DataConfig::Split::kTest;
  CHECK(load_dataset(config).images[0].equal(read_image(golden("images/rgb.png"))));

  config.split = DataConfig::Split::kTrain;
  config.classes = {1};
  config.relabel = true;
  const Dataset cats = load_dataset(config);
  CHECK(cats.labels.equal(at::tensor({0, 0}, at::kLong)));
  CHECK(cats.files.size() == 2);  // of the other class nothing is read
}

TEST_CASE("images are resized whole, or to a shorter side with the centre cut out", "[golden]") {
  const testing::TemporaryFolder folder;
  fill_class(folder / "c", {"rgb.png"});
  const at::Tensor image = read_image(golden("images/rgb.png")).unsqueeze(0).to(at::kFloat);
  const auto byte = [](const at::Tensor& t) { return t.round().clamp(0, 255).to(at::kByte); };
  DataConfig config = folder_config(folder.path());
  config.resize = 9;
  CHECK(load_dataset(config).images.equal(byte(at::_upsample_bilinear2d_aa(image, {9, 9}, false))));
  config.crop = 6;
  // 12 × 17 becomes 9 × 12; the margins are 1 and 3.
  CHECK(load_dataset(config).images.equal(
      byte(at::_upsample_bilinear2d_aa(image, {9, 12}, false)).slice(2, 1, 7).slice(3, 3, 9)));
  config.resize.reset();
  config.crop = 13;
  CHECK_THAT(error_of(ErrorKind::kInput, [&] { load_dataset(config); }),
             Catch::Contains("rgb.png") && Catch::Contains("12 × 17"));
}

TEST_CASE("a folder with a damaged or odd image is refused, or read without it", "[golden]") {
  const testing::TemporaryFolder folder;
  fill_class(folder / "a", {"rgb.png", "grey.png"});
  fill_class(folder / "b", {"palette.png"});
  const std::string whole = read_bytes(golden("images/rgb.jpg"));
  write_bytes(folder / "b" / "cut.jpg", whole.substr(0, whole.size() / 2));
  DataConfig config = folder_config(folder.path());
  CHECK_THAT(error_of(ErrorKind::kInput, [&] { load_dataset(config); }),
             Catch::Contains("cut.jpg") && Catch::Contains("on_error"));
  config.on_error = DataConfig::OnError::kSkip;
  const Dataset rest = load_dataset(config);
  CHECK(rest.labels.equal(at::tensor({0, 0, 1}, at::kLong)));
  REQUIRE(rest.skipped.size() == 1);
  CHECK_THAT(skipped_warning(rest), Catch::Contains("1 of 4 images") && Catch::Contains("cut.jpg"));
  config.classes = {1};
  config.relabel = true;
  CHECK(load_dataset(config).labels.equal(at::tensor({0}, at::kLong)));
  fs::remove(folder / "b" / "palette.png");
  CHECK_THAT(error_of(ErrorKind::kInput, [&] { load_dataset(config); }),
             Catch::Contains("none of 1 images"));

  const testing::TemporaryFolder sizes;
  fill_class(sizes / "a", {"rgb.png"});
  fs::copy_file(golden("images/small.png"), sizes / "a" / "small.png");
  CHECK_THAT(error_of(ErrorKind::kInput, [&] { load_dataset(folder_config(sizes.path())); }),
             Catch::Contains("small.png") && Catch::Contains("set `resize`"));
  const testing::TemporaryFolder empty;
  CHECK_THAT(error_of(ErrorKind::kInput, [&] { load_dataset(folder_config(empty.path())); }),
             Catch::Contains("no subfolder"));
  CHECK_THAT(error_of(ErrorKind::kInput, [&] { load_dataset(folder_config(empty / "none")); }),
             Catch::Contains("is not a folder"));
}

}  // namespace
}  // namespace weightsmith
