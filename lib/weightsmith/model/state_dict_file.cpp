#include "weightsmith/model/state_dict_file.h"

#include <ATen/ops/empty.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <optional>
#include <set>
#include <string_view>

#include "weightsmith/core/error.h"
#include "weightsmith/model/file_kind.h"
#include "weightsmith/model/pickle_reader.h"
#include "weightsmith/model/script_model.h"
#include "weightsmith/model/zip_archive.h"
#include "weightsmith/tensor/safetensors.h"

namespace weightsmith {
namespace fs = std::filesystem;
namespace {

using Kind = PickleValue::Kind;

constexpr std::uint64_t kMaxPickleBytes = 256u << 20;
constexpr int kMaxNesting = 3;

/// Under these keys training scripts keep a model's weights beside its optimiser's.
constexpr const char* kStateKeys[] = {"state_dict", "model_state_dict", "model", "net"};

/// DistributedDataParallel and torch.compile put these before every name.
constexpr std::string_view kPrefixes[] = {"module.", "_orig_mod."};

const PickleValue* find_key(const PickleValue& dict, std::string_view key) {
  for (const auto& [name, value] : dict.pairs)
    if (name->kind == Kind::kString && name->text == key) return value;
  return nullptr;
}

bool has_tensor(const PickleValue& dict) {
  return std::any_of(dict.pairs.begin(), dict.pairs.end(),
                     [](const auto& pair) { return pair.second->kind == Kind::kTensor; });
}

/// The dict of tensors within a checkpoint; a nested one comes before loose tensors beside it.
const PickleValue* find_state(const PickleValue& value, int depth = 0) {
  if (value.kind != Kind::kDict || depth > kMaxNesting) return nullptr;
  for (const char* key : kStateKeys)
    if (const PickleValue* nested = find_key(value, key))
      if (const PickleValue* state = find_state(*nested, depth + 1)) return state;
  return has_tensor(value) ? &value : nullptr;
}

TensorMap strip_prefixes(TensorMap state) {
  for (bool again = true; again && !state.empty();) {
    again = false;
    for (const std::string_view prefix : kPrefixes) {
      if (!std::all_of(state.begin(), state.end(),
                       [&](const auto& item) { return item.first.starts_with(prefix); }))
        continue;
      TensorMap stripped;
      for (auto& [name, tensor] : state) stripped.emplace(name.substr(prefix.size()), tensor);
      state = std::move(stripped);
      again = true;
      break;
    }
  }
  return state;
}

/// Reads the storages that the chosen tensors use, each once.
class StorageReader {
 public:
  StorageReader(const ZipArchive& archive, std::string folder)
      : archive_(archive), folder_(std::move(folder)) {}

  at::Tensor view(const std::string& name, const PickledTensor& wanted) {
    const auto fail = [&](const std::string& what) {
      throw Error(ErrorKind::kInput, archive_.path().string(),
                  fmt::format("tensor \"{}\": {}", name, what));
    };
    const std::string record = folder_ + "data/" + wanted.storage;
    if (!archive_.contains(record)) fail(fmt::format("its data, record {}, are missing", record));
    const std::uint64_t bytes = archive_.entry(record).bytes;
    if (bytes != wanted.storage_bytes)
      fail(fmt::format("record {} has {} bytes, {} wanted", record, bytes, wanted.storage_bytes));
    auto& storage = storages_[record];
    if (!storage.defined()) {
      storage = at::empty({static_cast<std::int64_t>(bytes)}, at::kByte);
      archive_.read_into(record, static_cast<char*>(storage.data_ptr()));
    }
    const auto width = static_cast<std::int64_t>(c10::elementSize(wanted.dtype));
    const auto* data = static_cast<const unsigned char*>(storage.data_ptr());
    if (wanted.dtype == at::kBool &&
        std::any_of(data, data + bytes, [](unsigned char byte) { return byte > 1; }))
      fail("holds booleans that are neither 0 nor 1");
    // An untyped storage may end in less than an element.
    const std::int64_t whole = storage.numel() / width * width;
    return storage.slice(0, 0, whole)
        .view(wanted.dtype)
        .as_strided(wanted.sizes, wanted.strides, wanted.offset);
  }

 private:
  const ZipArchive& archive_;
  std::string folder_;
  std::map<std::string, at::Tensor> storages_;
};

TensorMap read_python_archive(const fs::path& path) {
  const std::string where = path.string();
  const ZipArchive archive(path);
  const std::string& first = archive.entries().front().name;
  const std::string folder = first.substr(0, first.find('/') + 1);
  const std::string pickle = folder + "data.pkl";
  if (archive.entry(pickle).bytes > kMaxPickleBytes)
    throw Error(ErrorKind::kInput, where, fmt::format("its {} is larger than 256 MiB", pickle));
  if (archive.contains(folder + "byteorder") && archive.read(folder + "byteorder") != "little")
    throw Error(ErrorKind::kInput, where, "was written on a big-endian machine",
                "save it again on a little-endian one");

  const PickleDocument document = read_pickle(archive.read(pickle), where);
  const PickleValue* state = find_state(document.root());
  if (state == nullptr)
    throw Error(ErrorKind::kInput, where,
                "holds no dict of tensors, neither by itself nor under \"state_dict\", "
                "\"model_state_dict\", \"model\" or \"net\"",
                "save the weights with torch.save(model.state_dict(), ...)");
  StorageReader reader(archive, folder);
  TensorMap tensors;
  for (const auto& [key, value] : state->pairs) {
    if (key->kind != Kind::kString)
      throw Error(ErrorKind::kInput, where, "a key of its state dict is not a string");
    if (key->text.ends_with("_extra_state")) continue;
    if (value->kind != Kind::kTensor)
      throw Error(ErrorKind::kInput, where,
                  fmt::format("\"{}\" of its state dict is not a tensor", key->text),
                  "save the weights with torch.save(model.state_dict(), ...)");
    tensors.insert_or_assign(key->text, reader.view(key->text, value->tensor));
  }
  return tensors;
}

TensorMap read_torchscript(const fs::path& path, bool trust) {
  ModelRef ref;
  ref.script = path;
  LoadOptions options;
  options.trust = trust;
  return ScriptModel::load(ref, options).state_dict();
}

}  // namespace

TensorMap read_state_dict(const fs::path& path, bool trust) {
  const FileKind kind = detect_file_kind(path);
  switch (kind) {
    case FileKind::kSafetensors:
      return strip_prefixes(read_safetensors(path).tensors);
    case FileKind::kTorchScript:
      return read_torchscript(path, trust);
    case FileKind::kPythonPickle:
      return strip_prefixes(read_python_archive(path));
    case FileKind::kLegacyPickle:
      throw Error(ErrorKind::kInput, path.string(),
                  "is " + file_kind_text(kind) + ", which is not read",
                  "load it in Python and save it again with torch.save of torch 1.6 or later");
    default:
      // What calls itself safetensors deserves to hear what is wrong with its header.
      if (path.extension() == ".safetensors") return read_safetensors(path).tensors;
      throw Error(ErrorKind::kInput, path.string(), "is " + file_kind_text(kind) + ", not weights",
                  "give safetensors, a TorchScript archive or a file of torch.save");
  }
}

}  // namespace weightsmith
