#include "weightsmith/model/graph_runner.h"

#include <ATen/core/grad_mode.h>
#include <ATen/core/stack.h>
#include <spdlog/fmt/fmt.h>
#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/ir/ir.h>
#include <torch/csrc/jit/runtime/operator.h>

#include <algorithm>
#include <array>
#include <unordered_map>
#include <utility>

#include "weightsmith/core/error.h"
#include "weightsmith/model/jit_runtime.h"

namespace weightsmith {
namespace {

using c10::IValue;
using torch::jit::Block;
using torch::jit::Node;
using torch::jit::Stack;
using torch::jit::Value;
namespace prim = c10::prim;
namespace attr = c10::attr;

using Action = std::function<void(Stack&)>;

/// One node ready to run. Values live in numbered registers of a frame.
struct Step {
  enum class Kind { kOperation, kIf, kLoop, kBoundary };
  Kind kind = Kind::kOperation;
  std::size_t number = 0;
  const ModuleBoundary* boundary = nullptr;
  std::vector<std::size_t> inputs;
  std::vector<bool> is_last_use;  // of each input: the register may be emptied
  std::vector<std::size_t> outputs;
  std::vector<std::size_t> release;  // registers without a use after this step
  Action action;
  std::vector<struct Routine> routines;  // blocks
};

/// The steps of a block.
struct Routine {
  std::vector<std::size_t> parameters;
  std::vector<Step> steps;
  std::vector<std::size_t> results;
  std::vector<std::size_t> release;  // results that are defined here
};

std::vector<IValue> elements_of(const IValue& tuple) {
  const auto& elements = tuple.toTupleRef().elements();
  return std::vector<IValue>(elements.begin(), elements.end());
}

bool is_batch_norm(const std::string& name) {
  return name == "aten::batch_norm" || name == "aten::_batch_norm_impl_index" ||
         name == "aten::native_batch_norm" || name == "aten::cudnn_batch_norm";
}

/// Makes the registers and steps of a graph.
class Compiler {
 public:
  Compiler(const FlatGraph& graph, const GraphRunnerOptions& options)
      : graph_(graph), options_(options) {}

  Routine compile(const Block* block) {
    Routine routine;
    for (const Value* v : block->inputs()) routine.parameters.push_back(register_of(v));
    for (Node* node : const_cast<Block*>(block)->nodes())
      if (node->kind() == prim::Constant)
        add_constant(node);
      else
        routine.steps.push_back(step(node));
    for (const Value* v : block->outputs()) {
      routine.results.push_back(register_of(v));
      if (v->node()->owningBlock() == block && v->node()->kind() != prim::Constant)
        routine.release.push_back(register_of(v));
    }
    return routine;
  }

  std::vector<IValue> take_registers() { return std::move(initial_); }

 private:
  std::size_t register_of(const Value* value) {
    const auto [it, is_new] = registers_.emplace(value, initial_.size());
    if (is_new) initial_.emplace_back();
    return it->second;
  }

  void add_constant(const Node* node) {
    if (node->outputs().empty()) return;
    const std::size_t slot = register_of(node->output());
    if (auto value = torch::jit::toIValue(node->output())) initial_[slot] = *value;
  }

  /// True when no use of `value` runs after `node`, a node of the block that defines it (or of the
  /// block `value` is a parameter of).
  static bool ends_at(const Value* value, const Node* node) {
    const Block* block = node->owningBlock();
    if (value->node()->kind() == prim::Constant || value->node()->owningBlock() != block)
      return false;
    for (const auto& use : value->uses()) {
      const Node* user = use.user;
      while (user->owningBlock() != block) user = user->owningBlock()->owningNode();
      if (user->kind() == prim::Return || (user != node && user->isAfter(node))) return false;
    }
    return true;
  }

  /// True when the register of an input may be emptied as the node begins.
  static bool is_last_use(const Node* node, std::size_t input) {
    const Value* value = node->input(input);
    if (!ends_at(value, node)) return false;
    // Neither a later input of the same node nor a node of its blocks needs the value.
    return std::none_of(value->uses().begin(), value->uses().end(), [&](const auto& use) {
      return use.user == node ? use.offset > input : is_inside(use.user, node);
    });
  }

  static bool is_inside(const Node* inner, const Node* node) {
    while (inner != nullptr && inner != node) inner = inner->owningBlock()->owningNode();
    return inner == node;
  }

  void collect_ending(const Node* at, const Node* node, std::vector<std::size_t>& release) {
    const auto consider = [&](const Value* value) {
      const std::size_t slot = register_of(value);
      if (ends_at(value, at) && std::find(release.begin(), release.end(), slot) == release.end())
        release.push_back(slot);
    };
    for (const Value* v : node->inputs()) consider(v);
    for (const Block* block : node->blocks()) {
      for (const Node* inner : block->nodes()) collect_ending(at, inner, release);
      for (const Value* v : block->outputs()) consider(v);
    }
  }

  Step step(Node* node) {
    Step step;
    for (const Value* v : node->inputs()) step.inputs.push_back(register_of(v));
    for (const Value* v : node->outputs()) step.outputs.push_back(register_of(v));
    collect_ending(node, node, step.release);
    for (const Value* v : node->outputs())
      if (v->uses().empty()) step.release.push_back(register_of(v));
    for (std::size_t i = 0; i < step.inputs.size(); ++i)
      step.is_last_use.push_back(is_last_use(node, i));
    step.boundary = graph_.boundary(node);
    if (step.boundary != nullptr) {
      step.kind = Step::Kind::kBoundary;
      return step;
    }
    step.number = graph_.number_of(node);
    for (const Block* block : node->blocks()) step.routines.push_back(compile(block));
    if (node->kind() == prim::If)
      step.kind = Step::Kind::kIf;
    else if (node->kind() == prim::Loop)
      step.kind = Step::Kind::kLoop;
    else
      step.action = action(node, step.number);
    return step;
  }

  /// Nodes that the interpreter of LibTorch treats itself, because they have no operator or one
  /// that depends on the node's type.
  Action own_action(Node* node, std::size_t number) {
    static const auto kIsGradEnabled = c10::Symbol::fromQualString("aten::is_grad_enabled");
    const auto kind = node->kind();
    if (kind == prim::GetAttr) {
      const auto slot =
          node->input(0)->type()->expectRef<c10::ClassType>().getAttributeSlot(node->s(attr::name));
      return [slot](Stack& stack) {
        IValue value = stack.back().toObjectRef().getSlot(slot);
        stack.back() = std::move(value);
      };
    }
    if (kind == prim::SetAttr) {
      const auto slot =
          node->input(0)->type()->expectRef<c10::ClassType>().getAttributeSlot(node->s(attr::name));
      return [slot](Stack& stack) {
        IValue value = torch::jit::pop(stack);
        torch::jit::pop(stack).toObject()->setSlot(slot, std::move(value));
      };
    }
    if (kind == prim::TupleConstruct) {
      const auto type = node->output()->type()->expect<c10::TupleType>();
      return [type](Stack& stack) {
        auto tuple = type->name() ? c10::ivalue::Tuple::createNamed(std::move(stack), type)
                                  : c10::ivalue::Tuple::create(std::move(stack));
        stack.assign(1, IValue(std::move(tuple)));
      };
    }
    if (kind == prim::TupleUnpack) return [](Stack& stack) { stack = elements_of(stack.front()); };
    if (kind == prim::TupleSlice) {
      const auto begin = static_cast<std::ptrdiff_t>(node->i(attr::beg));
      const auto end = static_cast<std::ptrdiff_t>(node->i(attr::end));
      return [begin, end](Stack& stack) {
        const std::vector<IValue> all = elements_of(stack.front());
        auto slice =
            c10::ivalue::Tuple::create(std::vector<IValue>(all.begin() + begin, all.begin() + end));
        stack.assign(1, IValue(std::move(slice)));
      };
    }
    if (kind == prim::ListConstruct) {
      const auto element = node->output()->type()->expect<c10::ListType>()->getElementType();
      return [element](Stack& stack) {
        c10::impl::GenericList list(element);
        list.reserve(stack.size());
        for (IValue& value : stack) list.emplace_back(std::move(value));
        stack.assign(1, IValue(std::move(list)));
      };
    }
    if (kind == prim::ListUnpack) {
      const std::size_t outputs = node->outputs().size();
      return [outputs, where = place(number)](Stack& stack) {
        stack = stack.front().toList().vec();
        if (stack.size() != outputs)
          throw Error(ErrorKind::kInput, where,
                      fmt::format("a list of {} values where the network expects {}", stack.size(),
                                  outputs));
      };
    }
    if (kind == prim::DictConstruct) {
      const auto type = node->output()->type()->expect<c10::DictType>();
      return [type](Stack& stack) {
        c10::impl::GenericDict dict(type->getKeyType(), type->getValueType());
        for (std::size_t i = 0; i + 1 < stack.size(); i += 2)
          dict.insert_or_assign(std::move(stack[i]), std::move(stack[i + 1]));
        stack.assign(1, IValue(std::move(dict)));
      };
    }
    if (kind == prim::CreateObject) {
      const auto type = node->output()->type()->expect<c10::ClassType>();
      return [type](Stack& stack) {
        stack.emplace_back(c10::ivalue::Object::create(
            c10::StrongTypePtr(type->compilation_unit(), type), type->numAttributes()));
      };
    }
    if (kind == prim::isinstance) {
      const auto types = node->tys(attr::types);
      return [types](Stack& stack) {
        const auto type = stack.front().type();
        const bool is = std::any_of(types.begin(), types.end(), [&](const auto& candidate) {
          return type->isSubtypeOf(*candidate);
        });
        stack.assign(1, is);
      };
    }
    if (kind == prim::Enter || kind == prim::Exit) {
      const std::string method = kind == prim::Enter ? "__enter__" : "__exit__";
      const auto type = node->input(0)->type()->expect<c10::ClassType>();
      torch::jit::Function* function = &type->getMethod(method);
      check_operators(torch::jit::toGraphFunction(*function).optimized_graph()->block(), number);
      return [function](Stack& stack) {
        // __exit__ also takes an exception's type, value and traceback: always None here.
        stack.resize(function->getSchema().arguments().size());
        stack.assign(1, (*function)(std::move(stack)));
      };
    }
    if (kind == prim::unchecked_cast) return [](Stack&) {};
    if (kind == prim::RaiseException) {
      const std::string where = place(number);
      return [where](Stack& stack) {
        const IValue message = stack.front();
        throw Error(ErrorKind::kInput, where,
                    message.isString() ? message.toStringRef() : "the network raised an exception");
      };
    }
    // Neither belongs on the standard output or error of a tool.
    if (kind == c10::aten::warn || kind == prim::Print) return [](Stack& stack) { stack.clear(); };
    if (kind == kIsGradEnabled && options_.is_grad_enabled) {
      const bool answer = *options_.is_grad_enabled;
      return [answer](Stack& stack) { stack.assign(1, answer); };
    }
    return nullptr;
  }

  void check_allowed(const Node* node, std::size_t number) const {
    const std::string name = node->kind().toQualString();
    // Sorting a list of objects calls a method of their class, whose operators nobody has seen.
    const bool calls_back = (name == "aten::sort" || name == "aten::sorted") &&
                            node->maybeSchema() != nullptr &&
                            node->maybeSchema()->overload_name() == "any";
    if (options_.trust || (is_allowed_operator(name) && !calls_back)) return;
    throw Error(ErrorKind::kInput, place(number),
                fmt::format("the network uses {}, which is more than arithmetic", name),
                "run with --trust if you trust the file");
  }

  /// check_allowed for a method that LibTorch's interpreter runs; its calls are inlined.
  void check_operators(const Block* block, std::size_t number) const {
    for (const Node* node : block->nodes()) {
      check_allowed(node, number);
      for (const Block* inner : node->blocks()) check_operators(inner, number);
    }
  }

  Action action(Node* node, std::size_t number) {
    if (Action own = own_action(node, number)) return own;
    check_allowed(node, number);
    if (node->maybeOperator() == nullptr)
      throw Error(ErrorKind::kInput, place(number), "this LibTorch has no such operator",
                  "export the network again, traced rather than scripted");
    torch::jit::Operation operation = node->getOperation();
    const c10::FunctionSchema& schema = node->getOperator().schema();
    // Operators of any number of arguments are told it; this one only looks as if it were one.
    if (schema.is_vararg() && node->kind() != prim::tolist) {
      const auto count = static_cast<std::int64_t>(node->inputs().size());
      return [operation, count](Stack& stack) mutable {
        stack.emplace_back(count);
        operation(stack);
      };
    }
    if (options_.batch_norm_training && is_batch_norm(schema.name())) {
      const auto index = schema.argumentIndexWithName("training");
      WS_CHECK(index.has_value(), schema.name());
      return [operation, at = *index, on = *options_.batch_norm_training](Stack& stack) mutable {
        stack.at(at) = on;
        operation(stack);
      };
    }
    return [operation](Stack& stack) mutable { operation(stack); };
  }

  std::string place(std::size_t number) const {
    return fmt::format("{}: {}", graph_.where(), graph_.describe(number));
  }

  const FlatGraph& graph_;
  const GraphRunnerOptions& options_;
  std::unordered_map<const Value*, std::size_t> registers_;
  std::vector<IValue> initial_;  // constants; the rest empty
};

}  // namespace

struct GraphRunner::Program {
  Routine main;
  std::vector<IValue> registers;
};

/// One run: the registers and the observer.
class GraphRunner::Frame {
 public:
  Frame(const FlatGraph& graph, std::vector<IValue> registers, NodeObserver* observer)
      : graph_(graph), registers_(std::move(registers)), observer_(observer) {}

  std::vector<IValue> run(const Routine& routine, std::vector<IValue> arguments) {
    for (std::size_t i = 0; i < routine.parameters.size(); ++i)
      registers_[routine.parameters[i]] = std::move(arguments[i]);
    for (const Step& step : routine.steps) run(step);
    std::vector<IValue> results;
    results.reserve(routine.results.size());
    for (const std::size_t slot : routine.results) results.push_back(registers_[slot]);
    for (const std::size_t slot : routine.release) registers_[slot] = IValue();
    return results;
  }

 private:
  void run(const Step& step) {
    Stack stack;
    stack.reserve(step.inputs.size() + 1);
    for (std::size_t i = 0; i < step.inputs.size(); ++i) {
      IValue& value = registers_[step.inputs[i]];
      if (step.is_last_use[i])
        stack.push_back(std::move(value));
      else
        stack.push_back(value);
    }
    switch (step.kind) {
      case Step::Kind::kBoundary:
        if (observer_ != nullptr) observer_->at_boundary(*step.boundary, stack);
        break;
      case Step::Kind::kOperation:
        run_operation(step, stack);
        break;
      case Step::Kind::kIf: {
        if (observer_ != nullptr) observer_->before(step.number, stack);
        const bool condition = stack.at(0).toBool();
        finish(step, {}, run(step.routines[condition ? 0 : 1], {}));
        break;
      }
      case Step::Kind::kLoop:
        if (observer_ != nullptr) observer_->before(step.number, stack);
        finish(step, {}, run_loop(step.routines[0], std::move(stack)));
        break;
    }
    for (const std::size_t slot : step.release) registers_[slot] = IValue();
  }

  void run_operation(const Step& step, Stack& stack) {
    std::vector<IValue> inputs;
    if (observer_ != nullptr) {
      observer_->before(step.number, stack);
      inputs = stack;
    }
    const auto place = [&] {
      return fmt::format("{}: {}", graph_.where(), graph_.describe(step.number));
    };
    try {
      step.action(stack);
    } catch (const Error&) {
      throw;
    } catch (const c10::Error& e) {
      const std::string what = e.what_without_backtrace();
      if (is_out_of_memory(what))
        throw Error(ErrorKind::kNumeric, place(), what, "use smaller batches");
      throw Error(ErrorKind::kInput, place(), what, input_remedy(what));
    } catch (const std::exception& e) {
      throw Error(ErrorKind::kInput, place(), e.what());
    }
    WS_CHECK(stack.size() == step.outputs.size(), graph_.describe(step.number));
    finish(step, inputs, std::move(stack));
  }

  /// inputs: trip count, first condition, carried values...; results of the body: condition,
  /// carried values...
  std::vector<IValue> run_loop(const Routine& body, std::vector<IValue> values) {
    const std::int64_t trips = values.at(0).toInt();
    bool condition = values.at(1).toBool();
    values.erase(values.begin());
    for (std::int64_t i = 0; i < trips && condition; ++i) {
      values[0] = i;
      values = run(body, std::move(values));
      condition = values.at(0).toBool();
    }
    values.erase(values.begin());
    return values;
  }

  void finish(const Step& step, const std::vector<IValue>& inputs, std::vector<IValue> outputs) {
    if (observer_ != nullptr) observer_->after(step.number, inputs, outputs);
    for (std::size_t i = 0; i < outputs.size(); ++i)
      registers_[step.outputs[i]] = std::move(outputs[i]);
  }

  const FlatGraph& graph_;
  std::vector<IValue> registers_;
  NodeObserver* observer_;
};

void NodeObserver::before(std::size_t, std::vector<IValue>&) {}
void NodeObserver::after(std::size_t, const std::vector<IValue>&, const std::vector<IValue>&) {}
void NodeObserver::at_boundary(const ModuleBoundary&, const std::vector<IValue>&) {}

GraphRunner::GraphRunner(const torch::jit::Module& module, std::string where,
                         GraphRunnerOptions options)
    : graph_(std::make_unique<FlatGraph>(module, std::move(where))),
      program_(std::make_unique<Program>()) {
  Compiler compiler(*graph_, options);
  program_->main = compiler.compile(graph_->graph().block());
  program_->registers = compiler.take_registers();
}

GraphRunner::~GraphRunner() = default;
GraphRunner::GraphRunner(GraphRunner&&) noexcept = default;
GraphRunner& GraphRunner::operator=(GraphRunner&&) noexcept = default;

IValue GraphRunner::run(std::vector<IValue> inputs, NodeObserver* observer) const {
  inputs.insert(inputs.begin(), graph_->module()._ivalue());
  try {
    graph_->module().get_method("forward").function().getSchema().checkAndNormalizeInputs(inputs);
  } catch (const c10::Error& e) {
    throw Error(ErrorKind::kInput, graph_->where(), e.what_without_backtrace(),
                "give the inputs that its forward takes");
  } catch (const std::exception& e) {
    throw Error(ErrorKind::kInput, graph_->where(), e.what(),
                "give the inputs that its forward takes");
  }
  // A network that fails inside `with torch.no_grad()` must not leave it on.
  const c10::AutoGradMode restore(c10::GradMode::is_enabled());
  Frame frame(*graph_, program_->registers, observer);
  return frame.run(program_->main, std::move(inputs)).at(0);
}

bool is_allowed_operator(const std::string& name) {
  // Files, other processes, other machines, Python, and calls of what cannot be followed.
  constexpr std::array<const char*, 8> kForbidden{"aten::from_file",  "aten::load",
                                                  "aten::save",       "prim::CallFunction",
                                                  "prim::CallMethod", "prim::IgnoredPythonOp",
                                                  "prim::PythonOp",   "prim::fork"};
  if (std::find(kForbidden.begin(), kForbidden.end(), name) != kForbidden.end()) return false;
  if (name.starts_with("prim::rpc_")) return false;
  return name.starts_with("aten::") || name.starts_with("prim::");
}

}  // namespace weightsmith
