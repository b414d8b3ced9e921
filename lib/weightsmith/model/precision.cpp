#include "weightsmith/model/precision.h"

#include <ATen/ATen.h>

#include "weightsmith/model/torch_versions.h"

namespace weightsmith {

EnumNames<Precision> enum_names(Precision) {
  return {{Precision::kFloat32, "float32"},
          {Precision::kBFloat16, "bfloat16"},
          {Precision::kFloat16, "float16"}};
}

AutocastScope::AutocastScope(Precision precision, at::Device device)
    : active_(precision != Precision::kFloat32), device_(device.type()) {
  if (!active_) return;
  was_on_ = torch_versions::is_autocast_on(device_);
  former_type_ = torch_versions::autocast_type(device_);
  torch_versions::set_autocast_type(device_,
                                    precision == Precision::kBFloat16 ? at::kBFloat16 : at::kHalf);
  torch_versions::set_autocast_on(device_, true);
  at::autocast::increment_nesting();
}

AutocastScope::~AutocastScope() {
  if (!active_) return;
  if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
  torch_versions::set_autocast_on(device_, was_on_);
  torch_versions::set_autocast_type(device_, former_type_);
}

}  // namespace weightsmith
