#include "weightsmith/model/pickle_reader.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <set>
#include <unordered_map>

#include "weightsmith/core/error.h"
#include "weightsmith/model/pickle_tokens.h"

namespace weightsmith {
namespace {

using Kind = PickleValue::Kind;

constexpr std::size_t kMaxValues = 4'000'000;
constexpr std::size_t kMaxDimensions = 64;

struct DtypeName {
  const char* storage;
  const char* dtype;
  at::ScalarType type;
};
constexpr std::array<DtypeName, 10> kDtypes{{
    {"torch.DoubleStorage", "torch.float64", at::kDouble},
    {"torch.FloatStorage", "torch.float32", at::kFloat},
    {"torch.HalfStorage", "torch.float16", at::kHalf},
    {"torch.BFloat16Storage", "torch.bfloat16", at::kBFloat16},
    {"torch.LongStorage", "torch.int64", at::kLong},
    {"torch.IntStorage", "torch.int32", at::kInt},
    {"torch.ShortStorage", "torch.int16", at::kShort},
    {"torch.CharStorage", "torch.int8", at::kChar},
    {"torch.ByteStorage", "torch.uint8", at::kByte},
    {"torch.BoolStorage", "torch.bool", at::kBool},
}};

/// Names that may be referred to or called without any effect on the weights.
const std::set<std::string_view> kHarmless{"torch.device",
                                           "torch.serialization._get_layout",
                                           "torch.strided",
                                           "torch.Tensor",
                                           "torch.nn.parameter.Parameter",
                                           "torch.storage.UntypedStorage",
                                           "torch.UntypedStorage",
                                           "torch.storage.TypedStorage",
                                           "torch.storage._UntypedStorage",
                                           "torch.storage._TypedStorage",
                                           "_codecs.encode",
                                           "torch.complex64",
                                           "torch.complex128"};

const std::set<std::string_view> kLists{"torch.Size", "__builtin__.set", "builtins.set",
                                        "__builtin__.list", "builtins.list"};
const std::set<std::string_view> kDicts{"collections.OrderedDict", "collections.defaultdict",
                                        "collections.Counter", "__builtin__.dict", "builtins.dict"};
const std::set<std::string_view> kTensors{"torch._utils._rebuild_tensor",
                                          "torch._utils._rebuild_tensor_v2",
                                          "torch._utils._rebuild_tensor_v3"};
const std::set<std::string_view> kParameters{"torch._utils._rebuild_parameter",
                                             "torch._utils._rebuild_parameter_with_state"};
constexpr std::string_view kFromType = "torch._tensor._rebuild_from_type_v2";

bool is_untyped_storage(std::string_view name) {
  return name.starts_with("torch.") && name.ends_with("UntypedStorage");
}

bool is_known(std::string_view name) {
  return kHarmless.count(name) != 0 || kLists.count(name) != 0 || kDicts.count(name) != 0 ||
         kTensors.count(name) != 0 || kParameters.count(name) != 0 || name == kFromType ||
         std::any_of(kDtypes.begin(), kDtypes.end(), [&](const DtypeName& entry) {
           return name == entry.storage || name == entry.dtype;
         });
}

}  // namespace

/// The stack machine. Containers stay open to change while the pickle is read, hence the
/// const-free pointers here.
class PickleMachine {
 public:
  PickleMachine(std::string_view bytes, const std::string& where)
      : tokens_(bytes, where), where_(where) {}

  PickleDocument run() {
    for (;;) {
      const PickleToken token = tokens_.next();
      if (token.op == PickleOp::kStop) break;
      step(token);
    }
    document_.root_ = pop();
    return std::move(document_);
  }

 private:
  using Value = PickleValue*;

  Value make(Kind kind) {
    if (document_.values_.size() >= kMaxValues) tokens_.fail("holds more than 4 million values");
    document_.values_.emplace_back().kind = kind;
    return &document_.values_.back();
  }
  Value make_text(Kind kind, std::string_view text) {
    const Value value = make(kind);
    value->text = text;
    return value;
  }
  void push(Value value) { stack_.push_back(value); }
  void push_integer(Kind kind, std::int64_t integer) {
    push(make(kind));
    stack_.back()->integer = integer;
  }

  Value pop() {
    check_stack(1);
    const Value value = stack_.back();
    stack_.pop_back();
    return value;
  }
  /// Everything above the last mark must be there still.
  void check_stack(std::size_t count) const {
    const std::size_t floor = marks_.empty() ? 0 : marks_.back();
    if (stack_.size() < floor + count) tokens_.fail("takes more than there is on its stack");
  }
  std::vector<Value> pop_to_mark() {
    if (marks_.empty()) tokens_.fail("closes a list that was not opened");
    const auto begin = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
    std::vector<Value> items(begin, stack_.end());
    stack_.erase(begin, stack_.end());
    marks_.pop_back();
    return items;
  }
  Value top(Kind kind) {
    check_stack(1);
    if (stack_.back()->kind != kind) tokens_.fail("fills a value of another kind");
    return stack_.back();
  }

  void push_list(const std::vector<Value>& items) {
    const Value list = make(Kind::kList);
    list->items.assign(items.begin(), items.end());
    push(list);
  }
  void push_tuple(std::size_t count) {
    check_stack(count);
    const std::vector<Value> items(stack_.end() - static_cast<std::ptrdiff_t>(count), stack_.end());
    stack_.resize(stack_.size() - count);
    push_list(items);
  }
  void append(const std::vector<Value>& items) {
    auto& list = top(Kind::kList)->items;
    list.insert(list.end(), items.begin(), items.end());
  }
  void set_items(const std::vector<Value>& items) {
    if (items.size() % 2 != 0) tokens_.fail("a dict has a key without a value");
    const Value dict = top(Kind::kDict);
    for (std::size_t i = 0; i < items.size(); i += 2)
      dict->pairs.emplace_back(items[i], items[i + 1]);
  }
  void push_global(const std::string& name) {
    if (!is_known(name))
      throw Error(ErrorKind::kInput, where_,
                  fmt::format("refused: unpickling it in Python would call or import {}", name),
                  "in Python, save the weights alone: torch.save(model.state_dict(), ...)");
    push(make_text(Kind::kGlobal, name));
  }
  void memoize(std::int64_t key) {
    check_stack(1);
    memo_[key] = stack_.back();
  }
  void push_memo(std::int64_t key) {
    const auto it = memo_.find(key);
    if (it == memo_.end()) tokens_.fail("refers to a value that is not there");
    push(it->second);
  }

  void step(const PickleToken& token) {
    switch (token.op) {
      case PickleOp::kProto:
      case PickleOp::kFrame:
        return;
      case PickleOp::kMark:
        marks_.push_back(stack_.size());
        return;
      case PickleOp::kPop:
        pop();
        return;
      case PickleOp::kPopMark:
        pop_to_mark();
        return;
      case PickleOp::kDup:
        check_stack(1);
        return push(stack_.back());
      case PickleOp::kNone:
        return push(make(Kind::kNone));
      case PickleOp::kNewTrue:
      case PickleOp::kNewFalse:
        return push_integer(Kind::kBool, token.op == PickleOp::kNewTrue);
      case PickleOp::kBinInt:
      case PickleOp::kBinInt1:
      case PickleOp::kBinInt2:
      case PickleOp::kLong1:
        return push_integer(Kind::kInt, token.number);
      case PickleOp::kBinFloat:
        push(make(Kind::kFloat));
        stack_.back()->real = std::bit_cast<double>(token.number);
        return;
      case PickleOp::kBinUnicode:
      case PickleOp::kShortBinUnicode:
      case PickleOp::kBinString:
      case PickleOp::kShortBinString:
        return push(make_text(Kind::kString, token.text));
      case PickleOp::kBinBytes:
      case PickleOp::kShortBinBytes:
        return push(make(Kind::kOther));
      case PickleOp::kEmptyDict:
        return push(make(Kind::kDict));
      case PickleOp::kEmptyList:
      case PickleOp::kEmptyTuple:
      case PickleOp::kEmptySet:
        return push(make(Kind::kList));
      case PickleOp::kTuple:
        return push_list(pop_to_mark());
      case PickleOp::kTuple1:
        return push_tuple(1);
      case PickleOp::kTuple2:
        return push_tuple(2);
      case PickleOp::kTuple3:
        return push_tuple(3);
      case PickleOp::kAppend: {
        const Value item = pop();
        return append({item});
      }
      case PickleOp::kAppends:
      case PickleOp::kAddItems: {
        const std::vector<Value> items = pop_to_mark();
        return append(items);
      }
      case PickleOp::kSetItem: {
        const Value value = pop();
        const Value key = pop();
        return set_items({key, value});
      }
      case PickleOp::kSetItems: {
        const std::vector<Value> items = pop_to_mark();
        return set_items(items);
      }
      case PickleOp::kBinGet:
      case PickleOp::kLongBinGet:
        return push_memo(token.number);
      case PickleOp::kBinPut:
      case PickleOp::kLongBinPut:
        return memoize(token.number);
      case PickleOp::kMemoize:
        return memoize(static_cast<std::int64_t>(memo_.size()));
      case PickleOp::kGlobal:
        return push_global(token.global);
      case PickleOp::kStackGlobal: {
        const Value name = pop();
        const Value module = pop();
        if (name->kind != Kind::kString || module->kind != Kind::kString)
          tokens_.fail("names an object by something else than strings");
        return push_global(module->text + "." + name->text);
      }
      case PickleOp::kBinPersId:
        return push(storage(*pop()));
      case PickleOp::kReduce:
      case PickleOp::kNewObj: {
        const Value arguments = pop();
        const Value function = pop();
        if (function->kind != Kind::kGlobal || arguments->kind != Kind::kList)
          tokens_.fail("calls what is not a function");
        return push(call(function->text, arguments->items));
      }
      case PickleOp::kBuild:  // attributes, such as a state dict's _metadata
        pop();
        check_stack(1);
        return;
      case PickleOp::kStop:
        return;
    }
  }

  using Arguments = std::vector<const PickleValue*>;

  Value call(std::string_view name, const Arguments& arguments) {
    if (kTensors.count(name) != 0) return tensor(name, arguments);
    if (kParameters.count(name) != 0) {
      if (arguments.empty() || arguments[0]->kind != Kind::kTensor)
        tokens_.fail("makes a parameter of what is not a tensor");
      const Value copy = make(Kind::kTensor);
      copy->tensor = arguments[0]->tensor;
      return copy;
    }
    if (name == kFromType) {  // (function, type, its arguments, attributes)
      if (arguments.size() < 3 || arguments[0]->kind != Kind::kGlobal ||
          arguments[0]->text == kFromType || arguments[2]->kind != Kind::kList)
        tokens_.fail("rebuilds a tensor from wrong arguments");
      return call(arguments[0]->text, arguments[2]->items);
    }
    if (kDicts.count(name) != 0) return dict(arguments);
    if (kLists.count(name) != 0) {
      const Value list = make(Kind::kList);
      if (!arguments.empty() && arguments[0]->kind == Kind::kList)
        list->items = arguments[0]->items;
      return list;
    }
    return make(Kind::kOther);
  }

  /// OrderedDict([(key, value), ...]) as Python 2 wrote it, Counter({...}), or empty.
  Value dict(const Arguments& arguments) {
    const Value dict = make(Kind::kDict);
    for (const PickleValue* argument : arguments) {
      if (argument->kind == Kind::kDict) dict->pairs = argument->pairs;
      for (const PickleValue* pair : argument->items)
        if (pair->kind == Kind::kList && pair->items.size() == 2)
          dict->pairs.emplace_back(pair->items[0], pair->items[1]);
    }
    return dict;
  }

  /// ("storage", type, key, location, number of elements)
  Value storage(const PickleValue& id) {
    const auto& items = id.items;
    if (items.size() < 5 || items[0]->text != "storage" || items[1]->kind != Kind::kGlobal ||
        items[2]->kind != Kind::kString || items[4]->kind != Kind::kInt || items[4]->integer < 0)
      tokens_.fail("describes a storage in an unknown way");
    const Value value = make(Kind::kStorage);
    value->tensor.storage = items[2]->text;
    value->tensor.dtype = at::kByte;
    if (!is_untyped_storage(items[1]->text)) value->tensor.dtype = dtype(items[1]->text);
    const std::uint64_t width = c10::elementSize(value->tensor.dtype);
    const auto count = static_cast<std::uint64_t>(items[4]->integer);
    if (count > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()) / width)
      tokens_.fail("describes a storage that is too large");
    value->tensor.storage_bytes = count * width;
    return value;
  }

  at::ScalarType dtype(std::string_view name) const {
    for (const DtypeName& entry : kDtypes)
      if (name == entry.storage || name == entry.dtype) return entry.type;
    tokens_.fail(fmt::format("{} is not a type of weights", name));
  }

  /// (storage, offset, sizes, strides, requires_grad, hooks, ...); _v3 has the data type seventh.
  Value tensor(std::string_view function, const Arguments& arguments) {
    const bool typed = function.ends_with("_v3");
    if (arguments.size() < (typed ? 7u : 4u) || arguments[0]->kind != Kind::kStorage ||
        arguments[1]->kind != Kind::kInt || arguments[2]->kind != Kind::kList ||
        arguments[3]->kind != Kind::kList)
      tokens_.fail("rebuilds a tensor from wrong arguments");
    const Value value = make(Kind::kTensor);
    PickledTensor& tensor = value->tensor;
    tensor = arguments[0]->tensor;
    if (typed) tensor.dtype = dtype(arguments[6]->text);
    tensor.offset = arguments[1]->integer;
    tensor.sizes = integers(*arguments[2]);
    tensor.strides = integers(*arguments[3]);
    check_view(tensor);
    return value;
  }

  std::vector<std::int64_t> integers(const PickleValue& list) const {
    if (list.items.size() > kMaxDimensions) tokens_.fail("has a tensor of too many dimensions");
    std::vector<std::int64_t> values;
    for (const PickleValue* item : list.items) {
      if (item->kind != Kind::kInt || item->integer < 0)
        tokens_.fail("has a tensor of negative or unknown shape");
      values.push_back(item->integer);
    }
    return values;
  }

  /// The last element must lie within the storage.
  void check_view(const PickledTensor& tensor) const {
    if (tensor.sizes.size() != tensor.strides.size() || tensor.offset < 0)
      tokens_.fail("has a tensor whose shape and strides do not match");
    const std::uint64_t elements = tensor.storage_bytes / c10::elementSize(tensor.dtype);
    std::uint64_t end = static_cast<std::uint64_t>(tensor.offset) + 1;
    std::uint64_t numel = 1;
    bool empty = false;
    for (std::size_t i = 0; i < tensor.sizes.size(); ++i) {
      const auto size = static_cast<std::uint64_t>(tensor.sizes[i]);
      const auto stride = static_cast<std::uint64_t>(tensor.strides[i]);
      std::uint64_t reach = 0;
      empty = empty || size == 0;
      // Expanded (stride 0) dimensions do not reach further, but the tensor must be countable.
      if (__builtin_mul_overflow(numel, std::max<std::uint64_t>(size, 1), &numel) ||
          numel > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()) / 8 ||
          __builtin_mul_overflow(std::max<std::uint64_t>(size, 1) - 1, stride, &reach) ||
          __builtin_add_overflow(end, reach, &end))
        tokens_.fail("has a tensor that is too large");
    }
    if (!empty && end > elements) tokens_.fail("has a tensor that leaves its storage");
  }

  PickleTokens tokens_;
  const std::string& where_;
  PickleDocument document_;
  std::vector<Value> stack_;
  std::vector<std::size_t> marks_;
  std::unordered_map<std::int64_t, Value> memo_;
};

PickleDocument read_pickle(std::string_view bytes, const std::string& where) {
  return PickleMachine(bytes, where).run();
}

std::vector<std::string> pickle_globals(std::string_view bytes, const std::string& where) {
  PickleTokens tokens(bytes, where);
  std::set<std::string> names;
  for (;;) {
    const PickleToken token = tokens.next();
    if (token.op == PickleOp::kStop) break;
    // Names made on the stack cannot be read off; TorchScript writes none.
    if (token.op == PickleOp::kStackGlobal) names.insert("(a name made while unpickling)");
    if (token.op == PickleOp::kGlobal) names.insert(token.global);
  }
  return {names.begin(), names.end()};
}

}  // namespace weightsmith
