#include "weightsmith/tensor/safetensors.h"

#include <torch/types.h>

#include <sys/resource.h>
#include <csignal>
#include <random>

#include "support/expect_error.h"
#include "support/files.h"
#include "support/temporary_folder.h"

using namespace weightsmith;
using weightsmith::testing::expect_error;
using weightsmith::testing::read_bytes;
using weightsmith::testing::TemporaryFolder;
using weightsmith::testing::write_bytes;

namespace {

std::string file_bytes(const std::string& header, const std::string& data) {
  std::uint64_t length = header.size();
  std::string bytes(reinterpret_cast<const char*>(&length), 8);
  return bytes + header + data;
}

const std::vector<at::ScalarType> kAllTypes{at::kDouble, at::kFloat, at::kHalf,  at::kBFloat16,
                                            at::kLong,   at::kInt,   at::kShort, at::kChar,
                                            at::kByte,   at::kBool};

TensorMap sample_tensors() {
  at::manual_seed(0);
  TensorMap tensors;
  for (at::ScalarType type : kAllTypes)
    tensors[std::string("t.") + c10::toString(type)] = (torch::randn({3, 5}) * 3).to(type);
  tensors["scalar"] = torch::tensor(2.5);
  tensors["empty"] = torch::empty({0, 7});
  tensors["strided"] = torch::arange(24).reshape({4, 6}).t().slice(0, 1, 5, 2);
  tensors["a \"quoted\" näme\n"] = torch::ones({1});
  return tensors;
}

void check_equal(const TensorMap& a, const TensorMap& b) {
  REQUIRE(a.size() == b.size());
  for (const auto& [name, tensor] : a) {
    INFO(name);
    REQUIRE(b.count(name) == 1);
    CHECK(b.at(name).scalar_type() == tensor.scalar_type());
    CHECK(at::equal(b.at(name), tensor));
  }
}

}  // namespace

TEST_CASE("safetensors files return what was written", "[safetensors]") {
  TemporaryFolder folder;
  const TensorMap tensors = sample_tensors();
  write_safetensors(folder / "x.safetensors", tensors, {{"format", "pt"}, {"k", "ü"}});
  const SafetensorsFile file = read_safetensors(folder / "x.safetensors");
  check_equal(tensors, file.tensors);
  CHECK(file.metadata == std::map<std::string, std::string>{{"format", "pt"}, {"k", "ü"}});

  const SafetensorsHeader header = read_safetensors_header(folder / "x.safetensors");
  CHECK(header.metadata == file.metadata);
  REQUIRE(header.tensors.size() == tensors.size());
  CHECK(header.tensors.at("strided").shape == std::vector<std::int64_t>{2, 4});
  CHECK(header.tensors.at("strided").dtype == at::kLong);

  SECTION("the header is padded to 8, and writing again gives the same bytes") {
    const std::string bytes = read_bytes(folder / "x.safetensors");
    CHECK(static_cast<unsigned char>(bytes[0]) % 8 == 0);
    write_safetensors(folder / "y.safetensors", tensors, {{"format", "pt"}, {"k", "ü"}});
    CHECK(read_bytes(folder / "y.safetensors") == bytes);
  }
  SECTION("tensors that require gradients, and none at all") {
    write_safetensors(folder / "y.safetensors", {{"w", torch::ones({2}).requires_grad_(true)}});
    CHECK(at::equal(read_safetensors(folder / "y.safetensors").tensors.at("w"), torch::ones({2})));
    write_safetensors(folder / "z.safetensors", {});
    CHECK(read_safetensors(folder / "z.safetensors").tensors.empty());
  }
}

TEST_CASE("a safetensors file made by hand is read as the format says", "[safetensors]") {
  TemporaryFolder folder;
  // Listed in another order than the data lie, header unpadded.
  const auto path = write_bytes(
      folder / "x", file_bytes(R"({"b":{"dtype":"U8","shape":[2],"data_offsets":[4,6]},)"
                               R"("a":{"dtype":"I16","shape":[2,1],"data_offsets":[0,4]}})",
                               std::string("\x01\x00\x00\x80\x07\xff", 6)));
  const TensorMap tensors = read_safetensors(path).tensors;
  CHECK(at::equal(tensors.at("a"), torch::tensor({1, -32768}, torch::kShort).view({2, 1})));
  CHECK(at::equal(tensors.at("b"), torch::tensor({7, 255}, torch::kByte)));
}

TEST_CASE("corrupt safetensors files are refused by name and tensor", "[safetensors]") {
  struct Case {
    const char* header;
    std::size_t data;
    const char* message;
  };
  const std::vector<Case> cases{
      {"[1]", 0, "not a JSON object"},
      {"{", 0, "its header: not JSON"},
      {"{} x", 0, "its header: not JSON"},
      {"\xff\xfe{}", 0, "its header: not JSON"},
      {R"({"w":3})", 0, "\"w\": its header entry is not an object"},
      {R"({"w":{"dtype":"F32","shape":[1]}})", 4, "\"w\": has no \"data_offsets\""},
      {R"({"w":{"dtype":"F32","data_offsets":[0,4]}})", 4, "\"w\": has no \"shape\""},
      {R"({"w":{"shape":[1],"data_offsets":[0,4]}})", 4, "\"w\": has no \"dtype\""},
      {R"({"w":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}})", 4, "F8_E4M3"},
      {R"({"w":{"dtype":4,"shape":[4],"data_offsets":[0,4]}})", 4, "data type 4"},
      {R"({"w":{"dtype":"F32","shape":"x","data_offsets":[0,4]}})", 4, "not a list"},
      {R"({"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4, "not a list of sizes"},
      {R"({"w":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})", 4, "not a list of sizes"},
      {R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", 4, "not a pair"},
      {R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}})", 4, "not a pair"},
      {R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4, "do not span"},
      {R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4, "do not span"},
      {R"({"w":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}})", 0,
       "too large"},
      {R"({"w":{"dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,0]}})", 0,
       "too large"},
      {R"({"w":{"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,0]}})", 0,
       "not a list of sizes"},
      {R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[18446744073709551612,0]}})", 0,
       "do not span"},
      {R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 3, "truncated"},
      {R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 5, "belong to no tensor"},
      {"{}", 5, "belong to no tensor"},
      {R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8, "begin at byte 4"},
      {R"({"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
       R"("v":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
       6, "overlap"},
      {R"({"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
       R"("w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
       2, "\"w\" is given twice"},
      {R"({"w":{"dtype":"U8","shape":[1],"shape":[2],"data_offsets":[0,2]}})", 2,
       "\"shape\" is given twice"},
      {R"({"__metadata__":[]})", 0, "__metadata__"},
      {R"({"__metadata__":{"a":1}})", 0, "\"a\" is not a string"},
      {R"({"w":{"dtype":"U8","shape":[[1]],"data_offsets":[0,1]}})", 1, "not a list of sizes"},
  };
  TemporaryFolder folder;
  for (const Case& item : cases) {
    INFO(item.header);
    const auto path = write_bytes(folder / "bad.safetensors",
                                  file_bytes(item.header, std::string(item.data, '\0')));
    expect_error(ErrorKind::kInput, {"bad.safetensors", item.message},
                 [&] { read_safetensors(path); });
    expect_error(ErrorKind::kInput, {item.message}, [&] { read_safetensors_header(path); });
  }
  SECTION("a header nested without end") {
    const auto path =
        write_bytes(folder / "bad.safetensors", file_bytes(std::string(300'000, '['), ""));
    expect_error(ErrorKind::kInput, {"bad.safetensors", "nested more than 100 deep"},
                 [&] { read_safetensors(path); });
  }
  SECTION("damage outside the header") {
    const auto refuse = [&](const std::string& bytes, const char* message) {
      const auto path = write_bytes(folder / "bad.safetensors", bytes);
      expect_error(ErrorKind::kInput, {"bad.safetensors", message},
                   [&] { read_safetensors(path); });
    };
    refuse("", "0 bytes long");
    refuse("1234567", "7 bytes long");
    refuse("PK\x03\x04 something else entirely", "not a safetensors file");
    refuse(std::string("\x40\0\0\0\0\0\0\0{}", 10), "truncated");
    refuse(std::string(8, '\xff') + "{}", "longer than 100 MB");
    refuse(file_bytes(R"({"w":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}})", "\x01\x02"),
           "neither 0 nor 1");
    expect_error(ErrorKind::kInput, {"none", "no such file"},
                 [&] { read_safetensors(folder / "none"); });
    expect_error(ErrorKind::kInput, {"not a regular file"},
                 [&] { read_safetensors(folder.path()); });
  }
  SECTION("shapes deeper than any tensor") {
    std::string shape = "1";
    for (int i = 0; i < 64; ++i) shape += ",1";
    const auto path = write_bytes(
        folder / "x",
        file_bytes(R"({"w":{"dtype":"U8","shape":[)" + shape + R"(],"data_offsets":[0,1]}})", "x"));
    expect_error(ErrorKind::kInput, {"65 dimensions"}, [&] { read_safetensors(path); });
  }
}

TEST_CASE("truncated and bit-flipped safetensors files never do worse than an Error",
          "[safetensors]") {
  TemporaryFolder folder;
  write_safetensors(folder / "x", sample_tensors(), {{"a", "b"}});
  const std::string good = read_bytes(folder / "x");
  std::mt19937 random(1);
  int refused = 0;
  const auto attempt = [&](const std::string& bytes) {
    const auto path = write_bytes(folder / "y", bytes);
    try {
      read_safetensors(path);
    } catch (const Error& error) {
      REQUIRE(error.kind() == ErrorKind::kInput);
      ++refused;
    }
  };
  for (std::size_t length = 0; length < good.size(); length += 7) attempt(good.substr(0, length));
  CHECK(refused == static_cast<int>((good.size() + 6) / 7));
  for (int i = 0; i < 500; ++i) {
    std::string bytes = good;
    bytes[random() % bytes.size()] ^= static_cast<char>(1u << (random() % 8));
    attempt(bytes);
  }
}

TEST_CASE("what safetensors cannot hold can be told before it is written", "[safetensors]") {
  CHECK_NOTHROW(check_storable({{"a", at::ones({2})}, {"b", at::ones({2}, at::kBool)}}, "net.pt"));
  expect_error(ErrorKind::kInput, {"net.pt: b is CPUComplexFloatType", "real"}, [] {
    check_storable({{"a", at::ones({2})}, {"b", at::ones({2}, at::kComplexFloat)}}, "net.pt");
  });
  expect_error(ErrorKind::kInput, {"net.pt: s is Sparse"}, [] {
    check_storable({{"s", at::eye(2).to_sparse()}}, "net.pt");
  });
}

TEST_CASE("what safetensors cannot hold or the disk cannot take is an output error",
          "[safetensors]") {
  TemporaryFolder folder;
  const auto path = folder / "x.safetensors";
  const auto refuse = [&](const std::string& name, const at::Tensor& tensor, const char* message) {
    expect_error(ErrorKind::kOutput, {"x.safetensors", message}, [&] {
      write_safetensors(path, {{name, tensor}});
    });
    CHECK(std::filesystem::is_empty(folder.path()));
  };
  refuse("c", torch::zeros({2}, torch::kComplexFloat), "ComplexFloat");
  refuse("s", torch::eye(3).to_sparse(), "Sparse");
  refuse("u", at::Tensor(), "undefined");
  refuse("__metadata__", torch::ones({1}), "reserved");
  refuse("\xff", torch::ones({1}), "UTF-8");
  expect_error(ErrorKind::kOutput, {"nowhere"},
               [&] { write_safetensors(folder / "nowhere" / "x", {}); });

  SECTION("a full disk, played by a limit on the size of files") {
    rlimit before{};
    getrlimit(RLIMIT_FSIZE, &before);
    const auto handler = std::signal(SIGXFSZ, SIG_IGN);
    const rlimit small{4096, before.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
    expect_error(ErrorKind::kOutput, {"x.safetensors", "cannot write"}, [&] {
      write_safetensors(path, {{"w", torch::zeros({100000})}});
    });
    setrlimit(RLIMIT_FSIZE, &before);
    std::signal(SIGXFSZ, handler);
    CHECK(std::filesystem::is_empty(folder.path()));
  }
}
