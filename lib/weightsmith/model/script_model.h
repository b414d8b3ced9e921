#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/jit/api/module.h>

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "weightsmith/tensor/tensor_map.h"

namespace weightsmith {

struct ConfigNode;

/// What is done to an input before the network sees it; part of the model's function.
struct Preprocess {
  std::optional<std::int64_t> resize;  ///< side of the square the input is resized to (bilinear)
  std::vector<double> mean;            ///< one a channel, or one for all; empty: none
  std::vector<double> std;
};

/// Names a model: a TorchScript archive or a builtin, with optional weights from another file.
struct ModelRef {
  std::string name;                                   ///< in reports; default: from the path
  std::filesystem::path script;                       ///< a TorchScript archive, or
  std::string builtin;                                ///< the name of a builtin network
  nlohmann::json options = nlohmann::json::object();  ///< of the builtin
  std::filesystem::path weights;                      ///< safetensors, archive or state dict
  std::optional<Preprocess> preprocess;
};

/// A string is short for {"script": "..."}.
void from_config(const ConfigNode& node, ModelRef& ref);
nlohmann::json to_config(const ModelRef& ref);

struct LoadOptions {
  at::Device device = at::kCPU;
  bool trust = false;      ///< load archives that inspection would refuse
  std::uint64_t seed = 0;  ///< initialises the weights of a builtin without `weights`
};

/// A TorchScript network with its weights accessible by qualified name.
class ScriptModel {
 public:
  /// `where` names the model in errors. `metadata` is kept in saved archives (extra file
  /// weightsmith.json).
  ScriptModel(torch::jit::Module module, std::string where,
              nlohmann::json metadata = nlohmann::json::object());

  /// Loads what `ref` names, in eval mode. Throws Error{kInput} naming the file (missing,
  /// truncated, not TorchScript, corrupt, refused by inspection; weights that are missing, surplus
  /// or misshapen, listed).
  static ScriptModel load(const ModelRef& ref, const LoadOptions& options);

  /// input (B, ...) → the network's output tensor. Throws Error{kInput} naming the model and the
  /// input's shape when the network refuses it or returns something else than one tensor.
  at::Tensor forward(const at::Tensor& input);

  /// Parameters and buffers by qualified name; the tensors share storage with the network.
  TensorMap state_dict() const;
  TensorMap parameters() const;
  TensorMap buffers() const;

  /// Copies values in. Every name and shape must agree: throws Error{kInput} naming `where` and
  /// listing what does not.
  void load_state(const TensorMap& state, const std::string& where);

  /// A copy that shares nothing; its parameters are leaves.
  ScriptModel clone() const;
  /// Writes a TorchScript archive (atomic).
  void save(const std::filesystem::path& path) const;

  void train(bool on);
  void to(at::Device device);
  const torch::jit::Module& module() const { return module_; }
  torch::jit::Module& module() { return module_; }
  const std::string& where() const { return where_; }
  const std::string& name() const { return name_; }
  const nlohmann::json& metadata() const { return metadata_; }
  nlohmann::json& metadata() { return metadata_; }

 private:
  torch::jit::Module module_;
  std::string where_;
  std::string name_;
  nlohmann::json metadata_;
  std::optional<Preprocess> preprocess_;
};

}  // namespace weightsmith
