#pragma once
// The headers that dominate compile time, precompiled once a target. Sources still include what
// they use.

// In C++20 clang does not get through torch/script.h of LibTorch 1.13 unless this one comes first.
#include <ATen/core/ivalue.h>
// clang-format off
#include <spdlog/fmt/fmt.h>
#include <torch/script.h>
// clang-format on

#include <nlohmann/json.hpp>
