#include "weightsmith/model/example_input.h"

#include <ATen/Functions.h>
#include <spdlog/fmt/fmt.h>

#include <charconv>

#include "weightsmith/core/error.h"
#include "weightsmith/core/rng.h"

namespace weightsmith {

at::Tensor example_input(const std::string& shape, const std::string& where, std::uint64_t seed) {
  constexpr std::int64_t kMostElements = std::int64_t{1} << 32;
  const bool is_integer = shape.starts_with("i64:");
  const char* at = shape.data() + (is_integer ? 4 : 0);
  const char* end = shape.data() + shape.size();
  std::vector<std::int64_t> sizes;
  std::int64_t elements = 1;
  for (bool more = true; more;) {
    std::int64_t size = 0;
    const auto [stop, error] = std::from_chars(at, end, size);
    more = stop != end && *stop == 'x';
    if (error != std::errc() || size < 1 || size > kMostElements / elements ||
        (stop != end && !more))
      throw Error(ErrorKind::kConfig, where, fmt::format("\"{}\" describes no input", shape),
                  "give sizes such as 2x3x224x224, or i64:2x16 for integers");
    sizes.push_back(size);
    elements *= size;
    at = more ? stop + 1 : stop;
  }
  Rng rng(seed, {0x696e707574});
  if (is_integer) {
    at::Tensor values = at::empty(sizes, at::kLong);
    auto* data = values.data_ptr<std::int64_t>();
    for (std::int64_t i = 0; i < elements; ++i) data[i] = static_cast<std::int64_t>(rng.below(100));
    return values;
  }
  at::Tensor values = at::empty(sizes, at::kFloat);
  auto* data = values.data_ptr<float>();
  for (std::int64_t i = 0; i < elements; ++i) data[i] = static_cast<float>(rng.normal());
  return values;
}

std::vector<c10::IValue> example_inputs(const std::vector<std::string>& shapes,
                                        const std::string& where, std::uint64_t seed,
                                        at::Device device) {
  std::vector<c10::IValue> inputs;
  for (const std::string& shape : shapes)
    inputs.emplace_back(example_input(shape, where, seed + inputs.size()).to(device));
  return inputs;
}

}  // namespace weightsmith
