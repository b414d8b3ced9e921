#include "weightsmith/model/graph_difference.h"

#include <ATen/ops/equal.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/ir/ir.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <sstream>
#include <string_view>
#include <utility>

namespace weightsmith {
namespace {

using c10::IValue;
using torch::jit::Block;
using torch::jit::Node;
using torch::jit::Value;
namespace prim = c10::prim;
namespace attr = c10::attr;

bool same_value(const IValue& a, const IValue& b) {
  const auto same_elements = [](const auto& x, const auto& y) {
    return std::equal(x.begin(), x.end(), y.begin(), y.end(),
                      [](const IValue& u, const IValue& v) { return same_value(u, v); });
  };
  if (a.isTensor() && b.isTensor()) {
    const at::Tensor& x = a.toTensor();
    const at::Tensor& y = b.toTensor();
    if (!x.defined() || !y.defined()) return x.defined() == y.defined();
    return x.scalar_type() == y.scalar_type() && x.sizes() == y.sizes() &&
           at::equal(x.cpu(), y.cpu());
  }
  if (a.isList() && b.isList()) return same_elements(a.toListRef(), b.toListRef());
  if (a.isTuple() && b.isTuple())
    return same_elements(a.toTupleRef().elements(), b.toTupleRef().elements());
  if (a.isObject() || b.isObject() || a.isGenericDict() || b.isGenericDict())
    return a.isObject() == b.isObject() && a.isGenericDict() == b.isGenericDict();
  return a == b;
}

std::string text_of(const IValue& value) {
  if (value.isTensor() && value.toTensor().defined() && value.toTensor().numel() == 1)
    return fmt::format("{}", value.toTensor().item<double>());
  if (value.isTensor() && value.toTensor().defined())
    return fmt::format("a constant of shape [{}]", fmt::join(value.toTensor().sizes(), ", "));
  std::ostringstream out;
  out << value;
  std::string text = out.str();
  constexpr std::size_t kLongest = 40;
  return text.size() > kLongest ? text.substr(0, kLongest - 3) + "..." : text;
}

/// An argument without influence on what a network in eval mode computes.
bool is_immaterial(const Node* node, std::size_t input) {
  const c10::FunctionSchema* schema = node->maybeSchema();
  if (schema == nullptr || input >= schema->arguments().size()) return false;
  const std::string& name = schema->arguments()[input].name();
  constexpr std::array<std::string_view, 5> kKernels{"cudnn_enabled", "cudnn_enable", "benchmark",
                                                     "deterministic", "allow_tf32"};
  if (std::find(kKernels.begin(), kKernels.end(), name) != kKernels.end()) return true;
  return (name == "p" && schema->name().find("dropout") != std::string::npos) ||
         (name == "momentum" && schema->name().find("_norm") != std::string::npos) ||
         name == "dropout";  // of recurrent layers
}

/// Whether a value goes to such an argument, as it is or as one outcome of an `if`. Where it is
/// looked at besides (dropout checks that its probability is one) that is immaterial as well.
bool reaches_immaterial(const Value* value) {
  return std::any_of(value->uses().begin(), value->uses().end(), [](const auto& use) {
    if (is_immaterial(use.user, use.offset)) return true;
    if (use.user->kind() != prim::Return) return false;
    const Node* owner = use.user->owningBlock()->owningNode();
    return owner != nullptr && owner->kind() == prim::If &&
           reaches_immaterial(owner->outputs()[use.offset]);
  });
}

/// What a value is, seen from the network: a constant, something of the module's, or a result.
struct Origin {
  std::optional<IValue> constant;
  std::string path;  // of an attribute that is no constant
};

/// One of the two networks.
class Side {
 public:
  explicit Side(const FlatGraph& graph) : graph_(graph), self_(graph.graph().inputs().at(0)) {
    const auto add = [this](const std::string& name, const at::Tensor& tensor) {
      state_.insert(name);
      if (tensor.defined() && tensor.numel() > 0)
        state_at_.emplace(std::pair(tensor.data_ptr(), tensor.sizes().vec()), name);
    };
    for (const auto& item : graph.module().named_parameters()) add(item.name, item.value);
    for (const auto& item : graph.module().named_buffers()) add(item.name, item.value);
    for (const Node* node : graph.nodes())
      if (node->kind() == prim::SetAttr)
        if (const auto object = path_of(node->input(0)))
          changed_.insert(join(*object, node->s(attr::name)));
  }

  /// Nodes that compute something, in order.
  std::vector<const Node*> operators(const Block* block) const {
    std::vector<const Node*> found;
    for (const Node* node : const_cast<Block*>(block)->nodes())
      if (graph_.boundary(node) == nullptr && node->kind() != prim::Constant &&
          node->kind() != c10::aten::warn &&  // numbered anew in every process
          !(node->kind() == prim::GetAttr && path_of(node->output())))
        found.push_back(node);
    return found;
  }

  Origin origin(const Value* value) const {
    Origin origin;
    if (value->node()->kind() == prim::Constant) {
      if (const auto constant = torch::jit::toIValue(value)) origin.constant = *constant;
      return origin;
    }
    const auto path = path_of(value);
    if (!path) return origin;
    // Of tensors, those that are merged; attributes that a forward pass changes are no constants.
    const IValue held = value_at(*path);
    if (held.isObject() || state_.contains(*path) || changed_.contains(*path))
      origin.path = "self." + *path;
    else if (const auto names = names_of_parameters(held))
      origin.path = *names;
    else
      origin.constant = held;
    return origin;
  }

  std::string describe(const Node* node) const { return graph_.describe(graph_.number_of(node)); }

  std::string describe(const Value* value) const {
    const Origin from = origin(value);
    if (from.constant) return text_of(*from.constant);
    if (!from.path.empty()) return from.path;
    return value->node()->kind() == prim::Param ? "an input"
                                                : "the result of " + describe(value->node());
  }

 private:
  static std::string join(const std::string& path, const std::string& name) {
    return path.empty() ? name : path + "." + name;
  }

  /// Of an attribute of the network's module or of one below it.
  std::optional<std::string> path_of(const Value* value) const {
    if (value == self_) return "";
    if (value->node()->kind() != prim::GetAttr) return std::nullopt;
    const auto object = path_of(value->node()->input(0));
    if (!object) return std::nullopt;
    return join(*object, value->node()->s(attr::name));
  }

  /// Of a list of parameters, as recurrent layers keep theirs.
  std::optional<std::string> names_of_parameters(const IValue& value) const {
    if (!value.isTensorList() || value.toTensorVector().empty()) return std::nullopt;
    std::string names;
    for (const at::Tensor& tensor : value.toTensorVector()) {
      const auto it = tensor.defined()
                          ? state_at_.find(std::pair(tensor.data_ptr(), tensor.sizes().vec()))
                          : state_at_.end();
      if (it == state_at_.end()) return std::nullopt;
      names += (names.empty() ? "[" : ", ") + it->second;
    }
    return names + "]";
  }

  IValue value_at(const std::string& path) const {
    IValue value = graph_.module()._ivalue();
    for (std::size_t begin = 0; begin < path.size();) {
      const std::size_t end = std::min(path.find('.', begin), path.size());
      value = value.toObjectRef().getAttr(path.substr(begin, end - begin));
      begin = end + 1;
    }
    return value;
  }

  const FlatGraph& graph_;
  const Value* self_;
  std::set<std::string> state_;
  std::map<std::pair<const void*, std::vector<std::int64_t>>, std::string> state_at_;
  std::set<std::string> changed_;
};

class Comparison {
 public:
  Comparison(const FlatGraph& a, const FlatGraph& b) : a_(a), b_(b) {}

  using Difference = std::optional<std::string>;

  Difference compare(const Block* a, const Block* b) {
    if (a->inputs().size() != b->inputs().size())
      return fmt::format("{} inputs, there {}", a->inputs().size(), b->inputs().size());
    match(a->inputs(), b->inputs());
    const auto mine = a_.operators(a);
    const auto theirs = b_.operators(b);
    for (std::size_t i = 0; i < std::min(mine.size(), theirs.size()); ++i)
      if (auto difference = compare(mine[i], theirs[i])) return difference;
    if (mine.size() > theirs.size())
      return fmt::format("{}, there nothing more", a_.describe(mine[theirs.size()]));
    if (theirs.size() > mine.size())
      return fmt::format("nothing more, there {}", b_.describe(theirs[mine.size()]));
    if (a->outputs().size() != b->outputs().size())
      return fmt::format("{} results, there {}", a->outputs().size(), b->outputs().size());
    return compare(a->outputs(), b->outputs(), [](std::size_t) { return std::string("result"); });
  }

 private:
  using Values = at::ArrayRef<const Value*>;

  Difference compare(const Node* a, const Node* b) {
    if (a->kind() != b->kind() || a->outputs().size() != b->outputs().size() ||
        a->blocks().size() != b->blocks().size() || !same_attributes(a, b))
      return fmt::format("{}, there {}", a_.describe(a), b_.describe(b));
    const auto place = [&](std::size_t i) {
      const c10::FunctionSchema* schema = a->maybeSchema();
      return fmt::format("{}: {}", a_.describe(a),
                         schema != nullptr && i < schema->arguments().size()
                             ? schema->arguments()[i].name()
                             : fmt::format("input {}", i));
    };
    if (a->inputs().size() != b->inputs().size())
      return fmt::format("{}: {} inputs, there {}", a_.describe(a), a->inputs().size(),
                         b->inputs().size());
    if (auto difference = compare(a->inputs(), b->inputs(), place)) return difference;
    for (std::size_t i = 0; i < a->blocks().size(); ++i)
      if (auto difference = compare(a->blocks()[i], b->blocks()[i])) return difference;
    match(a->outputs(), b->outputs());
    return std::nullopt;
  }

  template <class Place>
  Difference compare(Values a, Values b, const Place& place) {
    for (std::size_t i = 0; i < a.size(); ++i)
      if (!same(a[i], b[i]))
        return fmt::format("{} is {}, there {}", place(i), a_.describe(a[i]), b_.describe(b[i]));
    return std::nullopt;
  }

  bool same(const Value* a, const Value* b) const {
    const Origin from_a = a_.origin(a);
    const Origin from_b = b_.origin(b);
    if (from_a.constant && from_b.constant)
      return same_value(*from_a.constant, *from_b.constant) ||
             (reaches_immaterial(a) && reaches_immaterial(b));
    if (from_a.constant || from_b.constant || from_a.path != from_b.path) return false;
    const auto it = counterpart_.find(a);
    return !from_a.path.empty() || (it != counterpart_.end() && it->second == b);
  }

  /// Of a node itself ("TupleIndex[index=1]"); those of names of types are left out.
  static bool same_attributes(const Node* a, const Node* b) {
    using Kind = torch::jit::AttributeKind;
    const auto names = a->attributeNames();
    if (names.size() != b->attributeNames().size()) return false;
    return std::all_of(names.begin(), names.end(), [&](const c10::Symbol name) {
      if (!b->hasAttribute(name) || a->kindOf(name) != b->kindOf(name)) return false;
      switch (a->kindOf(name)) {
        case Kind::i:
          return a->i(name) == b->i(name);
        case Kind::f:
          return a->f(name) == b->f(name);
        case Kind::s:
          return a->s(name) == b->s(name);
        case Kind::is:
          return a->is(name) == b->is(name);
        case Kind::ss:
          return a->ss(name) == b->ss(name);
        default:
          return true;
      }
    });
  }

  void match(Values a, Values b) {
    for (std::size_t i = 0; i < a.size(); ++i) counterpart_[a[i]] = b[i];
  }

  Side a_;
  Side b_;
  std::unordered_map<const Value*, const Value*> counterpart_;
};

}  // namespace

std::optional<std::string> graph_difference(const FlatGraph& graph, const FlatGraph& other) {
  return Comparison(graph, other).compare(graph.graph().block(), other.graph().block());
}

}  // namespace weightsmith
