#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace weightsmith {

struct ConfigNode;

/// What is done to a batch of images before the network sees it; part of the model's function.
struct Preprocess {
  std::optional<std::int64_t> resize;  ///< side of the square the images are resized to
  std::vector<double> mean;            ///< one a channel, or one for all; empty: none
  std::vector<double> std;             ///< likewise, positive
};

void from_config(const ConfigNode& node, Preprocess& preprocess);
nlohmann::json to_config(const Preprocess& preprocess);

/// Names a model: a TorchScript archive or a builtin, with optional weights from another file.
struct ModelRef {
  std::string name;                                   ///< in reports; see from_config
  std::filesystem::path script;                       ///< a TorchScript archive, or
  std::string builtin;                                ///< the name of a builtin network
  nlohmann::json options = nlohmann::json::object();  ///< of the builtin
  std::filesystem::path weights;                      ///< safetensors, archive or state dict
  std::optional<Preprocess> preprocess;
};

/// A string is short for {"script": "..."}; exactly one of `script` and `builtin` must be there.
/// Without a name the model is called after its weights, its archive or its builtin, in this order;
/// a file called model.* or merged.*, as the tools write them, gives its folder's name. Throws
/// Error{kConfig} naming the key.
void from_config(const ConfigNode& node, ModelRef& ref);

/// What from_config reads back as the same reference.
nlohmann::json to_config(const ModelRef& ref);

}  // namespace weightsmith
