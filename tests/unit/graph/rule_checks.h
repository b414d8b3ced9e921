#pragma once

#include <string>
#include <vector>

#include "unit/graph/derived_network.h"

// Small networks around an operator, the groups that they must give, and their proof.

namespace weightsmith::testing {

/// What a network's groups must be; see testing::line_of.
struct Wanted {
  std::int64_t free = 0;
  std::int64_t pinned = 0;
  std::vector<std::string> groups;
};

inline DerivedNetwork check(const torch::jit::Module& net, const std::vector<c10::IValue>& inputs,
                            const Wanted& wanted) {
  DerivedNetwork derived(net, inputs);
  INFO(derived.describe());
  CHECK(derived.derivation.free_units == wanted.free);
  CHECK(derived.derivation.pinned_units == wanted.pinned);
  CHECK(derived.lines() == wanted.groups);
  testing::check_proved(derived);
  return derived;
}

inline DerivedNetwork check(const Shapes& shapes, const std::string& forward, const at::Tensor& x,
                            const Wanted& wanted, const NamedTensors& buffers = {}) {
  return check(make_network(shapes, forward, buffers), {x}, wanted);
}

inline at::Tensor images(std::int64_t channels = 3) { return at::randn({3, channels, 4, 4}); }
inline at::Tensor vectors() { return at::randn({3, 5}); }
inline at::Tensor tokens() { return at::randn({3, 5, 6}); }

/// " name[0:units] name[units:2 units] ...", one stretch a gate.
inline std::string gates(const std::string& name, std::int64_t units, std::int64_t count) {
  std::string text;
  for (std::int64_t g = 0; g < count; ++g)
    text += fmt::format(" {}[{}:{}]", name, g * units, (g + 1) * units);
  return text;
}

/// Fully connected layers around some statements that turn h (3, in) into y (3, out).
inline DerivedNetwork check_between(std::int64_t in, std::int64_t out,
                                    const std::string& statements, const Wanted& wanted,
                                    Shapes more = {}, const NamedTensors& buffers = {}) {
  more.insert(more.end(), {{"a.weight", {in, 5}}, {"b.weight", {4, out}}});
  return check(more,
               "h = torch.tanh(torch.linear(x, self.a.weight))\n" + statements +
                   "return torch.linear(y, self.b.weight)\n",
               vectors(), wanted, buffers);
}

}  // namespace weightsmith::testing
