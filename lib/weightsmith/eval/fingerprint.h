#pragma once

#include <string>
#include <string_view>

#include "weightsmith/core/sha256.h"
#include "weightsmith/data/dataset.h"
#include "weightsmith/model/script_model.h"

namespace weightsmith {

/// A key for results that depend on models, data and settings: SHA-256 over their contents. Equal
/// keys mean equal contents, wherever the files lie and whatever they are called; a change that may
/// not matter (a layer's name, the order of settings) gives another key.
class Fingerprint {
 public:
  /// `purpose` names what the key is for, and the version of how it is computed.
  explicit Fingerprint(std::string_view purpose) { add(purpose); }

  Fingerprint& add(std::string_view text);
  /// The tensors, the graph of `forward` and the preprocessing.
  Fingerprint& add(const ScriptModel& model);
  /// The samples, their labels and their normalisation, in their order.
  Fingerprint& add(const Dataset& data);

  /// Call it once, at the end.
  std::string hex() { return digest_.hex(); }

 private:
  void add_tensor(const at::Tensor& tensor);
  void add_tensor_head(at::ScalarType type, at::IntArrayRef sizes);

  Sha256 digest_;
};

}  // namespace weightsmith
