#include "weightsmith/model/taps.h"

#include <spdlog/fmt/fmt.h>
#include <torch/csrc/jit/ir/ir.h>

#include <algorithm>
#include <charconv>
#include <optional>

#include "weightsmith/config/nearest.h"
#include "weightsmith/core/error.h"
#include "weightsmith/model/tensors_in.h"

namespace weightsmith {
namespace {

using c10::IValue;

at::Tensor first_tensor(const std::vector<IValue>& values) {
  const std::vector<at::Tensor> tensors = tensors_in(values);
  return tensors.empty() ? at::Tensor() : tensors.front();
}

/// False for nodes that only move values about (lists, attributes, control flow) or that ask for
/// something else than values (sizes, types).
bool computes_tensors(const torch::jit::Node* node) {
  if (!node->kind().is_aten()) return false;
  const c10::FunctionSchema* schema = node->maybeSchema();
  if (schema == nullptr || schema->returns().empty()) return false;
  const auto type = schema->returns().front().type();
  const auto list = type->cast<c10::ListType>();
  return (list ? list->getElementType() : type)->kind() == c10::TypeKind::TensorType;
}

std::optional<std::size_t> parse_number(const std::string& text) {
  std::size_t number = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (text.empty() || error != std::errc() || stop != end) return std::nullopt;
  return number;
}

}  // namespace

std::vector<std::string> list_taps(const FlatGraph& graph) {
  std::vector<std::string> taps;
  const auto add = [&](const std::string& name) {
    taps.push_back(name + "/input");
    taps.push_back(name + "/output");
  };
  for (const auto& item : graph.module().named_parameters()) add(item.name);
  for (const auto& item : graph.module().named_buffers()) add(item.name);
  for (const std::string& name : graph.called_modules()) add(name);
  return taps;
}

TapSet::TapSet(const torch::jit::Module& module, const std::vector<std::string>& taps,
               std::string where, GraphRunnerOptions options, std::vector<std::string> owners)
    : taps_(taps), owners_(std::move(owners)), runner_(module, std::move(where), options) {
  WS_CHECK(owners_.empty() || owners_.size() == taps_.size());
  for (const torch::jit::Node* node : runner_.graph().nodes())
    computes_.push_back(computes_tensors(node));
  const std::vector<std::string> known = list_taps(runner_.graph());
  for (std::size_t i = 0; i < taps_.size(); ++i) add(i, known);
}

void TapSet::fail(std::size_t index, const std::string& what, const std::string& remedy) const {
  const std::string& model = runner_.graph().where();
  throw Error(ErrorKind::kInput,
              owners_.empty() ? model : fmt::format("{}: {}", owners_[index], model), what, remedy);
}

void TapSet::add(std::size_t index, const std::vector<std::string>& known) {
  const std::string& tap = taps_[index];
  const std::size_t slash = tap.rfind('/');
  const std::string name = tap.substr(0, slash);
  const std::string side = slash == std::string::npos ? "" : tap.substr(slash + 1);
  if (name.starts_with("#") && add_node_tap(index, name.substr(1), side)) return;
  if (std::find(known.begin(), known.end(), tap) == known.end()) {
    const std::string nearest = nearest_name(tap, known);
    fail(index, fmt::format("the network has no tap \"{}\"", tap),
         nearest.empty() ? "a tap is NAME/input or NAME/output of a parameter, buffer or "
                           "submodule, or #N/output.K of a node"
                         : fmt::format("did you mean \"{}\"?", nearest));
  }
  const auto& called = runner_.graph().called_modules();
  const bool is_module = std::find(called.begin(), called.end(), name) != called.end();
  Place& place = (is_module ? modules_ : parameters_)[name];
  (side == "input" ? place.input : place.output).push_back(index);
}

bool TapSet::add_node_tap(std::size_t index, const std::string& node, const std::string& side) {
  const std::size_t dot = side.find('.');
  const std::string direction = side.substr(0, dot);
  if (direction != "input" && direction != "output") return false;
  const auto number = parse_number(node);
  const auto value =
      dot == std::string::npos ? std::optional<std::size_t>(0) : parse_number(side.substr(dot + 1));
  if (!number || !value) return false;
  const auto& nodes = runner_.graph().nodes();
  const auto refuse = [&](const std::string& what) {
    fail(index, fmt::format("the network has no tap \"{}\": {}", taps_[index], what),
         "nodes have the numbers that mudsc-merge explain writes for this very network");
  };
  if (*number >= nodes.size()) refuse(fmt::format("its graph has {} nodes", nodes.size()));
  if (nodes[*number]->kind() == c10::prim::Constant) refuse("the node is a constant");
  const bool is_input = direction == "input";
  const std::size_t values =
      is_input ? nodes[*number]->inputs().size() : nodes[*number]->outputs().size();
  if (*value >= values)
    refuse(fmt::format("{} has {} {}s", runner_.graph().describe(*number), values, direction));
  nodes_[*number].push_back({index, is_input, *value});
  return true;
}

/// Follows the parameters through one run.
class TapSet::Observer : public NodeObserver {
 public:
  Observer(const TapSet& set, const Observe& observe)
      : set_(set), observe_(observe), reached_(set.size(), false) {
    if (set_.parameters_.empty()) return;
    const torch::jit::Module& module = set_.runner_.graph().module();
    for (const auto& item : module.named_parameters()) label(item.value, item.name);
    for (const auto& item : module.named_buffers()) label(item.value, item.name);
  }

  void before(std::size_t number, std::vector<IValue>& inputs) override {
    for_each_node_tap(number, true, inputs);
    if (labels_.empty() || !set_.computes_[number]) return;
    const Meeting meeting = meet(inputs);
    if (meeting.data.defined()) see(meeting.places.input, meeting.data);
    // An in-place operator's data may look different afterwards; whose result it is does not.
    pending_ = meeting.places;
    pending_has_data_ = meeting.data.defined();
    pending_is_labelled_ = meeting.is_labelled;
  }

  void after(std::size_t number, const std::vector<IValue>&,
             const std::vector<IValue>& outputs) override {
    for_each_node_tap(number, false, outputs);
    if (labels_.empty() || !set_.computes_[number] || !pending_is_labelled_) return;
    if (pending_has_data_) {
      if (!pending_.output.empty()) see(pending_.output, first_tensor(outputs));
    } else {
      for (const at::Tensor& tensor : tensors_in(outputs)) {
        Label& derived = labels_[tensor.unsafeGetTensorImpl()];
        derived.tensor = tensor;
        merge(pending_, derived.places);
      }
    }
  }

  void at_boundary(const ModuleBoundary& boundary, const std::vector<IValue>& values) override {
    const auto it = set_.modules_.find(boundary.module);
    if (it == set_.modules_.end()) return;
    const auto& taps = boundary.enter ? it->second.input : it->second.output;
    if (!taps.empty()) see(taps, first_tensor(values));
  }

  void check_all_reached() const {
    for (std::size_t i = 0; i < reached_.size(); ++i)
      if (!reached_[i])
        set_.fail(i, fmt::format("the tap \"{}\" was not reached", set_.taps_[i]),
                  "the network does not use it for this input or in this mode");
  }

 private:
  /// A parameter, or a tensor computed from parameters alone; held, so that no other tensor takes
  /// its address during the run.
  struct Label {
    at::Tensor tensor;
    Place places;
  };
  /// What an operator is given.
  struct Meeting {
    bool is_labelled = false;
    Place places;
    at::Tensor data;
  };

  static void merge(const Place& from, Place& to) {
    const auto add = [](const std::vector<std::size_t>& source, std::vector<std::size_t>& target) {
      for (const std::size_t tap : source)
        if (std::find(target.begin(), target.end(), tap) == target.end()) target.push_back(tap);
    };
    add(from.input, to.input);
    add(from.output, to.output);
  }

  void label(const at::Tensor& tensor, const std::string& name) {
    Label& entry = labels_[tensor.unsafeGetTensorImpl()];
    entry.tensor = tensor;
    if (const auto it = set_.parameters_.find(name); it != set_.parameters_.end())
      merge(it->second, entry.places);
  }

  Meeting meet(const std::vector<IValue>& inputs) const {
    Meeting meeting;
    for (const at::Tensor& tensor : tensors_in(inputs)) {
      const auto it = labels_.find(tensor.unsafeGetTensorImpl());
      if (it != labels_.end()) {
        meeting.is_labelled = true;
        merge(it->second.places, meeting.places);
      } else if (!meeting.data.defined()) {
        meeting.data = tensor;
      }
    }
    return meeting;
  }

  void for_each_node_tap(std::size_t number, bool is_input, const std::vector<IValue>& values) {
    const auto it = set_.nodes_.find(number);
    if (it == set_.nodes_.end()) return;
    for (const NodeTap& tap : it->second)
      if (tap.is_input == is_input)
        see({tap.tap},
            values.at(tap.value).isTensor() ? values[tap.value].toTensor() : at::Tensor());
  }

  void see(const std::vector<std::size_t>& taps, const at::Tensor& value) {
    for (const std::size_t tap : taps) {
      if (!value.defined())
        set_.fail(tap, fmt::format("the tap \"{}\" is no tensor", set_.taps_[tap]));
      reached_[tap] = true;
      observe_(tap, value);
    }
  }

  const TapSet& set_;
  const Observe& observe_;
  std::vector<bool> reached_;
  std::unordered_map<const c10::TensorImpl*, Label> labels_;
  Place pending_;
  bool pending_has_data_ = false;
  bool pending_is_labelled_ = false;
};

c10::IValue TapSet::run(std::vector<IValue> inputs, const Observe& observe) const {
  Observer observer(*this, observe);
  IValue result = runner_.run(std::move(inputs), &observer);
  observer.check_all_reached();
  return result;
}

}  // namespace weightsmith
