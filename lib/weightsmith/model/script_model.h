#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/jit/api/module.h>

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "weightsmith/model/model_ref.h"
#include "weightsmith/tensor/tensor_map.h"

namespace weightsmith {

struct LoadOptions {
  at::Device device = at::kCPU;
  bool trust = false;      ///< load archives that inspection would refuse
  std::uint64_t seed = 0;  ///< initialises the weights of a builtin without `weights`
};

/// A TorchScript network with its weights accessible by qualified name.
class ScriptModel {
 public:
  /// Takes over `module` and leaves no two of its tensors in one storage (model/tensor_sharing.h).
  /// `where` names the model in errors. `metadata` is kept in saved archives (extra file
  /// weightsmith.json). name() is `where`'s file name without its extension.
  ScriptModel(torch::jit::Module module, std::string where,
              nlohmann::json metadata = nlohmann::json::object());

  /// Loads what `ref` names, in eval mode, on `options.device`. An archive's metadata is what a
  /// save of ours put there, else an empty object; a builtin's is {"builtin": name, "options":
  /// every option}. An archive is inspected before anything of it can run
  /// (model/archive_inspection.h). Throws Error{kInput} naming the file (missing, truncated, not
  /// TorchScript, corrupt, refused by inspection; weights that are missing, surplus or misshapen,
  /// listed) and Error{kConfig} for a builtin's options.
  static ScriptModel load(const ModelRef& ref, const LoadOptions& options);

  /// input (B, ...) → the network's output tensor. `preprocess` of the reference comes first:
  /// images (B, C, H, W) are resized bilinearly (corners not aligned, no antialiasing), then
  /// (x - mean) / std. Throws Error{kInput} naming the model and the input's shape when the network
  /// refuses it or returns something else than one tensor, Error{kNumeric} when memory runs out.
  at::Tensor forward(const at::Tensor& input);
  /// The first half of forward alone, for those who run the graph themselves (GraphRunner, TapSet).
  at::Tensor preprocessed(const at::Tensor& input) const;

  /// Parameters and buffers by qualified name; the tensors share storage with the network. A tensor
  /// that the network holds under several names occurs under each.
  TensorMap state_dict() const;
  TensorMap parameters() const;
  TensorMap buffers() const;

  /// Copies values in, converting to the network's data types. Every name and shape must agree:
  /// throws Error{kInput} naming `where` and listing what does not, with nothing copied. Two things
  /// may be missing: a batch norm's `num_batches_tracked` (older files lack it; ours is kept), and
  /// a tensor that is shared with one that is there (safetensors files hold shared tensors once).
  /// Shared tensors given different values are an error.
  void load_state(const TensorMap& state, const std::string& where);
  /// Puts tensors of other shapes in place of all of its own, for a network whose layers change in
  /// width. The names must be its own. Whether the graph takes them shows when it runs.
  void replace_state(const TensorMap& state);

  /// Another network under this model's preprocessing, without metadata, and under its name or
  /// another one: a part of it, or one made from it.
  ScriptModel with_network(torch::jit::Module module, const std::string& name = {}) const;

  /// A copy that shares nothing with this model, in the same mode (train or eval). Tensors that
  /// were one under several names stay one; parameters are leaves and keep requires_grad.
  ScriptModel clone() const;

  /// Writes a TorchScript archive with its tensors on the CPU and metadata() in the extra file
  /// weightsmith.json (atomic). Throws Error{kOutput}.
  void save(const std::filesystem::path& path) const;

  /// Sets training mode. A network traced in eval mode keeps the eval behaviour that was traced.
  void train(bool on);
  /// Moves every tensor; data types are kept. Throws Error{kInput} when the device is not there.
  void to(at::Device device);

  const torch::jit::Module& module() const { return module_; }
  torch::jit::Module& module() { return module_; }
  const std::string& where() const { return where_; }
  const std::string& name() const { return name_; }
  const nlohmann::json& metadata() const { return metadata_; }
  nlohmann::json& metadata() { return metadata_; }
  const std::optional<Preprocess>& preprocess() const { return preprocess_; }
  /// Pairs of parameters ("a and b") that overlapped in memory, as a transposed weight does, and
  /// are tensors of their own now.
  const std::vector<std::string>& untied() const { return untied_; }

 private:
  torch::jit::Module module_;
  std::string where_;
  std::string name_;
  nlohmann::json metadata_;
  std::optional<Preprocess> preprocess_;
  std::vector<std::string> untied_;
};

}  // namespace weightsmith
