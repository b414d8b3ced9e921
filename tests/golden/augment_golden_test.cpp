// Operations on images, policies and magnitudes against torchvision's
// (scripts/augmentation_goldens.py).

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "support/golden.h"
#include "support/images.h"
#include "weightsmith/core/atomic_file.h"
#include "weightsmith/data/augment_policy.h"
#include "weightsmith/data/image_ops.h"
#include "weightsmith/tensor/safetensors.h"

namespace weightsmith {
namespace {

const TensorMap& tensors() {
  static const TensorMap map = [] {
    TensorMap all;
    for (const char* file : {"augment", "autoaugment", "moves"})
      all.merge(
          read_safetensors(testing::golden(fmt::format("augment/{}.safetensors", file))).tensors);
    return all;
  }();
  return map;
}

const nlohmann::json& facts() {
  static const auto json =
      nlohmann::json::parse(read_text(testing::golden("augment/augment.json")));
  return json;
}

/// The largest difference in levels, and the share of values that differ at all.
void check_close(const at::Tensor& ours, const at::Tensor& theirs, double most_different) {
  REQUIRE(ours.sizes() == theirs.sizes());
  const at::Tensor difference = (ours.to(at::kInt) - theirs.to(at::kInt)).abs();
  CHECK(difference.max().item<int>() <= 1);
  CHECK(difference.ne(0).to(at::kDouble).mean().item<double>() <= most_different);
}

/// What is done to an image, and what torchvision made of it.
struct Comparison {
  std::string what;
  std::optional<DrawnStep> step;
  at::Tensor theirs;
  double most_different;
};

/// Image by image, and all of them together.
void check_all(const at::Tensor& image, const std::vector<Comparison>& comparisons) {
  std::vector<std::vector<DrawnStep>> steps;
  for (const Comparison& c : comparisons)
    steps.push_back(c.step ? std::vector{*c.step} : std::vector<DrawnStep>{});
  const at::Tensor images =
      image.unsqueeze(0).repeat({static_cast<std::int64_t>(steps.size()), 1, 1, 1});
  for (const auto apply : {testing::applied_singly, testing::applied_together}) {
    const at::Tensor ours = apply(images, steps);
    for (std::size_t i = 0; i < comparisons.size(); ++i) {
      INFO(comparisons[i].what << (apply == testing::applied_together ? ", in a batch" : ""));
      check_close(ours[static_cast<std::int64_t>(i)], comparisons[i].theirs,
                  comparisons[i].most_different);
    }
  }
}

PolicyOp op_named(const std::string& name) {
  for (const auto& [op, known] : enum_names(PolicyOp{}))
    if (name == known) return op;
  FAIL(name);
  return PolicyOp::kIdentity;
}

TEST_CASE("every operation of the policies at every magnitude is torchvision's", "[golden]") {
  const std::int64_t h = tensors().at("image").size(1);
  const std::int64_t w = tensors().at("image").size(2);
  std::vector<Comparison> comparisons;
  for (const auto& [space, ops] : facts()["magnitudes"].items()) {
    for (const auto& [name, magnitudes] : ops.items()) {
      const auto stored = tensors().find(space + "/" + name);
      if (stored == tensors().end()) continue;
      const PolicyOp op = op_named(name);
      for (int negative = 0; negative < stored->second.size(0); ++negative) {
        for (std::size_t bin = 0; bin < magnitudes["values"].size(); ++bin) {
          const double magnitude = magnitudes["values"][bin].get<double>() * (negative ? -1 : 1);
          // Blends drop fractions, so that the last bit of a float can tip a value.
          const bool blends = op >= PolicyOp::kBrightness && op <= PolicyOp::kSharpness;
          comparisons.push_back(
              {fmt::format("{} {} {}", space, name, magnitude), policy_step(op, magnitude, h, w),
               stored->second[negative][static_cast<std::int64_t>(bin)], blends ? 0.02 : 0.0});
        }
      }
    }
  }
  check_all(tensors().at("image"), comparisons);
  CHECK(comparisons.size() == 2 * (9 * 2 * 31 + 2 * 31 + 3) + 9 * 2 * 10 + 2 * 10 + 1);
  std::vector<Comparison> grey;
  for (const auto& [name, magnitude] : {std::pair{"Color", 0.9},
                                        {"Contrast", -0.5},
                                        {"Sharpness", 0.9},
                                        {"Equalize", 0.0},
                                        {"ShearX", 0.2}}) {
    grey.push_back({std::string("grey ") + name, policy_step(op_named(name), magnitude, h, w),
                    tensors().at(std::string("grey/") + name), 0.02});
  }
  check_all(tensors().at("grey"), grey);
}

TEST_CASE("histograms are equalised as torchvision does it", "[golden]") {
  // The small image has less than 255 pixels: nothing changes there.
  const TensorMap larger =
      read_safetensors(testing::golden("augment/equalize.safetensors")).tensors;
  const at::Tensor& image = larger.at("image");
  CHECK_FALSE(larger.at("equalized").equal(image));
  check_all(image, {{"Equalize", policy_step(PolicyOp::kEqualize, 0, image.size(1), image.size(2)),
                     larger.at("equalized"), 0.0}});
}

TEST_CASE("magnitudes and signs are torchvision's", "[golden]") {
  for (const auto& [space, ops] : facts()["magnitudes"].items()) {
    for (const auto& [name, expected] : ops.items()) {
      INFO(space << " " << name);
      const PolicyOp op = op_named(name);
      CHECK(is_signed(op) == expected["signed"].get<bool>());
      const auto ours = policy_magnitudes(op, space == "autoaugment" ? 10 : 31,
                                          space == "trivialaugment", 14, 18);
      const auto theirs = expected["values"].get<std::vector<float>>();
      REQUIRE(ours.size() == theirs.size());
      for (std::size_t i = 0; i < ours.size(); ++i) {
        CHECK(ours[i] == Approx(theirs[i]).epsilon(1e-6).margin(1e-6));
        // What is cut to an integer must not fall on the other side of one.
        CHECK(static_cast<int>(ours[i]) == static_cast<int>(theirs[i]));
      }
    }
  }
}

TEST_CASE("the policies of AutoAugment are the published tables", "[golden]") {
  for (const auto& [policy, name] : enum_names(AutoAugmentPolicy{})) {
    const auto ours = autoaugment_policy(policy);
    const auto& theirs = facts()["policies"][name];
    REQUIRE(ours.size() == 25);
    REQUIRE(theirs.size() == 25);
    for (std::size_t i = 0; i < 25; ++i) {
      for (std::size_t half = 0; half < 2; ++half) {
        INFO(name << " " << i << " " << half);
        const PolicyStep& step = ours[i][half];
        CHECK(step.op == op_named(theirs[i][half][0]));
        CHECK(step.probability == theirs[i][half][1].get<double>());
        CHECK(step.magnitude.has_value() == !theirs[i][half][2].is_null());
        if (step.magnitude) CHECK(*step.magnitude == theirs[i][half][2].get<int>());
      }
    }
  }
}

TEST_CASE("crops, flips and boxes that are erased are torchvision's to the bit", "[golden]") {
  const auto& cases = facts()["cases"];
  std::vector<Comparison> comparisons;
  const auto add = [&](const char* name, std::int64_t i, const DrawnStep& step) {
    comparisons.push_back({fmt::format("{} {}", name, i), step, tensors().at(name)[i], 0.0});
  };
  for (std::int64_t i = 0; i < tensors().at("crop").size(0); ++i) {
    const auto c = cases["crop"][static_cast<std::size_t>(i)].get<std::vector<std::int64_t>>();
    add("crop", i, ShiftStep{c[1] - c[0], c[2] - c[0]});
  }
  for (std::int64_t i = 0; i < tensors().at("erase").size(0); ++i) {
    const auto c = cases["erase"][static_cast<std::size_t>(i)].get<std::vector<std::int64_t>>();
    add("erase", i, EraseStep{{c[0], c[1], c[2], c[3]}, std::nullopt});
  }
  for (const bool top_bottom : {false, true}) add("flip", top_bottom ? 1 : 0, FlipStep{top_bottom});
  CHECK(comparisons.size() == 5 + 4 + 2);
  check_all(tensors().at("image"), comparisons);
}

TEST_CASE("jitter, rotations and resized crops are torchvision's", "[golden]") {
  const auto& cases = facts()["cases"];
  using Op = ColourStep::Op;
  std::vector<Comparison> comparisons;
  for (const auto& [name, op] : {std::pair{"brightness", Op::kBrightness},
                                 {"contrast", Op::kContrast},
                                 {"saturation", Op::kSaturation},
                                 {"hue", Op::kHue}}) {
    for (std::size_t i = 0; i < cases[name].size(); ++i) {
      const double factor = cases[name][i];
      // Theirs takes hue through floats that end just below a whole level now and then.
      comparisons.push_back(
          {fmt::format("{} {}", name, factor), ColourStep{op, factor},
           tensors().at(std::string("jitter/") + name)[static_cast<std::int64_t>(i)],
           op == Op::kHue ? 0.3 : 0.02});
    }
  }
  for (std::size_t i = 0; i < cases["rotation"].size(); ++i) {
    const double degrees = cases["rotation"][i];
    comparisons.push_back({fmt::format("rotation {}", degrees),
                           WarpStep{image_ops::inverse_affine(degrees, 1, 0, 0), false},
                           tensors().at("rotation")[static_cast<std::int64_t>(i)], 0.02});
  }
  check_all(tensors().at("image"), comparisons);
  for (std::size_t i = 0; i < cases["resized_crop"].size(); ++i) {
    const auto c = cases["resized_crop"][i].get<std::vector<std::int64_t>>();
    check_all(tensors().at("image"),
              {{fmt::format("resized crop {}", i), ResizedCropStep{{c[0], c[1], c[2], c[3]}, c[4]},
                tensors().at("resized_crop/" + std::to_string(i)), 0.02}});
  }
}

}  // namespace
}  // namespace weightsmith
