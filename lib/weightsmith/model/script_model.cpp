#include "weightsmith/model/script_model.h"

#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/upsample_bilinear2d.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>
#include <torch/csrc/jit/serialization/export.h>
#include <torch/csrc/jit/serialization/import.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "weightsmith/core/atomic_file.h"
#include "weightsmith/core/error.h"
#include "weightsmith/core/json_text.h"
#include "weightsmith/model/archive_inspection.h"
#include "weightsmith/model/builtin.h"
#include "weightsmith/model/jit_runtime.h"
#include "weightsmith/model/state_dict_file.h"
#include "weightsmith/model/tensor_sharing.h"

namespace weightsmith {
namespace fs = std::filesystem;
namespace {

constexpr const char* kMetadataFile = "weightsmith.json";
constexpr const char* kBatchCounter = "num_batches_tracked";

template <class NamedTensors>
void insert_defined(TensorMap& map, const NamedTensors& tensors) {
  for (const auto& item : tensors)
    if (item.value.defined()) map.emplace(item.name, item.value);
}

std::string shape_text(const at::Tensor& tensor) {
  return fmt::format("[{}]", fmt::join(tensor.sizes(), ", "));
}

/// (C) or (1) values as (1, C, 1, 1) beside `images`.
at::Tensor per_channel(const std::vector<double>& values, const at::Tensor& images) {
  return at::tensor(values, images.options()).view({1, -1, 1, 1});
}

at::Tensor preprocess_images(const Preprocess& preprocess, at::Tensor x, const std::string& where) {
  const auto fits = [&](const std::vector<double>& values) {
    return values.size() <= 1 || static_cast<std::int64_t>(values.size()) == x.size(1);
  };
  if (x.dim() != 4 || !x.is_floating_point() || !fits(preprocess.mean) || !fits(preprocess.std))
    throw Error(ErrorKind::kInput, where,
                fmt::format("\"preprocess\" does not fit an input of shape {} and type {}",
                            shape_text(x), c10::toString(x.scalar_type())),
                "it is for floating-point images (B, C, H, W)");
  if (const auto side = preprocess.resize; side && (x.size(2) != *side || x.size(3) != *side))
    x = at::upsample_bilinear2d(x, {*side, *side}, /*align_corners=*/false);
  if (!preprocess.mean.empty()) x = x - per_channel(preprocess.mean, x);
  if (!preprocess.std.empty()) x = x / per_channel(preprocess.std, x);
  return x;
}

nlohmann::json parse_metadata(const std::string& text, const std::string& where) {
  if (text.empty()) return nlohmann::json::object();
  auto json = parse_json(text, ErrorKind::kInput, fmt::format("{}: its {}", where, kMetadataFile),
                         "save the model again");
  if (!json.is_object())
    throw Error(ErrorKind::kInput, where, fmt::format("its {} is not a JSON object", kMetadataFile),
                "save the model again");
  return json;
}

ScriptModel load_archive(const ModelRef& ref, bool trust) {
  const std::string where = ref.script.string();
  inspect_archive(ref.script, trust);
  try {
    torch::jit::ExtraFilesMap extra{{kMetadataFile, ""}};
    torch::jit::Module module = torch::jit::load(where, at::Device(at::kCPU), extra);
    return ScriptModel(std::move(module), where, parse_metadata(extra[kMetadataFile], where));
  } catch (...) {
    throw_jit_error(ErrorKind::kInput, where, "cannot be loaded as TorchScript");
  }
}

ScriptModel load_builtin(const ModelRef& ref, std::uint64_t seed) {
  const nlohmann::json options = builtin_options(ref.builtin, ref.options);
  return ScriptModel(build_builtin(ref.builtin, options, seed), ref.builtin,
                     {{"builtin", ref.builtin}, {"options", options}});
}

/// What `state` lacks although the network needs it, filled in as far as that is allowed.
TensorMap complete_state(const TensorMap& state, const TensorMap& own) {
  TensorMap complete = state;
  std::map<const void*, const at::Tensor*> given;  // by the network's tensor
  for (const auto& [name, tensor] : own)
    if (const auto it = state.find(name); it != state.end())
      given.emplace(tensor.unsafeGetTensorImpl(), &it->second);
  for (const auto& [name, tensor] : own) {
    if (state.count(name) != 0) continue;
    if (const auto it = given.find(tensor.unsafeGetTensorImpl()); it != given.end())
      complete.emplace(name, *it->second);
    else if (name == kBatchCounter || name.ends_with(std::string(".") + kBatchCounter))
      complete.emplace(name, tensor);
  }
  return complete;
}

}  // namespace

ScriptModel::ScriptModel(torch::jit::Module module, std::string where, nlohmann::json metadata)
    : module_(std::move(module)),
      where_(std::move(where)),
      name_(fs::path(where_).stem().string()),
      metadata_(std::move(metadata)) {
  prepare_jit_runtime();
  if (!module_.find_method("forward"))
    throw Error(ErrorKind::kInput, where_, "the network has no method \"forward\"");
  untied_ = separate_views(module_);
}

ScriptModel ScriptModel::load(const ModelRef& ref, const LoadOptions& options) {
  ScriptModel model =
      ref.builtin.empty() ? load_archive(ref, options.trust) : load_builtin(ref, options.seed);
  if (!ref.name.empty()) model.name_ = ref.name;
  model.preprocess_ = ref.preprocess;
  if (!ref.weights.empty()) {
    model.load_state(read_state_dict(ref.weights, options.trust), ref.weights.string());
    model.where_ = ref.weights.string();
  }
  model.train(false);
  model.to(options.device);
  return model;
}

at::Tensor ScriptModel::forward(const at::Tensor& input) {
  c10::IValue output;
  try {
    output = module_.forward({preprocessed(input)});
  } catch (const std::exception& e) {
    throw_jit_error(
        ErrorKind::kInput, where_,
        fmt::format("the network does not take an input of shape {}", shape_text(input)),
        input_remedy(jit_error_reason(e.what())));
  }
  if (!output.isTensor())
    throw Error(ErrorKind::kInput, where_,
                fmt::format("for an input of shape {} the network returns {}, one tensor wanted",
                            shape_text(input), output.type()->str()),
                "export a network that returns its logits alone");
  return output.toTensor();
}

at::Tensor ScriptModel::preprocessed(const at::Tensor& input) const {
  return preprocess_ ? preprocess_images(*preprocess_, input, where_) : input;
}

TensorMap ScriptModel::parameters() const {
  TensorMap map;
  insert_defined(map, module_.named_parameters());
  return map;
}

TensorMap ScriptModel::buffers() const {
  TensorMap map;
  insert_defined(map, module_.named_buffers());
  return map;
}

TensorMap ScriptModel::state_dict() const {
  TensorMap map = parameters();
  insert_defined(map, module_.named_buffers());
  return map;
}

void ScriptModel::load_state(const TensorMap& state, const std::string& where) {
  const TensorMap own = state_dict();
  const TensorMap complete = complete_state(state, own);
  if (const auto differences = state_differences(complete, own); !differences.empty())
    throw Error(ErrorKind::kInput, where,
                fmt::format("does not fit {}: {}", where_, join_some(differences)),
                "use weights of the same architecture");

  std::map<const void*, const TensorMap::value_type*> first;
  for (const auto& [name, tensor] : own) {
    const auto& item = *complete.find(name);
    const auto [it, inserted] = first.emplace(tensor.unsafeGetTensorImpl(), &item);
    if (!inserted && !at::equal(it->second->second, item.second))
      throw Error(ErrorKind::kInput, where,
                  fmt::format("{} and {} differ, but {} holds them as one tensor",
                              it->second->first, name, where_));
  }
  const at::NoGradGuard no_grad;
  for (const auto& [name, tensor] : own) tensor.copy_(complete.at(name));
}

void ScriptModel::replace_state(const TensorMap& state) {
  const at::NoGradGuard no_grad;
  const TensorMap own = state_dict();
  WS_CHECK(own.size() == state.size(), where_);
  for (const auto& [name, tensor] : own) {
    at::Tensor target = tensor;
    target.set_data(state.at(name).detach().to(tensor.device(), tensor.scalar_type()).clone());
  }
}

ScriptModel ScriptModel::with_network(torch::jit::Module module, const std::string& name) const {
  ScriptModel other(std::move(module), where_);
  other.name_ = name.empty() ? name_ : name;
  other.preprocess_ = preprocess_;
  return other;
}

ScriptModel ScriptModel::clone() const {
  ScriptModel copy = *this;
  {
    // With gradients on, the copies would be the outputs of a clone operation, not leaves.
    const at::NoGradGuard no_grad;
    copy.module_ = module_.deepcopy();
  }
  const TensorMap originals = state_dict();
  for (auto& [name, tensor] : copy.state_dict())
    tensor.set_requires_grad(originals.at(name).requires_grad());
  return copy;
}

void ScriptModel::save(const fs::path& path) const {
  for (const auto& [name, tensor] : state_dict()) {
    if (tensor.is_cpu()) continue;
    ScriptModel copy = clone();
    copy.to(at::kCPU);
    copy.save(path);
    return;
  }
  write_file_atomically(path, [&](const fs::path& temporary) {
    errno = 0;
    std::ofstream out(temporary, std::ios::binary);
    try {
      // A failed write is only noted: LibTorch's writer would throw from its destructor and so end
      // the process.
      torch::jit::ExportModule(module_,
                               [&](const void* data, std::size_t size) {
                                 out.write(static_cast<const char*>(data),
                                           static_cast<std::streamsize>(size));
                                 return size;
                               },
                               {{kMetadataFile, metadata_.dump()}});
    } catch (...) {
      throw_jit_error(ErrorKind::kOutput, path.string(), "cannot be written as TorchScript");
    }
    out.close();
    if (!out)
      throw Error(ErrorKind::kOutput, path.string(),
                  fmt::format("cannot write: {}", std::strerror(errno != 0 ? errno : EIO)),
                  "free some space or choose another --out");
  });
}

void ScriptModel::train(bool on) { module_.train(on); }

void ScriptModel::to(at::Device device) {
  try {
    module_.to(device);
  } catch (...) {
    throw_jit_error(ErrorKind::kInput, where_, fmt::format("cannot move to {}", device.str()),
                    "see --device");
  }
}

}  // namespace weightsmith
