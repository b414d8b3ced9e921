#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

/// A reader of the pickles in torch.save's files that executes nothing. A pickle is a program for a
/// small stack machine that may name any Python object and call it; here only the names torch
/// itself uses for tensors and containers have a meaning, and any other is an error.
namespace weightsmith {

/// A tensor as a pickle describes it: a view into a storage kept elsewhere.
struct PickledTensor {
  std::string storage;  ///< the key: record data/<key> of the archive
  at::ScalarType dtype = at::kFloat;
  std::uint64_t storage_bytes = 0;
  std::int64_t offset = 0;  ///< in elements
  std::vector<std::int64_t> sizes;
  std::vector<std::int64_t> strides;
};

/// A value of a pickle. Lists, tuples and sets are kList. kOther stands for what has no bearing on
/// weights (devices, numbers beyond 64 bits, bytes).
struct PickleValue {
  enum class Kind {
    kNone,
    kBool,
    kInt,
    kFloat,
    kString,
    kList,
    kDict,
    kTensor,
    kStorage,  ///< `tensor` without offset, sizes and strides
    kGlobal,   ///< `text` is the qualified name
    kOther,
  };
  Kind kind = Kind::kNone;
  std::int64_t integer = 0;  ///< also of kBool
  double real = 0;
  std::string text;
  std::vector<const PickleValue*> items;
  std::vector<std::pair<const PickleValue*, const PickleValue*>> pairs;
  PickledTensor tensor;
};

/// Owns the values of one pickle; they may refer to each other, even in circles.
class PickleDocument {
 public:
  const PickleValue& root() const { return *root_; }

 private:
  friend class PickleMachine;
  std::deque<PickleValue> values_;
  const PickleValue* root_ = nullptr;
};

/// Reads protocols 2 to 5. Known names: collections.OrderedDict, defaultdict and Counter, Python's
/// own containers, torch._utils._rebuild_tensor (also _v2, _v3), _rebuild_parameter,
/// torch._tensor._rebuild_from_type_v2, the storages, torch.Size, torch.device and data types.
/// `where` names the file in errors. Throws Error{kInput}: another name ("refused: ..."), an
/// unknown opcode, a stack that does not fit, a shape that leaves its storage, more than 4 million
/// values. Time and memory are linear in the bytes.
PickleDocument read_pickle(std::string_view bytes, const std::string& where);

/// The qualified names ("module.name") of every Python object a pickle refers to, without
/// interpreting anything else. Throws Error{kInput} on damage.
std::vector<std::string> pickle_globals(std::string_view bytes, const std::string& where);

}  // namespace weightsmith
