#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <string>
#include <vector>

namespace weightsmith {

/// An argument of forward from a description of its shape: "2x3x224x224" gives standard normal
/// float32 values, "i64:2x16" integers in [0, 100). The same description and seed give the same
/// values. Throws Error{kConfig} naming `where` for anything else.
at::Tensor example_input(const std::string& shape, const std::string& where, std::uint64_t seed);

/// All arguments of forward, on a device. Equal shapes get different values: a network that
/// compares its inputs must not see the same one twice.
std::vector<c10::IValue> example_inputs(const std::vector<std::string>& shapes,
                                        const std::string& where, std::uint64_t seed,
                                        at::Device device);

}  // namespace weightsmith
