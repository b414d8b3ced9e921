#pragma once
// The headers that dominate compile time, precompiled once a target. Sources still include what
// they use.

#include <spdlog/fmt/fmt.h>
#include <torch/script.h>

#include <nlohmann/json.hpp>
