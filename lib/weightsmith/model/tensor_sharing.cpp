#include "weightsmith/model/tensor_sharing.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cstdint>
#include <map>
#include <set>
#include <tuple>
#include <utility>

namespace weightsmith {
namespace {

/// What a tensor shows of which storage.
using Geometry = std::tuple<const void*, at::ScalarType, std::int64_t, std::vector<std::int64_t>,
                            std::vector<std::int64_t>>;

bool has_memory(const at::Tensor& tensor) {
  return tensor.defined() && tensor.layout() == at::kStrided && tensor.has_storage() &&
         tensor.numel() > 0;
}

Geometry geometry_of(const at::Tensor& tensor) {
  return {tensor.storage().unsafeGetStorageImpl(), tensor.scalar_type(), tensor.storage_offset(),
          tensor.sizes().vec(), tensor.strides().vec()};
}

/// First and last element of the storage that a tensor shows.
std::pair<std::int64_t, std::int64_t> extent(const at::Tensor& tensor) {
  std::int64_t last = tensor.storage_offset();
  for (std::int64_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
  return {tensor.storage_offset(), last};
}

class Separation {
 public:
  explicit Separation(const torch::jit::Module& module) : module_(module) {}

  std::vector<std::string> run() {
    const at::NoGradGuard no_grad;
    // Parameters first, so that it is they that stay where a list holds them too.
    for (const auto& item : module_.named_parameters()) add(item.value, item.name);
    for (const auto& item : module_.named_buffers()) add(item.value, {});
    unify(module_._ivalue());
    separate();
    return std::move(untied_);
  }

 private:
  struct View {
    at::Tensor tensor;
    std::string parameter;  // empty for all else
  };

  at::Tensor add(const at::Tensor& tensor, const std::string& parameter) {
    if (!has_memory(tensor)) return tensor;
    const auto [it, is_new] = first_.emplace(geometry_of(tensor), tensor);
    if (is_new) views_[tensor.storage().unsafeGetStorageImpl()].push_back({tensor, parameter});
    return it->second;
  }

  void unify(const c10::intrusive_ptr<c10::ivalue::Object>& object) {
    if (!seen_.insert(object.get()).second) return;
    for (std::size_t i = 0; i < object->slots().size(); ++i) {
      const c10::IValue& slot = object->slots()[i];
      if (slot.isTensor()) {
        if (const at::Tensor one = add(slot.toTensor(), {}); !one.is_same(slot.toTensor()))
          object->setSlot(i, one);
      } else {
        unify_inside(slot);
      }
    }
  }

  /// Containers are shared by reference: what is put into them is seen wherever they are held.
  void unify_inside(const c10::IValue& value) {
    if (value.isObject()) {
      unify(value.toObject());
    } else if (value.isList()) {
      c10::List<c10::IValue> list = value.toList();
      for (std::size_t i = 0; i < list.size(); ++i) {
        const c10::IValue element = list.get(i);
        if (element.isTensor())
          list.set(i, add(element.toTensor(), {}));
        else
          unify_inside(element);
      }
    } else if (value.isGenericDict()) {
      for (const auto& entry : value.toGenericDict()) {
        if (entry.value().isTensor())
          entry.setValue(add(entry.value().toTensor(), {}));
        else
          unify_inside(entry.value());
      }
    } else if (value.isTuple()) {
      for (const c10::IValue& element : value.toTupleRef().elements()) unify_inside(element);
    }
  }

  void separate() {
    for (const auto& [storage, views] : views_) {
      if (views.size() == 1) continue;
      for (std::size_t i = 0; i < views.size(); ++i) note_ties(views, i);
      for (const View& view : views) {
        at::Tensor tensor = view.tensor;
        tensor.set_data(tensor.detach().clone());
      }
    }
  }

  void note_ties(const std::vector<View>& views, std::size_t i) {
    if (views[i].parameter.empty()) return;
    const auto [first, last] = extent(views[i].tensor);
    for (std::size_t j = i + 1; j < views.size(); ++j) {
      if (views[j].parameter.empty()) continue;
      const auto [begin, end] = extent(views[j].tensor);
      if (first <= end && begin <= last)
        untied_.push_back(views[i].parameter + " and " + views[j].parameter);
    }
  }

  const torch::jit::Module& module_;
  std::map<Geometry, at::Tensor> first_;
  std::map<const void*, std::vector<View>> views_;  // by storage
  std::set<const void*> seen_;
  std::vector<std::string> untied_;
};

}  // namespace

std::vector<std::string> separate_views(const torch::jit::Module& module) {
  return Separation(module).run();
}

}  // namespace weightsmith
