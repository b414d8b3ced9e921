#include "weightsmith/model/state_dict_file.h"

#include "weightsmith/model/script_model.h"
#include "weightsmith/tensor/safetensors.h"

namespace weightsmith {

TensorMap read_state_dict(const std::filesystem::path& path, bool trust) {
  if (path.extension() == ".safetensors") return read_safetensors(path).tensors;
  ModelRef ref;
  ref.script = path;
  LoadOptions options;
  options.trust = trust;
  return ScriptModel::load(ref, options).state_dict();
}

}  // namespace weightsmith
