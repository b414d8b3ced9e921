#include "weightsmith/eval/fingerprint.h"

#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>
#include <torch/csrc/jit/ir/ir.h>

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>

#include "weightsmith/core/stop.h"
#include "weightsmith/model/flat_graph.h"

namespace weightsmith {
namespace {

constexpr std::int64_t kDecodedTogether = 256;

/// LibTorch numbers the classes of an archive by when it was loaded ("___torch_mangle_3."); that
/// says nothing of the network.
std::string without_numbering(std::string text) {
  constexpr std::string_view kMark = "___torch_mangle_";
  for (std::size_t at = text.find(kMark); at != std::string::npos; at = text.find(kMark, at)) {
    std::size_t end = at + kMark.size();
    while (end < text.size() && (std::isdigit(static_cast<unsigned char>(text[end])) != 0)) ++end;
    if (end < text.size() && text[end] == '.') ++end;
    text.erase(at, end - at);
  }
  return text;
}

}  // namespace

Fingerprint& Fingerprint::add(std::string_view text) {
  // With its length, so that two texts cannot run into each other.
  const std::string length = std::to_string(text.size()) + ":";
  digest_.add(length.data(), length.size());
  digest_.add(text.data(), text.size());
  return *this;
}

void Fingerprint::add_tensor(const at::Tensor& tensor) {
  const at::Tensor plain = tensor.detach().cpu().contiguous();
  add_tensor_head(plain.scalar_type(), plain.sizes());
  digest_.add(plain.data_ptr(), plain.nbytes());
}

void Fingerprint::add_tensor_head(at::ScalarType type, at::IntArrayRef sizes) {
  add(fmt::format("{} [{}]", c10::toString(type), fmt::join(sizes, ", ")));
}

Fingerprint& Fingerprint::add(const ScriptModel& model) {
  for (const auto& [name, tensor] : model.state_dict()) {
    add(name);
    add_tensor(tensor);
  }
  const FlatGraph graph(model.module(), model.where());
  add(without_numbering(graph.graph().toString(/*print_source_locations=*/false)));
  return add(model.preprocess() ? to_config(*model.preprocess()).dump() : "");
}

Fingerprint& Fingerprint::add(const Dataset& data) {
  if (data.on_demand) {
    // As all of them in one tensor would be added.
    std::vector<std::int64_t> sizes = data.sample_shape();
    sizes.insert(sizes.begin(), data.size());
    add_tensor_head(data.dtype(), sizes);
    for (std::int64_t begin = 0; begin < data.size(); begin += kDecodedTogether) {
      stop_here_if_requested();
      const at::Tensor some =
          stored_batch(data, begin, std::min(kDecodedTogether, data.size() - begin));
      digest_.add(some.data_ptr(), some.nbytes());
    }
  } else {
    add_tensor(data.images);
  }
  add_tensor(data.labels);
  return add(fmt::format("{} {} {}", data.classes, data.mean, data.std));
}

}  // namespace weightsmith
