// Matchings and similarities against those of the authors' implementation of MuDSC. Files in
// data/golden/mudsc: inputs and outputs of single functions; each says in its metadata what it is.
#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <limits>

#include "support/expect_error.h"
#include "weightsmith/match/align.h"
#include "weightsmith/match/similarity_accumulator.h"
#include "weightsmith/match/visit_order.h"
#include "weightsmith/match/zip.h"
#include "weightsmith/tensor/safetensors.h"

using namespace weightsmith;
using namespace weightsmith::testing;

namespace {

// Sums of float32 in the reference.
constexpr double kValueTolerance = 2e-6;

std::vector<std::filesystem::path> goldens(const std::string& prefix) {
  std::vector<std::filesystem::path> found;
  for (const auto& entry :
       std::filesystem::directory_iterator(WEIGHTSMITH_TEST_DATA "/golden/mudsc"))
    if (entry.path().filename().string().rfind(prefix, 0) == 0) found.push_back(entry.path());
  std::sort(found.begin(), found.end());
  return found;
}

TensorMap golden(const std::string& name) {
  return read_safetensors(WEIGHTSMITH_TEST_DATA "/golden/mudsc/" + name + ".safetensors").tensors;
}

std::vector<std::int32_t> integers(const at::Tensor& t) {
  const at::Tensor flat = t.flatten().to(at::kInt).contiguous();
  return {flat.data_ptr<std::int32_t>(), flat.data_ptr<std::int32_t>() + flat.numel()};
}

std::int64_t blocks_of(const TensorMap& g) {
  const auto it = g.find("group");
  return it == g.end() ? 1 : it->second.item<std::int64_t>();
}

/// File names end in _N<models>.
std::int64_t models_of(const std::filesystem::path& path) {
  const std::string stem = path.stem().string();
  return std::stoll(stem.substr(stem.rfind('N') + 1));
}

/// {0, 1}^(O, slots).
at::Tensor unmerge_matrix(const Matching& m) {
  const at::Tensor u = at::zeros({m.stack.size(), m.slots});
  for (std::int64_t k = 0; k < u.size(0); ++k) u[k][m.slot[k]] = 1.0;
  return u;
}

}  // namespace

TEST_CASE("align gives the authors' permutations") {
  std::vector<std::filesystem::path> files = goldens("permute_n");
  const auto grouped = goldens("group_permute_");
  files.insert(files.end(), grouped.begin(), grouped.end());
  REQUIRE(files.size() == 6);
  for (const auto& path : files) {
    INFO(path.filename().string());
    const TensorMap g = read_safetensors(path).tensors;
    const at::Tensor permutation = g.at("perm");
    const Similarity s = all_pairs_similarity(g.at("sims"), permutation.size(0), "golden");
    const Matching m = align(s, blocks_of(g), "golden");
    for (std::int64_t i = 0; i < m.stack.models(); ++i)
      CHECK(m.unit_of(i) == integers(permutation[i]));
    CHECK(m.value == Approx(g.at("merge_value").item<double>()).margin(kValueTolerance));
    CHECK(at::equal(unmerge_matrix(m), g.at("unmerge").to(at::kFloat)));
  }
}

TEST_CASE("align reaches the authors' value where dead units leave the permutation open") {
  const TensorMap g = golden("permute_dead_n20");
  const Matching m = align(all_pairs_similarity(g.at("sims"), 2, "golden"), 1, "golden");
  CHECK(m.value == Approx(g.at("merge_value").item<double>()).margin(kValueTolerance));
}

TEST_CASE("zip gives the authors' slots, with ties and in blocks") {
  std::vector<std::filesystem::path> files = goldens("zip_");
  const auto grouped = goldens("group_zip_");
  files.insert(files.end(), grouped.begin(), grouped.end());
  REQUIRE(files.size() == 14);
  for (const auto& path : files) {
    INFO(path.filename().string());
    const TensorMap g = read_safetensors(path).tensors;
    const double* p = g.at("params").data_ptr<double>();
    const Similarity s = all_pairs_similarity(g.at("sims"), models_of(path), "golden");
    const Matching m = zip(s, {p[0], p[1], p[2], 1.0}, blocks_of(g), "golden");
    check_matching(m, "golden");
    CHECK(m.slot == integers(g.at("assign")));
    CHECK(m.value == Approx(g.at("merge_value").item<double>()).margin(kValueTolerance));
  }
}

TEST_CASE("no fusion is the identity matching") {
  const TensorMap g = golden("no_fusion_n8");
  CHECK(at::equal(unmerge_matrix(identity_matching(2, 8)), g.at("unmerge").to(at::kFloat)));
}

TEST_CASE("sweeps visit groups in the authors' order") {
  const TensorMap g = golden("layer_order");
  REQUIRE(g.size() == 5);
  for (const auto& [name, order] : g) {
    VisitOrder visits(order.size(1));
    for (std::int64_t sweep = 0; sweep < order.size(0); ++sweep) {
      INFO(name << ", sweep " << sweep);
      const auto expected = integers(order[sweep]);
      const auto next = visits.next();
      CHECK(std::equal(next.begin(), next.end(), expected.begin(), expected.end()));
    }
  }
}

TEST_CASE("activation correlation is the authors', once NaN and infinity are taken out") {
  const TensorMap g = golden("act_correlation");
  SimilarityAccumulator all({2, 10}, Similarity::Scope::kAllPairs);
  SimilarityAccumulator cross({2, 10}, Similarity::Scope::kCrossModel);
  for (int batch = 0; batch < 4; ++batch) {
    const std::string index = std::to_string(batch);
    const auto cleaned = [&](const std::string& model) {
      return at::nan_to_num(g.at(model + index), 0.0, 0.0, 0.0);
    };
    all.add({cleaned("a"), cleaned("b")}, 1, "tap");
    cross.add({cleaned("a"), cleaned("b")}, 1, "tap");
  }
  const at::Tensor expected = g.at("corr");
  CHECK((all.correlation("tap").values - expected).abs().max().item<double>() < 5e-6);
  CHECK((cross.correlation("tap").values[0] - expected.narrow(0, 0, 10).narrow(1, 10, 10))
            .abs()
            .max()
            .item<double>() < 5e-6);
  CHECK(all.correlation("tap").values[9].abs().max().item<double>() == 0.0);
}

TEST_CASE("the same activations as they are stop with the layer's name") {
  const TensorMap g = golden("act_correlation");
  expect_error(ErrorKind::kNumeric, {"layer1.conv1: unit"}, [&] {
    SimilarityAccumulator statistics({2, 10}, Similarity::Scope::kAllPairs);
    for (int batch = 0; batch < 4; ++batch)
      statistics.add({g.at("a" + std::to_string(batch)), g.at("b" + std::to_string(batch))}, 1,
                     "layer1.conv1");
  });
}

TEST_CASE("weight correlation and cosine are the authors', whole or member by member") {
  const TensorMap g = golden("weight_correlation");
  SimilarityAccumulator whole({2, 12}, Similarity::Scope::kAllPairs);
  whole.add({g.at("w0"), g.at("w1")}, 0, "weights");
  SimilarityAccumulator members({2, 12}, Similarity::Scope::kAllPairs);
  for (const auto& [begin, length] : {std::pair{0, 1}, {1, 20}, {21, 9}})
    members.add({g.at("w0").narrow(1, begin, length), g.at("w1").narrow(1, begin, length)}, 0,
                "weights");
  for (const SimilarityAccumulator* s : {&whole, &members}) {
    CHECK((s->correlation("w").values - g.at("corr")).abs().max().item<double>() < 2e-6);
    CHECK((s->cosine("w").values - g.at("cossim")).abs().max().item<double>() < 2e-6);
  }
}
