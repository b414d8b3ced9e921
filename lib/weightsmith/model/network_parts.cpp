#include "weightsmith/model/network_parts.h"

#include <ATen/Functions.h>
#include <spdlog/fmt/fmt.h>
#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/ir/ir.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <unordered_map>
#include <unordered_set>

#include "weightsmith/core/error.h"
#include "weightsmith/model/jit_runtime.h"
#include "weightsmith/tensor/tensor_map.h"

namespace weightsmith {
namespace {

using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Module;
using torch::jit::Node;
using torch::jit::Value;
namespace prim = c10::prim;
namespace attr = c10::attr;

using NodeList = std::vector<Node*>;

std::shared_ptr<torch::jit::CompilationUnit> new_unit() {
  return std::make_shared<torch::jit::CompilationUnit>();
}

Module new_module(const char* name, const std::shared_ptr<torch::jit::CompilationUnit>& unit) {
  Module module(std::string("__torch__.weightsmith.") + name, unit, /*shouldMangle=*/true);
  // Without this attribute train() and eval() would skip the module.
  module.register_attribute("training", c10::BoolType::get(), false);
  return module;
}

bool is_module_type(const c10::TypePtr& type) {
  const auto cls = type->cast<c10::ClassType>();
  return cls != nullptr && cls->is_module();
}

void for_each_node(const Block* block, const std::function<void(Node*)>& visit) {
  for (Node* node : const_cast<Block*>(block)->nodes()) {
    visit(node);
    for (const Block* inner : node->blocks()) for_each_node(inner, visit);
  }
}

void for_each_node(const NodeList& nodes, const std::function<void(Node*)>& visit) {
  for (Node* node : nodes) {
    visit(node);
    for (const Block* inner : node->blocks()) for_each_node(inner, visit);
  }
}

/// The attributes from the network to a module value; nothing when it is not reached from there.
std::optional<std::vector<std::string>> attribute_path(const Value* value, const Graph& graph) {
  std::vector<std::string> path;
  for (; value->node()->kind() == prim::GetAttr; value = value->node()->input(0))
    path.push_back(value->node()->s(attr::name));
  if (value != graph.inputs()[0]) return std::nullopt;
  std::reverse(path.begin(), path.end());
  return path;
}

/// "layer2.0.bn1.num_batches_tracked" of a node that reads or writes it.
std::string attribute_name(const Node* node, const Graph& graph) {
  const auto path = attribute_path(node->input(0), graph);
  if (!path) return "";
  std::string name;
  for (const std::string& part : *path) name += part + ".";
  return name + node->s(attr::name);
}

bool is_boundary(const Node* node) {
  return node->kind().ns().toUnqualString() == std::string("weightsmith");
}

/// Makes a module that holds the nodes of a list and the attributes that these use.
class PartBuilder {
 public:
  PartBuilder(const FlatGraph& source, const char* name)
      : source_(source), module_(new_module(name, new_unit())), graph_(std::make_shared<Graph>()) {
    self_ = graph_->addInput("self");
    values_[source.graph().inputs()[0]] = self_;
  }

  /// An argument of forward, in place of `value`.
  void add_argument(const Value* value, const std::string& name) {
    Value* argument = graph_->addInput(name);
    argument->setType(value->type());
    values_[value] = argument;
  }

  void add_nodes(const NodeList& nodes) {
    for_each_node(nodes, [this](Node* node) {
      if (node->kind() == prim::GetAttr || node->kind() == prim::SetAttr) add_attribute(node);
    });
    self_->setType(module_.type());
    for (Node* node : nodes) {
      Node* copy = graph_->appendNode(
          graph_->createClone(node, [this](Value* value) { return values_.at(value); }));
      for (std::size_t i = 0; i < node->outputs().size(); ++i)
        values_[node->output(i)] = copy->output(i);
    }
  }

  Graph& graph() { return *graph_; }
  Value* value(const Value* original) { return values_.at(original); }
  Module& module() { return module_; }
  Value* self() { return self_; }

  Module finish(const std::vector<Value*>& results) {
    for (Value* result : results) graph_->registerOutput(result);
    NodeList boundaries;
    for_each_node(graph_->block(), [&](Node* node) {
      if (is_boundary(node)) boundaries.push_back(node);
      // Modules have classes of their own here.
      if (node->kind() == prim::GetAttr && is_module_type(node->output()->type()))
        node->output()->setType(
            node->input(0)->type()->expectRef<c10::ClassType>().getAttribute(node->s(attr::name)));
    });
    for (Node* node : boundaries) node->destroy();
    graph_->lint();
    const auto unit = module_._ivalue()->compilation_unit();
    module_.type()->addMethod(unit->create_function(
        c10::QualifiedName(module_.type()->name().value(), "forward"), graph_));
    return module_;
  }

 private:
  void add_attribute(const Node* node) {
    const auto path = attribute_path(node->input(0), source_.graph());
    if (!path) return;  // of an object that the network itself made
    Module from = source_.module();
    Module to = module_;
    for (const std::string& part : *path) {
      to = child_of(to, part);
      from = from.attr(part).toModule();
    }
    const std::string& name = node->s(attr::name);
    const auto type = from.type();
    const std::size_t slot = type->getAttributeSlot(name);
    if (is_module_type(type->getAttribute(slot))) {
      child_of(to, name);
      return;
    }
    if (!to.hasattr(name))
      to.register_attribute(name, type->getAttribute(slot), from.attr(name),
                            type->is_parameter(slot), type->is_buffer(slot));
  }

  static Module child_of(Module& module, const std::string& name) {
    if (!module.hasattr(name))
      module.register_module(name, new_module("Part", module._ivalue()->compilation_unit()));
    return module.attr(name).toModule();
  }

  const FlatGraph& source_;
  Module module_;
  std::shared_ptr<Graph> graph_;
  Value* self_ = nullptr;
  std::unordered_map<const Value*, Value*> values_;
};

/// Reads nothing but constants and attributes and changes nothing, so that either side of a cut can
/// compute it.
class StaticNodes {
 public:
  explicit StaticNodes(const FlatGraph& flat) : graph_(flat.graph()) {
    for (Node* node : graph_.nodes())
      if (is_static(node)) nodes_.insert(node);
  }
  bool holds(const Node* node) const { return nodes_.count(node) != 0; }

 private:
  bool is_static(const Node* node) const {
    if (is_boundary(node) || !node->blocks().empty() || node->kind() == prim::SetAttr) return false;
    if (node->kind() == prim::Constant) return true;
    if (node->hasSideEffects() || node->isNondeterministic()) return false;
    if (const auto* schema = node->maybeSchema(); schema != nullptr && schema->is_mutable())
      return false;
    return std::all_of(node->inputs().begin(), node->inputs().end(), [this](const Value* value) {
      return value == graph_.inputs()[0] || holds(value->node());
    });
  }

  Graph& graph_;
  std::unordered_set<const Node*> nodes_;
};

/// Why a network cannot be cut somewhere.
struct NoCut {
  std::string reason;
};

/// Where a network is cut.
struct Cut {
  NodeList before;
  NodeList after;
  Value* value = nullptr;
};

class CutFinder {
 public:
  explicit CutFinder(const FlatGraph& flat) : flat_(flat), graph_(flat.graph()), static_(flat) {}

  /// The cut behind a submodule; throws NoCut.
  Cut find(const std::string& until) const {
    Cut cut;
    Node* leave = nullptr;
    for_each_node(graph_.block(), [&](Node* node) {
      const ModuleBoundary* boundary = flat_.boundary(node);
      if (boundary == nullptr || boundary->enter || boundary->module != until) return;
      if (leave != nullptr) throw NoCut{"the network calls it more than once"};
      if (node->owningBlock() != graph_.block())
        throw NoCut{"the network calls it in a loop or under a condition"};
      leave = node;
    });
    if (leave == nullptr) throw NoCut{"the network does not call a submodule of this name"};
    if (leave->inputs().size() != 1 ||
        !leave->input(0)->type()->isSubtypeOf(*c10::TensorType::get()))
      throw NoCut{
          fmt::format("it returns {}, not one tensor",
                      leave->inputs().empty() ? "nothing" : leave->input(0)->type()->str())};
    cut.value = leave->input(0);

    bool behind = false;
    for (Node* node : graph_.nodes()) {
      if (node == leave) behind = true;
      if (is_boundary(node)) continue;
      (behind ? cut.after : cut.before).push_back(node);
    }
    check_crossings(cut);
    NodeList all = cut.before;
    cut.before = with_what_they_read(all, cut.before, {cut.value});
    all.insert(all.end(), cut.after.begin(), cut.after.end());
    const auto results = graph_.outputs();
    cut.after = with_what_they_read(all, cut.after, {results.begin(), results.end()});
    check_state(cut);
    if (!holds_parameters(cut.before)) throw NoCut{"no parameter stands before its end"};
    if (!holds_parameters(cut.after)) throw NoCut{"no parameter is left behind it"};
    return cut;
  }

 private:
  /// The values of the graph's own block that `nodes` use.
  std::vector<const Value*> outer_values(const NodeList& nodes) const {
    std::vector<const Value*> values;
    const auto add = [&](const Value* value) {
      if (value->node()->owningBlock() == graph_.block() ||
          value->node() == graph_.block()->param_node())
        values.push_back(value);
    };
    for_each_node(nodes, [&](Node* node) {
      for (const Value* value : node->inputs()) add(value);
      for (const Block* block : node->blocks())
        for (const Value* value : block->outputs()) add(value);
    });
    return values;
  }

  void check_crossings(const Cut& cut) const {
    const std::unordered_set<const Node*> after(cut.after.begin(), cut.after.end());
    std::vector<const Value*> used = outer_values(cut.after);
    used.insert(used.end(), graph_.outputs().begin(), graph_.outputs().end());
    for (const Value* value : used) {
      if (value == cut.value || value == graph_.inputs()[0]) continue;
      const Node* node = value->node();
      if (after.count(node) != 0 || static_.holds(node)) continue;
      const auto& inputs = graph_.inputs();
      if (std::find(inputs.begin(), inputs.end(), value) != inputs.end())
        throw NoCut{"what comes behind it also reads the network's input"};
      throw NoCut{fmt::format("what comes behind it also reads a result of {}",
                              flat_.describe(flat_.number_of(node)))};
    }
  }

  /// What one side leaves behind in an attribute, the other must not read.
  void check_state(const Cut& cut) const {
    std::set<std::string> written;
    for_each_node(cut.before, [&](Node* node) {
      if (node->kind() == prim::SetAttr) written.insert(attribute_name(node, graph_));
    });
    for_each_node(cut.after, [&](Node* node) {
      if (node->kind() == prim::GetAttr && written.count(attribute_name(node, graph_)) != 0)
        throw NoCut{fmt::format("what comes behind it reads {}, which is set before",
                                attribute_name(node, graph_))};
    });
  }

  /// Of `all`, those among `nodes` that compute something, and the static ones that they and
  /// `results` need.
  NodeList with_what_they_read(const NodeList& all, const NodeList& nodes,
                               const std::vector<const Value*>& results) const {
    NodeList computing;
    for (Node* node : nodes)
      if (!static_.holds(node)) computing.push_back(node);
    std::unordered_set<const Node*> kept(computing.begin(), computing.end());
    std::vector<const Value*> open = outer_values(computing);
    open.insert(open.end(), results.begin(), results.end());
    while (!open.empty()) {
      const Node* node = open.back()->node();
      open.pop_back();
      if (!static_.holds(node) || !kept.insert(node).second) continue;
      for (const Value* input : node->inputs()) open.push_back(input);
    }
    NodeList ordered;
    for (Node* node : all)
      if (kept.count(node) != 0) ordered.push_back(node);
    return ordered;
  }

  bool holds_parameters(const NodeList& nodes) const {
    bool found = false;
    for_each_node(nodes, [&](Node* node) {
      found |= node->kind() == prim::GetAttr &&
               node->output()->type()->isSubtypeOf(*c10::TensorType::get()) &&
               node->input(0)->type()->expectRef<c10::ClassType>().is_parameter(
                   node->input(0)->type()->expectRef<c10::ClassType>().getAttributeSlot(
                       node->s(attr::name)));
    });
    return found;
  }

  const FlatGraph& flat_;
  Graph& graph_;
  StaticNodes static_;
};

std::vector<std::string> possible_cuts(const FlatGraph& flat) {
  const CutFinder finder(flat);
  std::vector<std::string> possible;
  for (const std::string& name : flat.called_modules()) try {
      finder.find(name);
      possible.push_back(name);
    } catch (const NoCut&) {
      continue;
    }
  return possible;
}

Module trunk_of(const FlatGraph& flat, const Cut& cut) {
  PartBuilder builder(flat, "Trunk");
  const auto inputs = flat.graph().inputs();
  for (std::size_t i = 1; i < inputs.size(); ++i)
    builder.add_argument(inputs[i], inputs.size() == 2 ? "x" : fmt::format("x{}", i));
  builder.add_nodes(cut.before);
  Graph& graph = builder.graph();
  static const auto kClone = c10::Symbol::fromQualString("aten::clone");
  Value* copy = graph
                    .insertNode(graph.create(
                        kClone, {builder.value(cut.value), graph.insertConstant(c10::IValue())}))
                    ->output();
  copy->setType(c10::TensorType::get());
  return builder.finish({copy});
}

Module head_of(const FlatGraph& flat, const Cut& cut) {
  PartBuilder builder(flat, "Head");
  builder.add_argument(cut.value, "x");
  builder.add_nodes(cut.after);
  std::vector<Value*> results;
  for (const Value* value : flat.graph().outputs()) results.push_back(builder.value(value));
  return builder.finish(results);
}

/// "x0: Tensor, x1: Optional[Tensor]" and "x0, x1".
std::pair<std::string, std::string> arguments_of(const Module& trunk) {
  std::string declared;
  std::string passed;
  const auto& arguments = trunk.get_method("forward").function().getSchema().arguments();
  for (std::size_t i = 1; i < arguments.size(); ++i) {
    declared += fmt::format(", {}: {}", arguments[i].name(), arguments[i].type()->annotation_str());
    passed += (i > 1 ? ", " : "") + arguments[i].name();
  }
  return {declared, passed};
}

Module join_heads(const Module& trunk, const std::vector<HeadPart>& heads, bool as_tuple) {
  const auto unit = new_unit();
  Module network = new_module("PartlyMerged", unit);
  Module children = new_module("Heads", unit);
  Module units = new_module("Units", unit);
  network.register_module("trunk", trunk);
  const auto [declared, passed] = arguments_of(trunk);
  std::string source =
      fmt::format("def forward(self{}):\n    x = self.trunk.forward({})\n", declared, passed);
  std::string results;
  for (std::size_t i = 0; i < heads.size(); ++i) {
    children.register_module(std::to_string(i), heads[i].head);
    std::string read = "x";
    Module own = new_module("HeadUnits", unit);
    for (const Selection& selection : heads[i].reads) {
      own.register_buffer(std::to_string(selection.dim), selection.index);
      read = fmt::format("torch.index_select({}, {}, getattr(getattr(self.units, \"{}\"), \"{}\"))",
                         read, selection.dim, i, selection.dim);
    }
    // A head may work in place.
    if (heads[i].reads.empty() && i + 1 < heads.size()) read = "torch.clone(x)";
    if (!heads[i].reads.empty()) units.register_module(std::to_string(i), own);
    source += fmt::format("    y{} = getattr(self.heads, \"{}\").forward({})\n", i, i, read);
    results += fmt::format("{}y{}", i > 0 ? ", " : "", i);
  }
  network.register_module("heads", children);
  network.register_module("units", units);
  source += as_tuple ? fmt::format("    return ({},)\n", results)
                     : fmt::format("    return {}\n", results);
  try {
    network.define(source);
  } catch (...) {
    throw_jit_error(ErrorKind::kInternal, "join_network", "the parts do not fit together");
  }
  return network;
}

}  // namespace

NetworkParts cut_network(const Module& module, const std::string& where, const std::string& until) {
  const FlatGraph flat(module, where);
  try {
    const Cut cut = CutFinder(flat).find(until);
    return {trunk_of(flat, cut), head_of(flat, cut)};
  } catch (const NoCut& no) {
    const std::vector<std::string> possible = possible_cuts(flat);
    throw Error(ErrorKind::kInput, where,
                fmt::format("cannot be cut behind \"{}\": {}", until, no.reason),
                possible.empty() ? "its graph shows no submodule that it could be cut behind"
                                 : "it can be cut behind " + join_some(possible, 20));
  }
}

std::vector<std::string> possible_cuts(const Module& module, const std::string& where) {
  return possible_cuts(FlatGraph(module, where));
}

ProbedNetwork add_probe(const Module& trunk, const std::string& where, const at::Tensor& weight) {
  const FlatGraph flat(trunk, where);
  const Graph& original = flat.graph();
  PartBuilder builder(flat, "ProbedTrunk");
  std::string name = "probe";
  while (trunk.hasattr(name)) name += "_";
  builder.module().register_parameter(name, weight, /*is_buffer=*/false);
  for (std::size_t i = 1; i < original.inputs().size(); ++i)
    builder.add_argument(original.inputs()[i], fmt::format("x{}", i));
  NodeList nodes;
  for (Node* node : const_cast<Graph&>(original).nodes()) nodes.push_back(node);
  builder.add_nodes(nodes);

  Graph& graph = builder.graph();
  const auto insert = [&graph](const char* kind, const std::vector<Value*>& inputs) {
    Value* output =
        graph.insertNode(graph.create(c10::Symbol::fromQualString(kind), inputs))->output();
    output->setType(c10::TensorType::get());
    return output;
  };
  Value* parameter = graph.insertGetAttr(builder.self(), name);
  Value* weighted = insert("aten::mul", {builder.value(original.outputs()[0]), parameter});
  std::vector<std::int64_t> dims(weight.dim());
  for (std::size_t i = 0; i < dims.size(); ++i) dims[i] = static_cast<std::int64_t>(i) + 1;
  Value* sum =
      insert("aten::sum", {weighted, graph.insertConstant(c10::List<std::int64_t>(dims)),
                           graph.insertConstant(false), graph.insertConstant(c10::IValue())});
  Module network = builder.finish({sum});
  const std::size_t last = flat.number_of(original.outputs()[0]->node());
  return {network, name, fmt::format("#{}/input.0", last)};
}

Module join_network(const Module& trunk, const std::vector<HeadPart>& heads) {
  WS_CHECK(!heads.empty());
  return join_heads(trunk, heads, /*as_tuple=*/true);
}

Module join_network(const Module& trunk, const HeadPart& head) {
  return join_heads(trunk, {head}, /*as_tuple=*/false);
}

}  // namespace weightsmith
