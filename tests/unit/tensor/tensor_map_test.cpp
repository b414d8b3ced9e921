#include "weightsmith/tensor/tensor_map.h"

#include <torch/types.h>

#include <catch2/catch.hpp>

using namespace weightsmith;

TEST_CASE("differences of two states name what is missing, surplus or misshapen", "[tensor_map]") {
  const TensorMap wanted{
      {"a", torch::ones({2, 3})}, {"b", torch::ones({4})}, {"c", torch::tensor(1)}};
  CHECK(state_differences(wanted, wanted).empty());
  const TensorMap actual{{"a", torch::ones({3, 2})},
                         {"c", torch::tensor(1.5, torch::kDouble)},
                         {"d", torch::ones({1})}};
  CHECK(state_differences(actual, wanted) ==
        std::vector<std::string>{"a: shape [3, 2], [2, 3] wanted", "b: missing", "d: surplus"});
}

TEST_CASE("a long list is cut short with a count", "[tensor_map]") {
  CHECK(join_some({}) == "");
  CHECK(join_some({"a", "b"}, 2) == "a; b");
  CHECK(join_some({"a", "b", "c", "d"}, 2) == "a; b and 2 more");
}
