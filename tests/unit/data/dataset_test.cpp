#include "weightsmith/data/dataset.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>
#include <zlib.h>

#include <catch2/catch.hpp>
#include <fstream>
#include <map>

#include "support/expect_error.h"
#include "support/temporary_folder.h"
#include "weightsmith/data/shipped_data.h"
#include "weightsmith/tensor/safetensors.h"

namespace weightsmith {
namespace {

using testing::error_of;
using testing::TemporaryFolder;
using Format = DataConfig::Format;
using Split = DataConfig::Split;

void write_bytes(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

/// Record i of a CIFAR-10 file: label i mod 10, pixels (i + position) mod 256.
std::string cifar_records(int begin, int count) {
  std::string bytes;
  for (int i = begin; i < begin + count; ++i) {
    bytes += static_cast<char>(i % 10);
    for (int p = 0; p < 3072; ++p) bytes += static_cast<char>((i + p) % 256);
  }
  return bytes;
}

void write_cifar(const std::filesystem::path& folder) {
  for (int b = 0; b < 5; ++b)
    write_bytes(folder / fmt::format("data_batch_{}.bin", b + 1), cifar_records(b * 4, 4));
  write_bytes(folder / "test_batch.bin", cifar_records(100, 6));
}

/// Record i of a CIFAR-100 file: coarse label i mod 20, fine label 99 − i, pixels as above.
std::string cifar100_records(int begin, int count) {
  std::string bytes;
  for (int i = begin; i < begin + count; ++i) {
    bytes += static_cast<char>(i % 20);
    bytes += static_cast<char>(99 - i);
    for (int p = 0; p < 3072; ++p) bytes += static_cast<char>((i + p) % 256);
  }
  return bytes;
}

std::string idx(std::initializer_list<int> sizes, const std::string& data) {
  std::string bytes{0, 0, 8, static_cast<char>(sizes.size())};
  for (const int size : sizes)
    bytes += {0, 0, static_cast<char>(size >> 8), static_cast<char>(size)};
  return bytes + data;
}

DataConfig config_of(Format format, const std::filesystem::path& path, Split split = Split::kAll) {
  DataConfig config;
  config.format = format;
  config.path = path;
  config.split = split;
  return config;
}

std::string input_error(const DataConfig& config) {
  return error_of(ErrorKind::kInput, [&] { load_dataset(config); });
}

TEST_CASE("cifar10 reads its batches in order", "[data]") {
  TemporaryFolder folder;
  write_cifar(folder.path());
  const Dataset train = load_dataset(config_of(Format::kCifar10, folder.path(), Split::kTrain));
  CHECK(train.images.sizes() == at::IntArrayRef({20, 3, 32, 32}));
  CHECK(train.classes == 10);
  for (int i = 0; i < 20; ++i) {
    CHECK(train.labels[i].item<int>() == i % 10);
    CHECK(train.images[i].flatten()[2049].item<int>() == (i + 2049) % 256);
  }
  CHECK(load_dataset(config_of(Format::kCifar10, folder.path(), Split::kTest)).size() == 6);
  CHECK(load_dataset(config_of(Format::kCifar10, folder.path())).size() == 26);
  CHECK(load_dataset(config_of(Format::kCifar10, folder.path(), Split::kTest))
            .labels[1]
            .item<int>() == 1);
}

TEST_CASE("cifar10 names a file that is missing, cut short or foreign", "[data]") {
  TemporaryFolder folder;
  write_cifar(folder.path());
  const auto config = config_of(Format::kCifar10, folder.path(), Split::kTrain);
  write_bytes(folder / "data_batch_3.bin", cifar_records(0, 2).substr(0, 5000));
  CHECK_THAT(input_error(config), Catch::Contains("data_batch_3.bin") &&
                                      Catch::Contains("5000 bytes") && Catch::Contains("3073"));
  write_bytes(folder / "data_batch_3.bin", std::string(3073, '\x7f'));
  CHECK_THAT(input_error(config), Catch::Contains("data_batch_3.bin") && Catch::Contains("127"));
  std::filesystem::remove(folder / "data_batch_3.bin");
  CHECK_THAT(input_error(config), Catch::Contains("data_batch_3.bin"));
  CHECK_THAT(input_error(config_of(Format::kCifar10, folder / "nowhere")),
             Catch::Contains("nowhere"));
}

TEST_CASE("cifar100 reads fine labels or coarse ones, from its folder or the one around it",
          "[data]") {
  TemporaryFolder folder;
  const auto inner = folder / "cifar-100-binary";
  std::filesystem::create_directory(inner);
  write_bytes(inner / "train.bin", cifar100_records(30, 7));
  write_bytes(inner / "test.bin", cifar100_records(0, 3));
  for (const auto& path : {folder.path(), inner}) {
    DataConfig config = config_of(Format::kCifar100, path, Split::kTrain);
    for (const char* labels : {"", "fine", "coarse"}) {
      config.labels = labels;
      const bool is_coarse = config.labels == "coarse";
      const Dataset train = load_dataset(config);
      CHECK(train.classes == (is_coarse ? 20 : 100));
      CHECK(train.images.sizes() == at::IntArrayRef({7, 3, 32, 32}));
      for (int i = 0; i < 7; ++i) {
        CHECK(train.labels[i].item<int>() == (is_coarse ? 10 + i : 69 - i));
        for (const int p : {0, 2049, 3071})
          CHECK(train.images[i].flatten()[p].item<int>() == (30 + i + p) % 256);
      }
      CHECK(train.files == std::vector{inner / "train.bin"});
    }
  }
  const Dataset test = load_dataset(config_of(Format::kCifar100, folder.path(), Split::kTest));
  CHECK(test.labels.equal(at::tensor({99, 98, 97}, at::kLong)));
  CHECK(test.classes == 100);  // whatever occurs
  const Dataset all = load_dataset(config_of(Format::kCifar100, folder.path()));
  CHECK(all.size() == 10);
  CHECK(all.labels[7].item<int>() == 99);
}

TEST_CASE("cifar100 names a file that is missing, cut short or foreign", "[data]") {
  TemporaryFolder folder;
  const auto file = folder / "test.bin";
  const auto config = config_of(Format::kCifar100, folder.path(), Split::kTest);
  CHECK_THAT(input_error(config), Catch::Contains(file.string()) && Catch::Contains("cannot read"));
  write_bytes(file, "");
  CHECK_THAT(input_error(config), Catch::Contains(file.string()) && Catch::Contains("0 bytes"));
  write_bytes(file, cifar100_records(0, 2).substr(0, 5000));
  CHECK_THAT(input_error(config), Catch::Contains(file.string()) && Catch::Contains("5000 bytes") &&
                                      Catch::Contains("multiple of 3074") &&
                                      Catch::Contains("30740000") &&
                                      Catch::Contains("cifar-100-binary.tar.gz"));
  std::string damaged = cifar100_records(0, 2);
  damaged[3074] = 20;  // a label that is not asked for is looked at as well
  write_bytes(file, damaged);
  CHECK_THAT(input_error(config), Catch::Contains(file.string()) &&
                                      Catch::Contains("record 1 has coarse label 20") &&
                                      Catch::Contains("0 to 19"));
  damaged[3074] = 19;
  damaged[3075] = 100;
  write_bytes(file, damaged);
  CHECK_THAT(input_error(config), Catch::Contains("record 1 has fine label 100") &&
                                      Catch::Contains("0 to 99") && Catch::Contains("CIFAR-100"));
  damaged[3075] = 99;
  write_bytes(file, damaged);
  CHECK(load_dataset(config).labels.equal(at::tensor({99, 99}, at::kLong)));
}

TEST_CASE("classes select, relabel numbers by position, limits nest", "[data]") {
  TemporaryFolder folder;
  write_cifar(folder.path());
  DataConfig config = config_of(Format::kCifar10, folder.path(), Split::kTrain);
  config.classes = {7, 3};
  const Dataset two = load_dataset(config);
  CHECK(two.labels.equal(at::tensor({3, 7, 3, 7}, at::kLong)));
  CHECK(two.classes == 10);
  config.relabel = true;
  const Dataset anew = load_dataset(config);
  CHECK(anew.labels.equal(at::tensor({1, 0, 1, 0}, at::kLong)));
  CHECK(anew.classes == 2);

  config = config_of(Format::kCifar10, folder.path());
  config.limit = 12;
  const Dataset twelve = load_dataset(config);
  config.limit = 5;
  const Dataset five = load_dataset(config);
  CHECK(five.images.equal(twelve.images.slice(0, 0, 5)));
  CHECK(five.labels.equal(twelve.labels.slice(0, 0, 5)));
  config.subset_seed = 1;
  CHECK_FALSE(load_dataset(config).images.equal(five.images));
  config.limit = 1000;
  CHECK(load_dataset(config).size() == 26);

  config = config_of(Format::kCifar10, folder.path(), Split::kTest);
  config.classes = {2, 9};
  CHECK_THAT(input_error(config), Catch::Contains("class 9 has no sample"));
  config.classes = {10};
  CHECK_THAT(input_error(config), Catch::Contains("class 10"));
}

TEST_CASE("idx reads plain and gzipped files under both spellings", "[data]") {
  TemporaryFolder folder;
  std::string pixels;
  for (int i = 0; i < 3 * 2 * 4; ++i) pixels += static_cast<char>(i);
  write_bytes(folder / "train-images-idx3-ubyte", idx({3, 2, 4}, pixels));
  const std::string labels = idx({3}, std::string{2, 0, 5});
  gzFile gz = gzopen((folder / "train-labels.idx1-ubyte.gz").c_str(), "wb");
  gzwrite(gz, labels.data(), static_cast<unsigned>(labels.size()));
  gzclose(gz);
  const Dataset set = load_dataset(config_of(Format::kIdx, folder.path(), Split::kTrain));
  CHECK(set.images.equal(at::arange(24, at::kByte).view({3, 1, 2, 4})));
  CHECK(set.labels.equal(at::tensor({2, 0, 5}, at::kLong)));
  CHECK(set.classes == 6);

  DataConfig named = config_of(Format::kIdx, folder.path());
  named.images = "train-images-idx3-ubyte";
  named.labels = "train-labels.idx1-ubyte.gz";
  CHECK(load_dataset(named).images.equal(set.images));
  std::swap(named.images, named.labels);
  CHECK_THAT(input_error(named), Catch::Contains("swapped"));
  CHECK_THAT(input_error(config_of(Format::kIdx, folder.path(), Split::kTest)),
             Catch::Contains("t10k-images-idx3-ubyte"));
}

TEST_CASE("idx names a damaged file", "[data]") {
  TemporaryFolder folder;
  const std::string images = idx({2, 2, 2}, "abcdefgh");
  write_bytes(folder / "i", images);
  write_bytes(folder / "l", idx({2}, "ab"));
  DataConfig config = config_of(Format::kIdx, folder.path());
  config.images = "i";
  config.labels = "l";
  CHECK(load_dataset(config).size() == 2);
  for (std::size_t size = 0; size < images.size(); ++size) {
    write_bytes(folder / "i", images.substr(0, size));
    CHECK_THAT(input_error(config), Catch::Contains((folder / "i").string()));
  }
  write_bytes(folder / "i", images + "x");
  CHECK_THAT(input_error(config), Catch::Contains("25 bytes, expected 24"));
  write_bytes(folder / "i", idx({3, 2, 2}, "abcdefghijkl"));
  CHECK_THAT(input_error(config), Catch::Contains("2 labels for the 3 images"));
  std::string huge = images;
  huge[4] = huge[8] = huge[12] = '\x7f';
  write_bytes(folder / "i", huge);
  CHECK_THAT(input_error(config), Catch::Contains("expected"));

  gzFile gz = gzopen((folder / "whole.gz").c_str(), "wb");
  gzwrite(gz, images.data(), static_cast<unsigned>(images.size()));
  gzclose(gz);
  std::ifstream in(folder / "whole.gz", std::ios::binary);
  const std::string packed{std::istreambuf_iterator<char>(in), {}};
  write_bytes(folder / "i", packed.substr(0, packed.size() - 6));
  CHECK_THAT(input_error(config), Catch::Contains((folder / "i").string()));
}

TEST_CASE("tensors are taken as they are", "[data]") {
  TemporaryFolder folder;
  const auto path = folder / "set.safetensors";
  const at::Tensor images = at::arange(12, at::kFloat).view({3, 4});
  const at::Tensor labels = at::tensor({1, 0, 2}, at::kLong);
  write_safetensors(path, {{"images", images}, {"labels", labels}}, {{"classes", "7"}});
  const Dataset set = load_dataset(config_of(Format::kTensors, path));
  CHECK(set.images.equal(images));
  CHECK(set.classes == 7);
  CHECK(normalised_batch(set, 1, 2).equal(images.slice(0, 1, 3)));

  write_safetensors(path, {{"images", images}}, {});
  CHECK_THAT(input_error(config_of(Format::kTensors, path)),
             Catch::Contains("no tensor \"labels\""));
  write_safetensors(path, {{"images", images.to(at::kDouble)}, {"labels", labels}}, {});
  CHECK_THAT(input_error(config_of(Format::kTensors, path)), Catch::Contains("float32"));
  write_safetensors(path, {{"images", images}, {"labels", labels.slice(0, 0, 2)}}, {});
  CHECK_THAT(input_error(config_of(Format::kTensors, path)),
             Catch::Contains("3 images but 2 labels"));
  write_safetensors(path, {{"images", images}, {"labels", labels}}, {{"classes", "2"}});
  CHECK_THAT(input_error(config_of(Format::kTensors, path)), Catch::Contains("at least 3"));
}

TEST_CASE("a tensor of images that holds NaN or infinity names the file and the sample", "[data]") {
  TemporaryFolder folder;
  const auto path = folder / "set.safetensors";
  const DataConfig config = config_of(Format::kTensors, path);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity}) {
    // Large enough for several threads and vectors.
    at::Tensor images = at::ones({300, 3, 16, 16});
    images[217][2][7][5] = bad;
    images[260][0][0][0] = bad;
    write_safetensors(path, {{"images", images}, {"labels", at::zeros({300}, at::kLong)}}, {});
    CHECK_THAT(input_error(config),
               Catch::Contains(path.string()) && Catch::Contains("sample 217 (from 0)"));
  }
  // The largest finite value is one.
  const at::Tensor large = at::full({2, 3}, std::numeric_limits<float>::max());
  write_safetensors(path, {{"images", large}, {"labels", at::zeros({2}, at::kLong)}}, {});
  CHECK(load_dataset(config).images.equal(large));
}

TEST_CASE("digits are shipped with a fixed, stratified split", "[data]") {
  const Dataset train = load_dataset(config_of(Format::kDigits, {}, Split::kTrain));
  const Dataset test = load_dataset(config_of(Format::kDigits, {}, Split::kTest));
  const Dataset all = load_dataset(config_of(Format::kDigits, {}));
  CHECK(train.images.sizes() == at::IntArrayRef({1257, 1, 8, 8}));
  CHECK(test.images.sizes() == at::IntArrayRef({540, 1, 8, 8}));
  CHECK(at::cat({train.images, test.images}).equal(all.images));
  CHECK(all.images.max().item<int>() == 255);
  for (int c = 0; c < 10; ++c) {
    CHECK(std::abs((train.labels == c).sum().item<int>() - 125) <= 4);
    CHECK(std::abs((test.labels == c).sum().item<int>() - 54) <= 2);
  }
  // All values are round(p * 255 / 16) for p in 0..16.
  std::map<int, int> values;
  const auto* pixels = all.images.data_ptr<std::uint8_t>();
  for (std::int64_t i = 0; i < all.images.numel(); ++i) ++values[pixels[i]];
  CHECK(values.size() == 17);

  ::setenv("WEIGHTSMITH_DATA_DIR", "/nowhere", 1);
  const std::string error = input_error(config_of(Format::kDigits, {}));
  ::unsetenv("WEIGHTSMITH_DATA_DIR");
  CHECK_THAT(error, Catch::Contains("/nowhere/digits") && Catch::Contains("WEIGHTSMITH_DATA_DIR"));
}

TEST_CASE("normalisation scales bytes to [0, 1] and applies mean and std by channel", "[data]") {
  TemporaryFolder folder;
  write_cifar(folder.path());
  DataConfig config = config_of(Format::kCifar10, folder.path(), Split::kTest);
  const Dataset plain = load_dataset(config);
  CHECK(at::allclose(normalised_batch(plain, 0, 6), plain.images.to(at::kFloat) / 255, 1e-6, 1e-7));
  config.mean = {0.4914, 0.4822, 0.4465};
  config.std = {0.5};
  const at::Tensor expected =
      (plain.images.to(at::kFloat) / 255 - at::tensor(config.mean, at::kFloat).view({1, 3, 1, 1})) /
      0.5;
  CHECK(at::allclose(normalised_batch(load_dataset(config), 2, 3), expected.slice(0, 2, 5), 1e-5,
                     1e-6));
  config.mean = {0.1, 0.2};
  CHECK_THAT(input_error(config), Catch::Contains("2 channels, but the images have 3"));
}

TEST_CASE("resize makes squares; halving averages neighbourhoods", "[data]") {
  DataConfig config = config_of(Format::kDigits, {}, Split::kTest);
  const Dataset plain = load_dataset(config);
  config.resize = 16;
  const Dataset large = load_dataset(config);
  CHECK(large.images.sizes() == at::IntArrayRef({540, 1, 16, 16}));
  CHECK(large.images.scalar_type() == at::kByte);
  config.resize = 8;
  CHECK(load_dataset(config).images.equal(plain.images));
  config.resize = 4;
  const double kept = load_dataset(config).images.to(at::kDouble).mean().item<double>();
  CHECK(kept == Approx(plain.images.to(at::kDouble).mean().item<double>()).epsilon(0.1));
}

TEST_CASE("a subset keeps order and label space", "[data]") {
  const Dataset all = load_dataset(config_of(Format::kDigits, {}));
  const Dataset some = subset(all, {5, 2});
  CHECK(some.labels.equal(all.labels.index_select(0, at::tensor({5, 2}, at::kLong))));
  CHECK(some.images[1].equal(all.images[2]));
  CHECK(some.classes == 10);
}

}  // namespace
}  // namespace weightsmith
