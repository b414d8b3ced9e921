// mudsc-merge match on similarities whose matchings the authors' implementation gave.
#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "support/golden.h"
#include "support/temporary_folder.h"
#include "tools.h"
#include "weightsmith/tensor/safetensors.h"

using namespace weightsmith;
using namespace weightsmith::testing;
using nlohmann::json;

namespace {

json match(const std::filesystem::path& file, std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"match", file.string(), "--quiet"});
  return summary_of(mudsc_merge(arguments));
}

std::string number(const at::Tensor& parameters, int at) {
  return json(parameters[at].item<double>()).dump();
}

std::vector<std::int64_t> integers(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.flatten().to(at::kLong).contiguous();
  return {flat.data_ptr<std::int64_t>(), flat.data_ptr<std::int64_t>() + flat.numel()};
}

void check_match(const json& result, const std::vector<std::int64_t>& assign, double value) {
  CHECK(result["assign"].get<std::vector<std::int64_t>>() == assign);
  CHECK(result["value"].get<double>() == Approx(value).margin(2e-6));
  CHECK(result["seconds"].get<double>() >= 0);
}

}  // namespace

TEST_CASE("match prints the reference's zip") {
  for (const auto& [name, models, blocks] : {std::tuple{"zip_01_n33_N2", "2", "1"},
                                             {"zip_10_n16_N3", "3", "1"},
                                             {"group_zip_02_n24_g6_N2", "2", "6"}}) {
    INFO(name);
    const auto file = golden("mudsc") / (std::string(name) + ".safetensors");
    const TensorMap golden = read_safetensors(file).tensors;
    const at::Tensor p = golden.at("params");
    const json result =
        match(file, {"--models", models, "--method", "zip", "--blocks", blocks, "--reduce",
                     number(p, 0), "--a", number(p, 1), "--b", number(p, 2), "--repeat", "3"});
    check_match(result, integers(golden.at("assign")), golden.at("merge_value").item<double>());
  }
}

TEST_CASE("match prints the reference's permutations") {
  for (const auto& [name, models, blocks] : {std::tuple{"permute_n40_N2", "2", "1"},
                                             {"permute_n12_N3", "3", "1"},
                                             {"group_permute_n40_g8_N2", "2", "8"}}) {
    INFO(name);
    const auto file = golden("mudsc") / (std::string(name) + ".safetensors");
    const TensorMap golden = read_safetensors(file).tensors;
    const at::Tensor permutation = golden.at("perm");
    const std::int64_t units = permutation.size(1);
    // perm[i][r] is the unit of model i that goes to slot r.
    std::vector<std::int64_t> assign(static_cast<std::size_t>(permutation.numel()));
    for (std::int64_t i = 0; i < permutation.size(0); ++i)
      for (std::int64_t r = 0; r < units; ++r)
        assign[i * units + permutation[i][r].item<std::int64_t>()] = r;
    const json result = match(file, {"--models", models, "--method", "align", "--blocks", blocks});
    check_match(result, assign, golden.at("merge_value").item<double>());
  }
}

TEST_CASE("match refuses what it cannot match") {
  const auto file = golden("mudsc") / "zip_00_n8_N2.safetensors";
  const auto refuse = [](int code, const std::vector<std::string>& arguments,
                         const std::vector<std::string>& parts) {
    std::vector<std::string> all{"match", "--quiet"};
    all.insert(all.end(), arguments.begin(), arguments.end());
    check_failure(mudsc_merge(all), "mudsc-merge", code, parts);
  };
  const TemporaryFolder folder;
  refuse(3, {(folder / "none.safetensors").string()}, {"none.safetensors", "no such file"});
  refuse(3, {(golden("mudsc") / "layer_order.safetensors").string()},
         {"layer_order.safetensors", "sims"});
  refuse(3, {file.string(), "--models", "3"}, {"[16, 16]", "multiple"});
  refuse(3, {file.string(), "--blocks", "5"}, {"8 units in 5 blocks"});
  refuse(2, {file.string(), "--models", "0"}, {"--models", "not in range"});
  refuse(2, {file.string(), "--method", "zap"}, {"--method", "zap"});
  refuse(2, {}, {"FILE is required"});

  write_safetensors(folder / "nan.safetensors",
                    {{"sims", at::full({4, 4}, std::numeric_limits<float>::quiet_NaN())}});
  refuse(5, {(folder / "nan.safetensors").string()}, {"nan.safetensors"});
  // Of all pairs align needs those across models alone.
  at::Tensor inside = at::eye(4);
  inside[3][2] = std::numeric_limits<float>::infinity();
  write_safetensors(folder / "inside.safetensors", {{"sims", inside}});
  refuse(5, {(folder / "inside.safetensors").string(), "--method", "align"},
         {"inside.safetensors", "stacked units 3 and 2 is inf"});
}
