#include "weightsmith/model/archive_inspection.h"

#include <caffe2/serialize/inline_container.h>
#include <spdlog/fmt/fmt.h>
#include <torch/csrc/jit/frontend/lexer.h>

#include <algorithm>
#include <cctype>
#include <memory>
#include <set>
#include <vector>

#include "weightsmith/core/error.h"
#include "weightsmith/model/file_kind.h"
#include "weightsmith/model/jit_runtime.h"
#include "weightsmith/model/pickle_reader.h"
#include "weightsmith/model/zip_archive.h"

namespace weightsmith {
namespace fs = std::filesystem;
namespace {

/// aten operators that touch files. All others compute, make tensors or look at them.
const std::set<std::string_view> kRefusedAten{"from_file", "load", "save"};

const std::set<std::string_view> kAllowedPrim{"ConstantChunk",
                                              "EnumName",
                                              "EnumValue",
                                              "NumToTensor",
                                              "Print",
                                              "RaiseException",
                                              "StringIndex",
                                              "TupleIndex",
                                              "TupleUnpack",
                                              "Uninitialized",
                                              "abs",
                                              "data",
                                              "device",
                                              "dtype",
                                              "grad",
                                              "id",
                                              "index",
                                              "infer_squeeze_size",
                                              "infer_unsqueeze_size",
                                              "is_cpu",
                                              "is_cuda",
                                              "is_hpu",
                                              "is_ipu",
                                              "is_maia",
                                              "is_meta",
                                              "is_mkldnn",
                                              "is_mps",
                                              "is_nested",
                                              "is_ort",
                                              "is_quantized",
                                              "is_sparse",
                                              "is_sparse_csr",
                                              "is_vulkan",
                                              "is_xla",
                                              "is_xpu",
                                              "itemsize",
                                              "layout",
                                              "max",
                                              "min",
                                              "name",
                                              "nbytes",
                                              "rangelist",
                                              "requires_grad",
                                              "tolist",
                                              "type",
                                              "unchecked_cast",
                                              "unchecked_unwrap_optional"};

const std::set<std::string_view> kAllowedProfiler{
    "_record_function_enter", "_record_function_enter_new", "_record_function_exit",
    "_call_end_callbacks_on_jit_fut"};

const std::set<std::string_view> kRefusedNames{"__setstate__", "awaitable",  "fork",
                                               "rpc_async",    "rpc_remote", "rpc_sync"};

using Names = std::vector<std::string>;

std::string refused_operator(const std::string& space, const std::string& name) {
  const bool allowed = space == "aten"       ? kRefusedAten.count(name) == 0
                       : space == "prim"     ? kAllowedPrim.count(name) != 0
                       : space == "profiler" ? kAllowedProfiler.count(name) != 0
                                             : space == "quantized";
  if (allowed) return {};
  return fmt::format("calls {}{}", space == "aten" ? "torch." : "ops." + space + ".", name);
}

/// `chain` is a dotted name from its first part on.
std::string refused_chain(const Names& chain) {
  const std::string& head = chain[0];
  if (head == "torch")
    return chain.size() < 2 ? "uses torch other than to call an operator"
                            : refused_operator("aten", chain[1]);
  if (head == "ops")
    return chain.size() < 3 ? "uses ops other than to call an operator"
                            : refused_operator(chain[1], chain[2]);
  if (head == "__torch__") {
    if (chain.size() < 2 || (chain.size() < 3 && chain[1] == "torch"))
      return "uses __torch__ other than to name a type or function";
    // What torch.profiler.record_function and, from LibTorch 2 on, the code of nn.Module's own
    // layers hold: a mark in a profile.
    if (chain[1] == "torch" && chain[2] == "classes" &&
        fmt::format("{}", fmt::join(chain, ".")) !=
            "__torch__.torch.classes.profiler._RecordFunction")
      return fmt::format("uses the C++ class {}", fmt::join(chain, "."));
  }
  return kRefusedNames.count(head) != 0 ? "calls " + head : std::string();
}

bool is_name(const torch::jit::Token& token) {
  const auto text = token.range.token_text();
  return token.kind != torch::jit::TK_STRINGLITERAL && !text.empty() &&
         (std::isalpha(static_cast<unsigned char>(text[0])) != 0 || text[0] == '_');
}

std::string lower_case(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

/// LibTorch finds records whatever the case of their letters, so the case is no way around this.
bool is_code(const std::string& record) {
  const std::string name = lower_case(record);
  return !name.ends_with(".debug_pkl") && (name.ends_with(".py") || name.starts_with("code/"));
}

bool is_pickle(const std::string& record) { return lower_case(record).ends_with(".pkl"); }

std::string find_unsafe_global(const std::string& pickle, const std::string& where) {
  for (const std::string& name : pickle_globals(pickle, where)) {
    if (name.starts_with("__torch__.torch.classes.")) return "makes the C++ class " + name;
    const bool known = name.starts_with("__torch__.") || name.starts_with("torch.") ||
                       name == "collections.OrderedDict" || name == "builtins.complex" ||
                       name == "__builtin__.complex";
    if (!known) return "names the Python object " + name;
  }
  return {};
}

void inspect_records(const std::string& where) {
  // Read by LibTorch itself, so that what is inspected is what it will load.
  caffe2::serialize::PyTorchStreamReader reader(where);
  for (const std::string& record : reader.getAllRecords()) {
    const bool code = is_code(record);
    if (!code && !is_pickle(record)) continue;
    const auto [data, size] = reader.getRecord(record);
    const std::string_view text(static_cast<const char*>(data.get()), size);
    const std::string found =
        code ? find_unsafe_code(text) : find_unsafe_global(std::string(text), where);
    if (!found.empty())
      throw Error(ErrorKind::kInput, where, fmt::format("refused: {} {}", record, found),
                  "if you know where the file comes from, give --trust");
  }
}

}  // namespace

std::string find_unsafe_code(std::string_view source) {
  torch::jit::Lexer lexer(std::make_shared<torch::jit::Source>(std::string(source)));
  Names chain;
  bool after_dot = false;
  for (;;) {
    const torch::jit::Token token = lexer.next();
    if (is_name(token)) {
      std::string name(token.range.token_text());
      if (name == "__setstate__") return "defines __setstate__, which runs while loading";
      if (!after_dot) {
        if (!chain.empty())
          if (std::string found = refused_chain(chain); !found.empty()) return found;
        chain.clear();
      }
      // A name after ")." or "]." is an attribute of a value, not the head of a chain.
      if (!after_dot || !chain.empty()) chain.push_back(std::move(name));
      after_dot = false;
      continue;
    }
    if (token.kind == '.') {
      after_dot = true;
      continue;
    }
    if (!chain.empty())
      if (std::string found = refused_chain(chain); !found.empty()) return found;
    chain.clear();
    after_dot = false;
    if (token.kind == torch::jit::TK_EOF) return {};
  }
}

void inspect_archive(const fs::path& path, bool trust) {
  const std::string where = path.string();
  const FileKind kind = detect_file_kind(path);
  if (kind != FileKind::kTorchScript) {
    const bool weights = kind == FileKind::kPythonPickle || kind == FileKind::kSafetensors ||
                         kind == FileKind::kLegacyPickle;
    throw Error(ErrorKind::kInput, where,
                "is " + file_kind_text(kind) + ", not a TorchScript archive",
                weights ? "give it as \"weights\" beside a \"script\" or \"builtin\", or save the "
                          "network with torch.jit.script or torch.jit.trace"
                : kind == FileKind::kTruncatedZip ? "copy or download the file again"
                                                  : "save a network with torch.jit.save");
  }
  ZipArchive(path).verify_all();
  if (trust) return;
  try {
    inspect_records(where);
  } catch (...) {
    throw_jit_error(ErrorKind::kInput, where, "cannot be inspected");
  }
}

}  // namespace weightsmith
