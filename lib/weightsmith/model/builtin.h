#pragma once

#include <torch/csrc/jit/api/module.h>

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace weightsmith {

/// The names build_builtin accepts.
std::vector<std::string> builtin_names();

/// Every option of a builtin with its default filled in; `options` overrides. Throws Error{kConfig}
/// naming an unknown option (and the nearest known one) or a value out of range.
nlohmann::json builtin_options(const std::string& name, const nlohmann::json& options);

/// A network written in C++, as an ordinary TorchScript module in eval mode that Python's
/// torch.jit.load opens and trains once saved. Weights are initialised from `seed` as torchvision
/// does for that architecture.
torch::jit::Module build_builtin(const std::string& name, const nlohmann::json& options,
                                 std::uint64_t seed);

}  // namespace weightsmith
